package main

import (
	"slices"
	"strings"
	"testing"
)

// All that is wrong is told at once, each problem with its flag.
func TestConfigCheck(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		want []string // beginnings of the lines, sorted
	}{
		"defaults": {nil, nil},
		"handlers": {[]string{"--runtime", "runc=/sbin/runc,crun=/bin/crun", "--default-runtime", "crun"}, nil},
		"IPv6":     {[]string{"--stream-address", "[::1]:0"}, nil},
		"unknown default": {
			[]string{"--runtime", "runc=/sbin/runc", "--default-runtime", "x"},
			[]string{`--default-runtime: "x" is none of builtin, runc`},
		},
		"not on loopback": {[]string{"--stream-address", "0.0.0.0:0"}, []string{`--stream-address: "0.0.0.0:0" is no loopback address`}},
		"metrics":         {[]string{"--metrics-address", "[::]:9474"}, nil},
		"metrics without a port": {
			[]string{"--metrics-address", "0.0.0.0"}, []string{`--metrics-address: "0.0.0.0" is no address with a port`},
		},
		"all at once": {
			[]string{"--root", "a", "--network", "b", "--cgroup-driver", "systemd", "--runtime", "builtin=c"},
			[]string{"--cgroup-driver: ", "--network: ", "--root: ", "--runtime: program", "--runtime: the name"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := serveCommand()
			c := defaults()
			cmd.ResetFlags()
			c.flags(cmd.Flags())
			if err := cmd.ParseFlags(tc.args); err != nil {
				t.Fatal(err)
			}
			var got []string
			if err := c.check(); err != nil {
				got = strings.Split(err.Error(), "\n")
			}
			slices.Sort(got)
			if !slices.EqualFunc(got, tc.want, strings.HasPrefix) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

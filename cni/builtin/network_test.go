package builtin

import (
	"net"
	"testing"

	types100 "github.com/containernetworking/cni/pkg/types/100"
)

func TestCompileTakesTheUsualShapeOnly(t *testing.T) {
	const (
		bridge  = `{"type":"bridge","isGateway":true,"ipam":{"type":"host-local","ranges":[[{"subnet":"10.1.0.0/24"}]]}}`
		portmap = `{"type":"portmap","capabilities":{"portMappings":true}}`
	)
	for name, tc := range map[string]struct {
		plugins    []string
		want, port bool
	}{
		"bridge":                   {[]string{bridge}, true, false},
		"bridge and ports":         {[]string{bridge, portmap}, true, true},
		"ports not asked for":      {[]string{bridge, `{"type":"portmap"}`}, true, false},
		"nothing":                  {nil, false, false},
		"ports first":              {[]string{portmap, bridge}, false, false},
		"a third plugin":           {[]string{bridge, portmap, `{"type":"bandwidth"}`}, false, false},
		"another plugin":           {[]string{bridge, `{"type":"firewall"}`}, false, false},
		"another address manager":  {[]string{`{"type":"bridge","ipam":{"type":"dhcp"}}`}, false, false},
		"no address manager":       {[]string{`{"type":"bridge"}`}, false, false},
		"a capability":             {[]string{`{"type":"bridge","capabilities":{"mac":true},"ipam":{"type":"host-local","subnet":"10.1.0.0/24"}}`}, false, false},
		"an option that is not in": {[]string{`{"type":"bridge","vlan":7,"ipam":{"type":"host-local","subnet":"10.1.0.0/24"}}`}, false, false},
		"a bad range":              {[]string{`{"type":"bridge","ipam":{"type":"host-local","subnet":"10.1.0.1/24"}}`}, false, false},
		"a bad option of portmap":  {[]string{bridge, `{"type":"portmap","snat":false}`}, false, false},
		"no JSON":                  {[]string{`{`}, false, false},
	} {
		var confs [][]byte
		for _, p := range tc.plugins {
			confs = append(confs, []byte(p))
		}
		n := (&Plugins{}).Compile("net", "1.0.0", confs)
		if (n != nil) != tc.want || n != nil && n.ports != tc.port {
			t.Errorf("%s: got %+v, want compiled %v, with ports %v", name, n, tc.want, tc.port)
		}
	}
}

// Others are told of a pod unless they cannot know anything wrong of its addresses.
func TestAnnounced(t *testing.T) {
	const v4, v6, small6 = "10.1.0.2/16", "fd00::2/64", "fd00::2/120"
	for name, tc := range map[string]struct {
		ips  []string
		conf bridgeConf
		want bool
	}{
		"gateway":                   {[]string{v4}, bridgeConf{IsGW: true}, false},
		"gateway, both families":    {[]string{v4, v6}, bridgeConf{IsGW: true}, false},
		"gateway, IPv6 alone":       {[]string{small6}, bridgeConf{IsGW: true}, false},
		"IPv6 addresses come again": {[]string{v4, small6}, bridgeConf{IsGW: true}, true},
		"no gateway":                {[]string{v4, v6}, bridgeConf{}, true},
		"a MAC that was asked for":  {[]string{v4}, bridgeConf{IsGW: true, mac: net.HardwareAddr{2, 0, 0, 0, 0, 1}}, true},
	} {
		l := &link{conf: &tc.conf, res: &types100.Result{}}
		for _, s := range tc.ips {
			l.res.IPs = append(l.res.IPs, &types100.IPConfig{Address: mustNet(s)})
		}
		if got := l.announced(); got != tc.want {
			t.Errorf("%s: announced %v, want %v", name, got, tc.want)
		}
	}
}

package registry

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestHosts(t *testing.T) {
	const full = `
server = "https://up.example"
capabilities = ["pull"]
[host."https://z.example"]
  capabilities = ["pull", "resolve", "push"]
  dial_timeout = "3s"
  [host."https://z.example".header]
    x-a = ["1", "2"]
[host."http://a.example:5000/prefix"]
  override_path = true
  skip_verify = true
[host."m.example"]
`
	for name, tc := range map[string]struct {
		dir, text, registry string
		want                string
	}{
		"in the file's order":   {"r.example", full, "r.example", "https://z.example/v2 3, http://a.example:5000/prefix 3, https://m.example/v2 3, https://up.example/v2 1"},
		"nothing":               {"", "", "r.example", "https://r.example/v2 3"},
		"docker.io":             {"", "", "docker.io", "https://registry-1.docker.io/v2 3"},
		"loopback":              {"", "", "localhost:5000", "https://localhost:5000/v2 3, http://localhost:5000/v2 3"},
		"port with underscores": {"r.example_5000_", "[host.\"https://m\"]", "r.example:5000", "https://m/v2 3, https://r.example:5000/v2 3"},
		"port with colon":       {"r.example:5000", "[host.\"https://m\"]", "r.example:5000", "https://m/v2 3, https://r.example:5000/v2 3"},
		"default":               {"_default", "[host.\"https://m\"]", "docker.io", "https://m/v2 3, https://registry-1.docker.io/v2 3"},
		"directory only":        {"r.example", "", "r.example", "https://r.example/v2 3"},
		"not for another":       {"r.example", full, "s.example", "https://s.example/v2 3"},
		"dotted keys":           {"r.example", "host.\"https://m\".skip_verify = true", "r.example", "https://m/v2 3, https://r.example/v2 3"},
		"server is a host, too": {"r.example", "server = \"http://m\"\n[host.\"http://m\"]\n[host.\"http://n\"]", "r.example", "http://m/v2 3, http://n/v2 3"},
		"bad capability":        {"r.example", "capabilities = [\"fly\"]", "r.example", "error fly"},
		"bad address":           {"r.example", "server = \"ftp://x\"", "r.example", "error ftp"},
		"bad timeout":           {"r.example", "dial_timeout = \"soon\"", "r.example", "error dial_timeout"},
		"no toml":               {"r.example", "[[[", "r.example", "error hosts.toml"},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			if tc.dir != "" {
				if err := os.Mkdir(filepath.Join(root, tc.dir), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if tc.text != "" {
				if err := os.WriteFile(filepath.Join(root, tc.dir, "hosts.toml"), []byte(tc.text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			eps, err := endpoints(root, tc.registry)
			if word, ok := strings.CutPrefix(tc.want, "error "); ok {
				if err == nil || !strings.Contains(err.Error(), word) {
					t.Errorf("got %v, want an error with %q", err, word)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, e := range eps {
				got = append(got, fmt.Sprintf("%s %d", e.URL, e.Capabilities))
			}
			if s := strings.Join(got, ", "); s != tc.want {
				t.Errorf("got  %s\nwant %s", s, tc.want)
			}
			if tc.text == full && tc.dir == tc.registry {
				if e := eps[0]; e.DialTimeout != 3*time.Second || fmt.Sprint(e.Header) != "map[X-A:[1 2]]" || !eps[1].skipVerify {
					t.Errorf("fields: got %+v", eps)
				}
			}
		})
	}
}

func FuzzHosts(f *testing.F) {
	f.Add("server = \"https://x\"\n[host.\"https://y\"]\nca = [\"a\"]\nclient = [[\"a\", \"b\"]]\n")
	f.Fuzz(func(t *testing.T, text string) {
		eps, err := parseHosts([]byte(text), "/d", "r.example")
		if err == nil && len(eps) == 0 {
			t.Error("no endpoint and no error")
		}
	})
}

func TestChallenges(t *testing.T) {
	for in, want := range map[string]string{
		`Bearer realm="https://a/t",service="s",scope="repository:x:pull,push"`: "[bearer map[realm:https://a/t scope:repository:x:pull,push service:s]]",
		`Basic realm="x \" y"`:                   `[basic map[realm:x " y]]`,
		`basic`:                                  "[basic map[]]",
		`Negotiate, Basic realm=x, Bearer a = b`: "[negotiate map[] basic map[realm:x] bearer map[a:b]]",
		`="x",,=`:                                "[]",
		``:                                       "[]",
	} {
		var got []string
		for _, c := range parseChallenges([]string{in}) {
			got = append(got, fmt.Sprint(c.scheme, " ", c.param))
		}
		if s := fmt.Sprint(got); s != want {
			t.Errorf("%s: got %s, want %s", in, s, want)
		}
	}
}

func FuzzChallenges(f *testing.F) {
	f.Add(`Bearer realm="https://a/t",service="s"`)
	f.Fuzz(func(_ *testing.T, s string) { parseChallenges([]string{s}) })
}

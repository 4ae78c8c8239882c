package registry

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

type capability int

const (
	canPull capability = 1 << iota
	canResolve
)

// endpoint is one host that may answer for a registry.
type endpoint struct {
	URL          *url.URL // up to and including the API's version: https://host/v2
	Capabilities capability
	Header       http.Header
	DialTimeout  time.Duration

	skipVerify bool
	ca         []string
	client     [][2]string // certificate and key files
	upstream   bool        // the registry itself, not a mirror
	otherwise  bool        // the same host as the one before, in case it has no TLS
}

// owns tells whether this is the registry itself.
func (e *endpoint) owns(registry string) bool {
	return e.upstream || e.URL.Host == registry
}

// hostFile is a table of hosts.toml; the file itself is one too, for its server.
type hostFile struct {
	Server       string              `toml:"server"`
	Host         map[string]hostFile `toml:"host"`
	Capabilities []string            `toml:"capabilities"`
	CA           any                 `toml:"ca"`
	Client       any                 `toml:"client"`
	SkipVerify   *bool               `toml:"skip_verify"`
	Header       map[string]any      `toml:"header"`
	OverridePath bool                `toml:"override_path"`
	DialTimeout  string              `toml:"dial_timeout"`
}

// endpoints reads the configuration of a registry. Without any there is the registry.
func endpoints(root, registry string) ([]endpoint, error) {
	dir, err := hostDir(root, registry)
	if err != nil {
		return nil, err
	}
	var data []byte
	if dir != "" {
		data, err = os.ReadFile(filepath.Join(dir, "hosts.toml"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("read hosts.toml: %w", err)
		}
	}
	if data == nil {
		return plain(dir, registry)
	}
	eps, err := parseHosts(data, dir, registry)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, "hosts.toml"), err)
	}
	return eps, nil
}

// hostDir finds the directory of a registry: containerd writes "host_port_", since
// some filesystems dislike colons; people write "host:port"; _default is for the rest.
func hostDir(root, registry string) (string, error) {
	if root == "" {
		return "", nil
	}
	var names []string
	if h, p, err := net.SplitHostPort(registry); err == nil {
		names = append(names, h+"_"+p+"_")
	}
	for _, n := range append(names, registry, "_default") {
		dir := filepath.Join(root, n)
		fi, err := os.Stat(dir)
		if err == nil && fi.IsDir() {
			return dir, nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("read registry configuration: %w", err)
		}
	}
	return "", nil
}

// serverOf gives the host that really serves a registry.
func serverOf(registry string) string {
	if registry == "docker.io" {
		return "registry-1.docker.io"
	}
	return registry
}

// plain is the configuration without hosts.toml. A registry on loopback may be without
// TLS, as in every peer; certificates in the directory are used as Docker does.
func plain(dir, registry string) ([]endpoint, error) {
	ep, err := newEndpoint("https://"+serverOf(registry), false)
	if err != nil {
		return nil, err
	}
	ep.upstream = true
	if dir != "" {
		if err := dockerCerts(dir, &ep); err != nil {
			return nil, err
		}
	}
	eps := []endpoint{ep}
	if isLoopback(registry) && !strings.HasSuffix(registry, ":443") {
		if ep, err = newEndpoint("http://"+registry, false); err != nil {
			return nil, err
		}
		ep.upstream, ep.otherwise = true, true
		eps = append(eps, ep)
	}
	return eps, nil
}

func isLoopback(registry string) bool {
	h, _, err := net.SplitHostPort(registry)
	if err != nil {
		h = registry
	}
	ip := net.ParseIP(strings.Trim(h, "[]"))
	return h == "localhost" || ip != nil && ip.IsLoopback()
}

func dockerCerts(dir string, ep *endpoint) error {
	es, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read certificates: %w", err)
	}
	for _, e := range es {
		path := filepath.Join(dir, e.Name())
		switch filepath.Ext(path) {
		case ".crt":
			ep.ca = append(ep.ca, path)
		case ".cert":
			ep.client = append(ep.client, [2]string{path, strings.TrimSuffix(path, ".cert") + ".key"})
		}
	}
	return nil
}

func parseHosts(data []byte, dir, registry string) ([]endpoint, error) {
	var f hostFile
	if err := toml.Unmarshal(data, &f); err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdef.ErrInvalid)
	}
	var eps []endpoint
	for _, name := range tableOrder(data, f.Host) {
		ep, err := f.Host[name].endpoint(name, dir)
		if err != nil {
			return nil, fmt.Errorf("host %s: %w", name, err)
		}
		eps = append(eps, ep)
	}
	server := f.Server
	if server == "" {
		server = "https://" + serverOf(registry)
	}
	ep, err := f.endpoint(server, dir)
	if err != nil {
		return nil, fmt.Errorf("server %s: %w", server, err)
	}
	ep.upstream = true
	for i := range eps {
		if *eps[i].URL == *ep.URL && eps[i].Capabilities&ep.Capabilities == ep.Capabilities {
			eps[i].upstream = true // it has its own table: nothing is gained by asking it twice
			return eps, nil
		}
	}
	return append(eps, ep), nil
}

// tableOrder gives the [host."..."] tables in the order of the file, which a map loses.
func tableOrder(data []byte, hosts map[string]hostFile) []string {
	var order []string
	var p unstable.Parser
	p.Reset(data)
	for p.NextExpression() {
		e := p.Expression()
		if e.Kind != unstable.Table && e.Kind != unstable.KeyValue {
			continue
		}
		var key []string
		for it := e.Key(); it.Next(); {
			key = append(key, string(it.Node().Data))
		}
		if len(key) >= 2 && key[0] == "host" && !slices.Contains(order, key[1]) {
			if _, ok := hosts[key[1]]; ok {
				order = append(order, key[1])
			}
		}
	}
	var rest []string // written in a way that the walk above does not see
	for name := range hosts {
		if !slices.Contains(order, name) {
			rest = append(rest, name)
		}
	}
	slices.Sort(rest)
	return append(order, rest...)
}

func newEndpoint(server string, override bool) (endpoint, error) {
	if !strings.Contains(server, "://") {
		server = "https://" + server
	}
	u, err := url.Parse(server)
	if err != nil {
		return endpoint{}, fmt.Errorf("address: %w: %w", err, errdef.ErrInvalid)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.User != nil {
		return endpoint{}, fmt.Errorf("address %q: want http(s)://host[:port][/path]: %w", u.Redacted(), errdef.ErrInvalid)
	}
	u.Path = strings.TrimRight(u.Path, "/")
	if !override && !strings.HasSuffix(u.Path, "/v2") {
		u.Path += "/v2"
	}
	u.Host = strings.ToLower(u.Host)
	return endpoint{URL: u, Capabilities: canPull | canResolve}, nil
}

func (f hostFile) endpoint(server, dir string) (endpoint, error) {
	ep, err := newEndpoint(server, f.OverridePath)
	if err != nil {
		return ep, err
	}
	if f.Capabilities != nil {
		if ep.Capabilities, err = capabilities(f.Capabilities); err != nil {
			return ep, err
		}
	}
	if f.DialTimeout != "" {
		if ep.DialTimeout, err = time.ParseDuration(f.DialTimeout); err != nil {
			return ep, fmt.Errorf("dial_timeout: %w: %w", err, errdef.ErrInvalid)
		}
	}
	ep.skipVerify = f.SkipVerify != nil && *f.SkipVerify
	if ep.Header, err = headers(f.Header); err != nil {
		return ep, err
	}
	if ep.ca, err = stringList("ca", f.CA); err != nil {
		return ep, err
	}
	if ep.client, err = clientPairs(f.Client); err != nil {
		return ep, err
	}
	for i := range ep.ca {
		ep.ca[i] = below(dir, ep.ca[i])
	}
	for i, p := range ep.client {
		ep.client[i] = [2]string{below(dir, p[0]), below(dir, p[1])}
	}
	return ep, nil
}

func capabilities(names []string) (capability, error) {
	var all capability
	for _, c := range names {
		switch c {
		case "pull":
			all |= canPull
		case "resolve":
			all |= canResolve
		case "push", "referrers":
		default:
			return 0, fmt.Errorf("unknown capability %q: %w", c, errdef.ErrInvalid)
		}
	}
	return all, nil
}

func below(dir, path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

func headers(m map[string]any) (http.Header, error) {
	h := http.Header{}
	for k, v := range m {
		vs, err := stringList("header "+k, v)
		if err != nil {
			return nil, err
		}
		for _, s := range vs {
			h.Add(k, s)
		}
	}
	return h, nil
}

// stringList accepts a string or a list of strings, as containerd does.
func stringList(what string, v any) ([]string, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case string:
		return []string{v}, nil
	case []any:
		var l []string
		for _, e := range v {
			s, ok := e.(string)
			if !ok {
				return nil, fmt.Errorf("%s: want strings: %w", what, errdef.ErrInvalid)
			}
			l = append(l, s)
		}
		return l, nil
	}
	return nil, fmt.Errorf("%s: want a string or a list: %w", what, errdef.ErrInvalid)
}

// clientPairs accepts a file, a list of files, or a list of pairs of files.
func clientPairs(v any) ([][2]string, error) {
	list, ok := v.([]any)
	if !ok {
		list = []any{v}
	}
	var pairs [][2]string
	for _, e := range list {
		fs, err := stringList("client", e)
		if err != nil {
			return nil, err
		}
		switch len(fs) {
		case 0:
		case 1: // certificate and key in one file
			pairs = append(pairs, [2]string{fs[0], fs[0]})
		case 2:
			pairs = append(pairs, [2]string{fs[0], fs[1]})
		default:
			return nil, fmt.Errorf("client: want certificate and key: %w", errdef.ErrInvalid)
		}
	}
	return pairs, nil
}

func (e *endpoint) tlsConfig() (*tls.Config, error) {
	// #nosec G402 -- only where the operator wrote skip_verify
	c := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: e.skipVerify}
	if len(e.ca) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		for _, f := range e.ca {
			pem, err := os.ReadFile(f)
			if err != nil {
				return nil, fmt.Errorf("read ca: %w", err)
			}
			if !pool.AppendCertsFromPEM(pem) {
				return nil, fmt.Errorf("ca %s holds no certificate: %w", f, errdef.ErrInvalid)
			}
		}
		c.RootCAs = pool
	}
	for _, p := range e.client {
		cert, err := tls.LoadX509KeyPair(p[0], p[1])
		if err != nil {
			return nil, fmt.Errorf("read client certificate: %w", err)
		}
		c.Certificates = append(c.Certificates, cert)
	}
	return c, nil
}

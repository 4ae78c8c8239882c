package cli

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	rt "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxCreds bounds files of credentials.
const maxCreds = 1 << 20

// credentials say where those of a pull are. They come from files alone: the words of a
// command line are in /proc for all to read, and in the shell's history.
type credentials struct {
	file string // USER:PASSWORD
	auth string // Docker's config.json
}

// read gives what to send, nil for nothing. No message shows any of it.
func (c credentials) read(in io.Reader, ref string) (*rt.AuthConfig, error) {
	switch {
	case c.file != "":
		text, err := readSmall(in, "--creds", c.file)
		if err != nil {
			return nil, err
		}
		user, password, ok := strings.Cut(strings.TrimRight(string(text), "\r\n"), ":")
		if !ok || strings.ContainsAny(user+password, "\r\n") {
			return nil, errors.New("--creds: want one line with USER:PASSWORD in the file")
		}
		return &rt.AuthConfig{Username: user, Password: password}, nil
	case c.auth != "":
		text, err := readSmall(in, "--auth", c.auth)
		if err != nil {
			return nil, err
		}
		return dockerAuth(text, ref)
	}
	return nil, nil
}

func readSmall(in io.Reader, flag, name string) ([]byte, error) {
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			if strings.Contains(name, ":") { // perhaps no name but the secret itself
				return nil, fmt.Errorf("%s: want the name of a file, or - for standard input; never the credentials themselves", flag)
			}
			return nil, fmt.Errorf("%s: %w", flag, err)
		}
		defer f.Close()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, maxCreds))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	return text, nil
}

// dockerAuth picks the entry of an image's registry: the one for the longest beginning of
// its name, so that a namespace may have an account of its own. No entry is no error:
// what is public needs none.
func dockerAuth(text []byte, ref string) (*rt.AuthConfig, error) {
	var doc struct {
		Auths map[string]struct {
			Auth          string `json:"auth"`
			Username      string `json:"username"`
			Password      string `json:"password"`
			IdentityToken string `json:"identitytoken"`
			RegistryToken string `json:"registrytoken"`
		} `json:"auths"`
		Helpers map[string]string `json:"credHelpers"`
		Store   string            `json:"credsStore"`
	}
	if json.Unmarshal(text, &doc) != nil { // the error would quote it
		return nil, errors.New("--auth: the file is not JSON as in Docker's config.json")
	}
	name := registryName(ref)
	best, key := "", ""
	for k := range doc.Auths {
		at := authScope(k)
		if (name == at || strings.HasPrefix(name, at+"/")) && len(at) > len(best) {
			best, key = at, k
		}
	}
	host, _, _ := strings.Cut(name, "/")
	if key == "" {
		if doc.Store != "" || doc.Helpers[host] != "" {
			return nil, fmt.Errorf("--auth: the file leaves %s to a credential helper, which is not run: use --creds", host)
		}
		return nil, nil
	}
	e := doc.Auths[key]
	a := &rt.AuthConfig{Username: e.Username, Password: e.Password, IdentityToken: e.IdentityToken, RegistryToken: e.RegistryToken}
	if e.Auth != "" {
		plain, err := base64.StdEncoding.DecodeString(e.Auth)
		user, password, ok := strings.Cut(string(plain), ":")
		if err != nil || !ok {
			return nil, fmt.Errorf("--auth: auths[%q].auth is not base64 of USER:PASSWORD", key)
		}
		a.Username, a.Password = user, password
	}
	if a.Username+a.Password+a.IdentityToken+a.RegistryToken == "" {
		return nil, fmt.Errorf("--auth: auths[%q] is empty: a credential helper may hold it, which is not run: use --creds", key)
	}
	return a, nil
}

// registryName is a reference with its registry, without tag and digest.
func registryName(ref string) string {
	ref, _, _ = strings.Cut(ref, "@")
	host, path, ok := strings.Cut(ref, "/")
	if !ok || !strings.ContainsAny(host, ".:") && host != "localhost" {
		if !ok {
			ref = "library/" + ref
		}
		host, path = "docker.io", ref
	}
	if i := strings.LastIndexByte(path, ':'); i > strings.LastIndexByte(path, '/') {
		path = path[:i]
	}
	return host + "/" + path
}

// authScope reads a key of "auths": an address, or the beginning of an image's name.
func authScope(key string) string {
	if _, rest, ok := strings.Cut(key, "://"); ok {
		key, _, _ = strings.Cut(rest, "/") // an address names the registry only
	}
	key = strings.TrimRight(key, "/")
	host, path, _ := strings.Cut(key, "/")
	if host == "index.docker.io" || host == "registry-1.docker.io" {
		host = "docker.io"
	}
	if path == "" || path == "v1" || path == "v2" {
		return host
	}
	return host + "/" + path
}

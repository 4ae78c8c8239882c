package registry

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// maxToken bounds a token server's answer; tokens of cloud registries reach some KiB.
const maxToken = 1 << 20

// authorizer answers a host's challenges. Its zero value has no credentials and can
// still get anonymous tokens.
type authorizer struct {
	cred Credentials

	mu     sync.Mutex        // held while a token is fetched: the others wait for that one
	values map[string]string // of the Authorization header, by kind of request; "": the newest
	tokens map[string]string // by realm, service and scope

	hidden  sync.Mutex // guards secrets; taken last
	secrets []string   // that were sent to somebody
}

// attempt is a request that was refused.
type attempt struct{ kind, used, scope string }

func (a *authorizer) current(kind string) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.currentLocked(kind)
}

func (a *authorizer) currentLocked(kind string) string {
	if a.cred.RegistryToken != "" {
		return "Bearer " + a.cred.RegistryToken
	}
	return cmp.Or(a.values[kind], a.values[""])
}

func (a *authorizer) set(kind, value string) {
	if a.values == nil {
		a.values = map[string]string{}
	}
	a.values[kind], a.values[""] = value, value
}

// redact takes our credentials out of foreign words: some servers repeat what they were
// sent.
func (h *host) redact(text string) string {
	h.auth.hidden.Lock()
	defer h.auth.hidden.Unlock()
	c := h.auth.cred
	hide := append([]string{c.Password, c.IdentityToken, c.RegistryToken}, h.auth.secrets...)
	if c.Username != "" || c.Password != "" {
		hide = append(hide, basic(c))
	}
	for _, vs := range h.Header {
		hide = append(hide, vs...)
	}
	for _, s := range hide {
		if len(s) > 2 { // a shorter one shows itself by what it cuts
			for _, form := range []string{s, url.QueryEscape(s), url.PathEscape(s)} {
				text = strings.ReplaceAll(text, form, "[redacted]")
			}
		}
	}
	return text
}

func (h *host) hide(secret string) {
	h.auth.hidden.Lock()
	defer h.auth.hidden.Unlock()
	h.auth.secrets = append(h.auth.secrets, secret)
}

// challenge is one scheme of a WWW-Authenticate header.
type challenge struct {
	scheme string // lower case
	param  map[string]string
}

// parseChallenges reads WWW-Authenticate headers, one or several schemes in each.
func parseChallenges(headers []string) []challenge {
	var cs []challenge
	for _, s := range headers {
		for s = strings.TrimLeft(s, " ,"); s != ""; s = strings.TrimLeft(s, " ,") {
			word := s
			if i := strings.IndexAny(s, " ,="); i >= 0 {
				word = s[:i]
			}
			s = s[len(word):]
			if !strings.HasPrefix(strings.TrimLeft(s, " "), "=") {
				cs = append(cs, challenge{strings.ToLower(word), map[string]string{}})
				continue
			}
			var value string
			value, s = paramValue(strings.TrimLeft(strings.TrimLeft(s, " ")[1:], " "))
			if len(cs) > 0 {
				cs[len(cs)-1].param[strings.ToLower(word)] = value
			}
			if word == "" { // a stray "=": make progress
				continue
			}
		}
	}
	return cs
}

func paramValue(s string) (value, rest string) {
	if !strings.HasPrefix(s, `"`) {
		if i := strings.IndexAny(s, ", "); i >= 0 {
			return s[:i], s[i:]
		}
		return s, ""
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		case s[i] == '"':
			return b.String(), s[i+1:]
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String(), ""
}

// renew answers a 401. It reports whether there is something new to try.
func (h *host) renew(ctx context.Context, at attempt, resp *http.Response) (bool, error) {
	h.auth.mu.Lock()
	defer h.auth.mu.Unlock()
	if h.auth.currentLocked(at.kind) != at.used {
		return true, nil // another request of this session has been here
	}
	cred := h.auth.cred
	if cred.RegistryToken != "" {
		return false, nil // what was given is refused: nothing else stands for it
	}
	for _, c := range parseChallenges(resp.Header.Values("WWW-Authenticate")) {
		value := ""
		switch c.scheme {
		case "basic":
			if cred.Username == "" && cred.Password == "" {
				continue
			}
			value = "Basic " + basic(cred)
		case "bearer":
			token, err := h.cachedToken(ctx, c.param, at)
			if err != nil {
				return false, fmt.Errorf("get token: %w", err)
			}
			value = "Bearer " + token
		default:
			continue
		}
		h.auth.set(at.kind, value)
		return value != at.used, nil
	}
	return false, nil
}

// cachedToken gives the token of a scope, a new one if that is what was refused.
func (h *host) cachedToken(ctx context.Context, p map[string]string, at attempt) (string, error) {
	key := p["realm"] + " " + p["service"] + " " + cmp.Or(p["scope"], at.scope)
	if t := h.auth.tokens[key]; t != "" && "Bearer "+t != at.used {
		return t, nil
	}
	t, err := h.token(ctx, p, at.scope)
	if err != nil {
		return "", err
	}
	h.hide(t)
	if h.auth.tokens == nil {
		h.auth.tokens = map[string]string{}
	}
	h.auth.tokens[key] = t
	return t, nil
}

func basic(c Credentials) string {
	return base64.StdEncoding.EncodeToString([]byte(c.Username + ":" + c.Password))
}

// token asks the token server that the registry named. The realm comes from the
// registry's own answer, never from a redirect's; a registry reached by TLS may not send
// credentials to a server without.
func (h *host) token(ctx context.Context, p map[string]string, scope string) (string, error) {
	realm, err := url.Parse(p["realm"])
	if err != nil || realm.Host == "" || realm.Scheme != "https" && realm.Scheme != "http" {
		return "", fmt.Errorf("realm %s is no address: %w", quote(p["realm"]), errdef.ErrDenied)
	}
	if realm.Scheme == "http" && h.URL.Scheme == "https" {
		return "", fmt.Errorf("realm %s is without TLS: %w", quote(realm.Host), errdef.ErrDenied)
	}
	if s := p["scope"]; s != "" {
		scope = s
	}
	query := url.Values{"service": {p["service"]}, "scope": strings.Fields(scope)}
	if h.auth.cred.IdentityToken == "" {
		return h.askToken(ctx, http.MethodGet, realm, query)
	}
	token, err := h.askToken(ctx, http.MethodPost, realm, url.Values{"service": {p["service"]}, "scope": {scope},
		"grant_type": {"refresh_token"}, "refresh_token": {h.auth.cred.IdentityToken}, "client_id": {h.cfg.UserAgent}})
	if e, ok := errors.AsType[*StatusError](err); ok && slices.Contains(noOAuth, e.Code) {
		var err2 error
		if token, err2 = h.askToken(ctx, http.MethodGet, realm, query); err2 != nil {
			return "", fmt.Errorf("%w; by GET: %w", err, err2)
		}
		return token, nil
	}
	return token, err
}

// noOAuth are the answers of token servers that know only GET, where an identity token
// stands for the password: registries chose different ones.
var noOAuth = []int{http.StatusBadRequest, http.StatusUnauthorized, http.StatusNotFound, http.StatusMethodNotAllowed}

func (h *host) askToken(ctx context.Context, method string, realm *url.URL, form url.Values) (string, error) {
	u, body := *realm, ""
	if method == http.MethodGet {
		q := u.Query()
		maps.Copy(q, form)
		u.RawQuery = q.Encode()
	} else {
		body = form.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), strings.NewReader(body))
	if err != nil {
		return "", fmt.Errorf("token request: %w", err)
	}
	req.Header.Set("User-Agent", h.cfg.UserAgent)
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	} else if c := h.auth.cred; c.Username != "" || c.Password != "" || c.IdentityToken != "" {
		req.SetBasicAuth(c.Username, cmp.Or(c.Password, c.IdentityToken))
	}
	resp, err := h.client.Do(req)
	if err != nil {
		return "", h.transportError(err)
	}
	resp.Body = limitTime(resp.Body, h.cfg.Stall)
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("token server %s: %w", realm.Host, h.tokenStatus(resp))
	}
	data, err := readBounded(resp.Body, maxToken)
	if err != nil {
		return "", fmt.Errorf("token server %s: %w", realm.Host, err)
	}
	var t struct {
		Token  string `json:"token"`
		Access string `json:"access_token"`
	}
	if err := json.Unmarshal(data, &t); err != nil {
		// The text may hold half a token: none of it goes into the message.
		return "", fmt.Errorf("token server %s: answer is no JSON: %w", realm.Host, errdef.ErrDenied)
	}
	if t.Token == "" {
		t.Token = t.Access
	}
	if t.Token == "" {
		return "", fmt.Errorf("token server %s: answer has no token: %w", realm.Host, errdef.ErrDenied)
	}
	return t.Token, nil
}

// tokenStatus takes a refused grant for what it is: OAuth2 says 400 for bad credentials.
func (h *host) tokenStatus(resp *http.Response) error {
	err := h.statusError(resp)
	if resp.StatusCode >= 400 && resp.StatusCode < 500 && resp.StatusCode != http.StatusTooManyRequests {
		return fmt.Errorf("%w: %w", errdef.ErrDenied, err)
	}
	return err
}

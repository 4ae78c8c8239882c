package registry

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"
)

const (
	dialTimeout  = 10 * time.Second
	maxRedirects = 10
	maxHeader    = 256 << 10 // of an answer
	pingTimeout  = 15 * time.Second
)

func newHost(ep endpoint, cfg Config) (*host, error) {
	tc, err := ep.tlsConfig()
	if err != nil {
		return nil, err
	}
	dial := ep.DialTimeout
	if dial == 0 {
		dial = dialTimeout
	}
	h := &host{endpoint: ep, cfg: cfg}
	h.client = &http.Client{
		CheckRedirect: h.redirect,
		Transport: &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: dial, KeepAlive: 30 * time.Second}).DialContext,
			TLSClientConfig:       tc,
			TLSHandshakeTimeout:   max(dial, dialTimeout),
			ResponseHeaderTimeout: cfg.Stall,
			IdleConnTimeout:       time.Minute,
			MaxIdleConnsPerHost:   8,
			ForceAttemptHTTP2:     true,
			ReadBufferSize:        64 << 10,
			// A dead connection of HTTP/2 would take the retries down with it.
			HTTP2:                  &http.HTTP2Config{SendPingTimeout: cfg.Stall / 2, PingTimeout: min(cfg.Stall, pingTimeout)},
			MaxResponseHeaderBytes: maxHeader,
			// Digests and ranges are those of the bytes as stored.
			DisableCompression: true,
		},
	}
	return h, nil
}

// redirect lets blobs come from storage servers, which see neither credentials nor the
// headers configured for this host (CVE-2020-15157).
func (h *host) redirect(req *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return fmt.Errorf("%w: more than %d in a row", errRedirect, maxRedirects)
	}
	first := via[0].URL
	if first.Scheme == "https" && req.URL.Scheme != "https" {
		return fmt.Errorf("%w: from https to http", errRedirect)
	}
	if req.URL.Host != first.Host || req.URL.Scheme != first.Scheme {
		if req.Method == http.MethodPost { // a 307 of a token server repeats the refresh token in its body
			return fmt.Errorf("%w: from the token server to another", errRedirect)
		}
		req.Header.Del("Authorization")
		req.Header.Del("Cookie")
		for k := range h.Header {
			req.Header.Del(k)
		}
	}
	req.Header.Del("Referer") // a signed address is a credential too
	return nil
}

// request is a GET or HEAD below the repository.
type request struct {
	method string
	path   string // "manifests/latest"
	header http.Header
}

// do sends a request, answers one challenge, and returns any answer that is not 401.
func (s *Session) do(ctx context.Context, h *host, r request) (*http.Response, error) {
	kind, _, _ := strings.Cut(r.path, "/")
	scope := "repository:" + s.repo.Path + ":pull"
	u := *h.URL
	u.Path += "/" + s.repo.Path + "/" + r.path
	if !h.owns(s.repo.Host) {
		// So that a mirror of several registries knows which one is meant.
		u.RawQuery = url.Values{"ns": {s.repo.Host}}.Encode()
	}
	for first := true; ; first = false {
		req, err := http.NewRequestWithContext(ctx, r.method, u.String(), nil)
		if err != nil {
			return nil, fmt.Errorf("make request: %w", err)
		}
		maps.Copy(req.Header, h.Header)
		maps.Copy(req.Header, r.header)
		req.Header.Set("User-Agent", h.cfg.UserAgent)
		used := h.auth.current(kind)
		if used != "" {
			req.Header.Set("Authorization", used)
		}
		resp, err := h.client.Do(req)
		if err != nil {
			return nil, h.transportError(err)
		}
		h.answered()
		if kind != "blobs" { // whose transfer has an eye on it
			resp.Body = limitTime(resp.Body, h.cfg.Stall)
		}
		own := resp.Request.URL.Host == u.Host // not a storage server's words
		if resp.StatusCode != http.StatusUnauthorized || !first || !own {
			return resp, nil
		}
		again, err := h.renew(ctx, attempt{kind, used, scope}, resp)
		if err != nil || !again {
			if err == nil {
				err = h.statusError(resp)
			}
			closeBody(resp)
			return nil, err
		}
		closeBody(resp)
	}
}

// timedBody gives up a body that takes too long in all: those of documents and errors,
// which are small.
type timedBody struct {
	io.ReadCloser
	limit time.Duration
	timer *time.Timer
	late  atomic.Bool
}

func limitTime(body io.ReadCloser, limit time.Duration) *timedBody {
	b := &timedBody{ReadCloser: body, limit: limit}
	b.timer = time.AfterFunc(limit, func() {
		b.late.Store(true)
		_ = body.Close() // ends a Read that waits
	})
	return b
}

// Read implements io.Reader.
func (b *timedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && b.late.Load() {
		err = fmt.Errorf("%w for %v", errStalled, b.limit)
	}
	return n, err
}

// Close implements io.Closer.
func (b *timedBody) Close() error {
	b.timer.Stop()
	return b.ReadCloser.Close()
}

// closeBody reads a little of the rest, so that the connection can be used again.
func closeBody(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, 8<<10)
	_ = resp.Body.Close() // nothing of it is needed
}

package registry

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

var (
	// errUnreachable says that a host gave no answer worth the name: no connection, no
	// progress, a server error.
	errUnreachable = errors.New("unreachable")
	// errSilent says that asking cost time for nothing: no connection, no answer.
	errSilent = errors.New("no answer")
	// errLasting says that a minute will not change it: no such name, a wrong certificate.
	errLasting = errors.New("will not go away by itself")
	// errRedirect says that a host sent us where we do not go.
	errRedirect = fmt.Errorf("redirect refused: %w", errdef.ErrInvalid)
)

// StatusError is an answer other than the one asked for.
type StatusError struct {
	Code       int
	Message    string        // the registry's own words, quoted and cut, without our credentials
	RetryAfter time.Duration // what it asks for
}

func (e *StatusError) Error() string {
	s := fmt.Sprintf("%d %s", e.Code, http.StatusText(e.Code))
	if e.Message != "" {
		s += ": " + e.Message
	}
	return s
}

// Unwrap gives the kind.
func (e *StatusError) Unwrap() error {
	switch {
	case e.Code == http.StatusNotFound:
		return errdef.ErrNotFound
	case e.Code == http.StatusUnauthorized, e.Code == http.StatusForbidden:
		return errdef.ErrDenied
	case e.Code == http.StatusTooManyRequests:
		return errdef.ErrRetry
	case e.Code >= 500:
		return errUnreachable
	}
	return nil
}

// statusError reads a short explanation out of an answer.
func (h *host) statusError(resp *http.Response) error {
	e := &StatusError{Code: resp.StatusCode}
	if e.Code == http.StatusTooManyRequests || e.Code == http.StatusServiceUnavailable {
		e.RetryAfter = retryAfter(resp, time.Now())
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 8<<10))
	if err != nil || len(body) == 0 {
		return e
	}
	var doc struct {
		Errors []struct{ Code, Message string }
	}
	text := string(body)
	if json.Unmarshal(body, &doc) == nil && len(doc.Errors) > 0 {
		text = doc.Errors[0].Code + ": " + doc.Errors[0].Message
	} else if mt := mediaType(resp); strings.Contains(mt, "html") || strings.Contains(mt, "xml") {
		return e // pages say nothing, and storage servers' XML repeats what was signed
	}
	e.Message = quote(h.redact(text))
	return e
}

// quote makes foreign text fit for a message: one line, short, printable.
func quote(s string) string {
	s = strings.TrimSpace(s)
	if len(s) > 200 {
		s = s[:200] + "..."
	}
	return fmt.Sprintf("%q", s)
}

// transportError words a request without an answer, less the query of the address, since
// signed addresses are credentials, and tells how bad it is.
func (h *host) transportError(err error) error {
	at := ""
	if ue, ok := errors.AsType[*url.Error](err); ok {
		if u, e := url.Parse(ue.URL); e == nil {
			at = strings.ToLower(ue.Op) + " " + u.Scheme + "://" + u.Host + ": "
		}
		err = ue.Err
	}
	if errors.Is(err, errRedirect) {
		return fmt.Errorf("%s%w", at, err)
	}
	kinds := []error{errUnreachable}
	oe, isOp := errors.AsType[*net.OpError](err)
	ne, isNet := errors.AsType[net.Error](err)
	if isOp && oe.Op == "dial" || isNet && ne.Timeout() {
		kinds = append(kinds, errSilent)
	}
	_, badCert := errors.AsType[*tls.CertificateVerificationError](err)
	if dns, ok := errors.AsType[*net.DNSError](err); badCert || ok && dns.IsNotFound {
		kinds = append(kinds, errLasting)
	}
	return &transportFailure{h.redact(at + err.Error()), kinds, err}
}

type transportFailure struct {
	text  string
	kinds []error
	err   error
}

func (e *transportFailure) Error() string   { return "unreachable: " + e.text }
func (e *transportFailure) Unwrap() []error { return append(slices.Clone(e.kinds), e.err) }

type hostError struct {
	host *host
	err  error
}

type hostErrors []hostError

// sum names each host with its failure and keeps one kind: what the registry said
// counts more than a host that said nothing.
func (es hostErrors) sum(what string) error {
	all := &allFailed{what: what, lasting: true, silent: true, retryAfter: math.MaxInt64}
	dead, kind := 0, error(nil)
	for _, e := range es {
		all.texts = append(all.texts, e.host.URL.Host+": "+e.err.Error())
		all.lasting = all.lasting && errors.Is(e.err, errLasting)
		all.silent = all.silent && errors.Is(e.err, errSilent)
		after := time.Duration(0)
		if se, ok := errors.AsType[*StatusError](e.err); ok {
			after = se.RetryAfter
		}
		all.retryAfter = min(all.retryAfter, after)
		switch {
		case errors.Is(e.err, errdef.ErrDenied):
			kind = errdef.ErrDenied
		case errors.Is(e.err, errUnreachable):
			dead++
		}
	}
	switch last := es[len(es)-1].err; {
	case dead == len(es), kind == nil && dead > 0 && errors.Is(last, errUnreachable):
		return errdef.WithPrefix(errdef.RegistryUnavailable, all)
	case kind != nil:
		all.kind = kind
	default:
		for _, k := range []error{errdef.ErrNotFound, errdef.ErrInvalid, errdef.ErrRetry} {
			if errors.Is(last, k) {
				all.kind = k
			}
		}
		if all.kind == nil {
			all.kind = last
		}
	}
	return all
}

// allFailed says how each host that was asked failed.
type allFailed struct {
	what  string
	texts []string
	kind  error

	lasting    bool          // each failure will stay
	silent     bool          // nobody answered
	retryAfter time.Duration // what all of them ask for
}

func (e *allFailed) Error() string { return e.what + ": " + strings.Join(e.texts, "; ") }
func (e *allFailed) Unwrap() error { return e.kind }

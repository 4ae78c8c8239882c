package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// errUnreachable says that a host gave no answer worth the name: no connection, no
// progress, a server error.
var errUnreachable = errors.New("unreachable")

// StatusError is an answer other than the one asked for.
type StatusError struct {
	Code    int
	Message string // the registry's own words, quoted and cut
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
func statusError(resp *http.Response) error {
	e := &StatusError{Code: resp.StatusCode}
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
	} else if strings.Contains(resp.Header.Get("Content-Type"), "html") {
		return e
	}
	e.Message = quote(text)
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

// transportError strips the query from the address: signed addresses are credentials.
func transportError(err error) error {
	if ue, ok := errors.AsType[*url.Error](err); ok {
		host := ""
		if u, e := url.Parse(ue.URL); e == nil {
			host = u.Scheme + "://" + u.Host
		}
		err = fmt.Errorf("%s %s: %w", strings.ToLower(ue.Op), host, ue.Err)
	}
	return fmt.Errorf("%w: %w", errUnreachable, err)
}

type hostError struct {
	host string
	err  error
}

type hostErrors []hostError

// sum names each host with its failure and keeps one kind: what the registry said
// counts more than a host that said nothing.
func (es hostErrors) sum(what string) error {
	texts := make([]string, len(es))
	dead, kind := 0, error(nil)
	for i, e := range es {
		texts[i] = e.host + ": " + e.err.Error()
		switch {
		case errors.Is(e.err, errdef.ErrDenied):
			kind = errdef.ErrDenied
		case errors.Is(e.err, errUnreachable):
			dead++
		}
	}
	err := &allFailed{what: what, texts: texts}
	switch last := es[len(es)-1].err; {
	case dead == len(es), kind == nil && dead > 0 && errors.Is(last, errUnreachable):
		return errdef.WithPrefix(errdef.RegistryUnavailable, err)
	case kind != nil:
		err.kind = kind
	default:
		for _, k := range []error{errdef.ErrNotFound, errdef.ErrInvalid, errdef.ErrRetry} {
			if errors.Is(last, k) {
				err.kind = k
			}
		}
		if err.kind == nil {
			err.kind = last
		}
	}
	return err
}

type allFailed struct {
	what  string
	texts []string
	kind  error
}

func (e *allFailed) Error() string { return e.what + ": " + strings.Join(e.texts, "; ") }
func (e *allFailed) Unwrap() error { return e.kind }

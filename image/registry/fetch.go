package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cri-runtime/cri-runtime/image/content"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// acceptable are the media types asked for. Schema 1 is among them on purpose nowhere:
// a registry that has nothing else says so by 404 or sends it anyway.
var acceptable = strings.Join([]string{
	"application/vnd.oci.image.index.v1+json",
	"application/vnd.docker.distribution.manifest.list.v2+json",
	"application/vnd.oci.image.manifest.v1+json",
	"application/vnd.docker.distribution.manifest.v2+json",
}, ", ")

var errStalled = errors.New("connection stands still")

// Manifest fetches a manifest or index by tag or digest. What is asked for by digest is
// verified.
func (s *Session) Manifest(ctx context.Context, ref string) (Document, error) {
	q := ask{what: "get manifest " + s.name(ref), need: canResolve}
	if strings.Contains(ref, ":") { // a digest has one, a tag cannot
		q.need, q.digest = canPull, digest.Digest(ref)
	}
	var doc Document
	err := s.each(ctx, q, func(h *host) error {
		resp, err := s.do(ctx, h, request{http.MethodGet, "manifests/" + ref, http.Header{"Accept": {acceptable}}})
		if err != nil {
			return err
		}
		defer closeBody(resp)
		if resp.StatusCode != http.StatusOK {
			return statusError(resp)
		}
		doc.MediaType = mediaType(resp)
		doc.Body, err = s.readAll(ctx, resp)
		if err == nil && q.digest != "" {
			err = content.Check(doc.Body, q.digest)
		}
		return err
	})
	return doc, err
}

// Digest asks what a tag stands for, without transferring it: registries with a quota
// count only transfers. It is an answer from the registry, verified by nothing.
func (s *Session) Digest(ctx context.Context, tag string) (digest.Digest, error) {
	var d digest.Digest
	err := s.each(ctx, ask{what: "resolve " + s.name(tag), need: canResolve}, func(h *host) error {
		resp, err := s.do(ctx, h, request{http.MethodHead, "manifests/" + tag, http.Header{"Accept": {acceptable}}})
		if err != nil {
			return err
		}
		defer closeBody(resp)
		if resp.StatusCode != http.StatusOK {
			return statusError(resp)
		}
		d = digest.Digest(resp.Header.Get("Docker-Content-Digest"))
		if d.Validate() != nil {
			return fmt.Errorf("answer without digest: %w", errdef.ErrInvalid)
		}
		return nil
	})
	return d, err
}

// name writes a tag or digest of the repository as people do.
func (s *Session) name(ref string) string {
	sep := ":"
	if strings.Contains(ref, ":") {
		sep = "@"
	}
	return s.repo.Host + "/" + s.repo.Path + sep + ref
}

func mediaType(resp *http.Response) string {
	mt, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil {
		return ""
	}
	return mt
}

// readAll reads a document with the same patience as a blob.
func (s *Session) readAll(ctx context.Context, resp *http.Response) ([]byte, error) {
	t := time.AfterFunc(s.cfg.Stall, func() { _ = resp.Body.Close() })
	defer t.Stop()
	data, err := readBounded(resp.Body, MaxDocument)
	if err != nil && ctx.Err() != nil {
		return nil, fmt.Errorf("read answer: %w", context.Cause(ctx))
	}
	return data, err
}

// Blob opens a blob of a known size. The reader goes on where a connection broke off,
// at the next host if there is one, and refuses answers of another length; what it
// reads is not verified. It belongs to one goroutine, which closes it.
func (s *Session) Blob(ctx context.Context, d digest.Digest, size int64) *Blob {
	return &Blob{ctx: ctx, s: s, digest: d, size: size, observer: unobserved{}}
}

// Observe sets who is told how the transfer goes, before the first Read; nil is nobody.
func (b *Blob) Observe(o Observer) {
	if o != nil {
		b.observer = o
	}
}

// Mismatched says that what was read does not match the digest. The host that served it,
// or the beginning of it, is noted and not asked for it again in this session; the result
// tells its name, and whether there is another host to ask.
func (b *Blob) Mismatched() (host string, more bool) {
	if b.first == nil {
		return "", false
	}
	b.s.lied(b.ctx, b.first, b.digest)
	return b.first.URL.Host, len(b.s.candidates(b.ask())) > 0
}

func (b *Blob) ask() ask {
	return ask{what: "get blob " + b.s.name(b.digest.String()), need: canPull, digest: b.digest}
}

// Blob is a transfer.
type Blob struct {
	ctx    context.Context //nolint:containedctx // of one transfer: a Reader has no other place for it
	s      *Session
	digest digest.Digest
	size   int64

	observer Observer

	off   int64
	fails int   // since the last progress
	host  *host // of the present or last connection
	first *host // of the first byte
	body  io.ReadCloser
	stop  context.CancelCauseFunc
	conn  context.Context //nolint:containedctx // of the present connection
	watch *time.Timer
	err   error
}

// Read implements io.Reader.
func (b *Blob) Read(p []byte) (int, error) {
	for b.err == nil {
		if b.body == nil {
			if b.off == b.size {
				b.err = io.EOF
				break
			}
			if err := b.connect(); err != nil {
				b.retry(err, false)
				continue
			}
		}
		n, err := b.read(p)
		if n > 0 && b.first == nil {
			b.first = b.host
		}
		if b.off += int64(n); b.off > b.size {
			b.err = fmt.Errorf("blob %s is longer than the %d bytes of its descriptor: %w", b.digest, b.size, content.ErrMismatch)
			break
		}
		if n > 0 {
			b.fails = 0
			b.observer.Bytes(int64(n), false)
		}
		if err != nil {
			b.disconnect()
			if !errors.Is(err, io.EOF) || b.off < b.size {
				b.retry(err, true)
			}
		}
		if n > 0 {
			return n, nil
		}
	}
	b.disconnect()
	return 0, b.err
}

// read waits for bytes no longer than the stall time.
func (b *Blob) read(p []byte) (int, error) {
	b.watch.Reset(b.s.cfg.Stall)
	n, err := b.body.Read(p)
	b.watch.Stop()
	if err != nil && errors.Is(context.Cause(b.conn), errStalled) {
		err = fmt.Errorf("%w for %v", errStalled, b.s.cfg.Stall)
	}
	return n, err
}

// retry waits before the next attempt, or gives up. A connection that broke off counts
// as unreachable; an answer of another kind is final.
func (b *Blob) retry(cause error, broke bool) {
	if b.ctx.Err() != nil {
		b.err = fmt.Errorf("get blob %s: %w", b.digest, context.Cause(b.ctx))
		return
	}
	if broke {
		if errors.Is(cause, io.EOF) {
			cause = io.ErrUnexpectedEOF
		}
		b.host.failed(cause)
		cause = errdef.WithPrefix(errdef.RegistryUnavailable,
			fmt.Errorf("get blob %s: %s: %w after %d of %d bytes", b.digest, b.host.URL.Host, cause, b.off, b.size))
	}
	if b.fails++; b.fails >= b.s.cfg.Attempts || !broke && !transient(cause) {
		b.err = cause
		return
	}
	wait := b.s.cfg.Backoff << (b.fails - 1)
	b.observer.Waiting(cause.Error(), time.Now().Add(wait))
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
	case <-b.ctx.Done():
	}
}

func transient(err error) bool {
	_, ok := errors.AsType[*errdef.Prefixed](err)
	return ok || errors.Is(err, errdef.ErrRetry)
}

func (b *Blob) connect() error {
	return b.s.each(b.ctx, b.ask(), func(h *host) error {
		b.conn, b.stop = context.WithCancelCause(b.ctx)
		stop := b.stop
		b.watch = time.AfterFunc(b.s.cfg.Stall, func() { stop(errStalled) })
		hdr := http.Header{}
		if b.off > 0 && h.ranges() {
			hdr.Set("Range", fmt.Sprintf("bytes=%d-", b.off))
		}
		r := request{http.MethodGet, "blobs/" + b.digest.String(), hdr}
		resp, err := b.s.do(b.conn, h, r)
		if err == nil && resp.StatusCode == http.StatusRequestedRangeNotSatisfiable && b.off > 0 {
			// Some registries know no open ranges: take it all and skip.
			closeBody(resp)
			h.refuseRanges()
			r.header = nil
			resp, err = b.s.do(b.conn, h, r) //nolint:bodyclose // disconnect closes b.body
		}
		if err == nil {
			b.body, b.host = resp.Body, h
			err = b.accept(resp)
		}
		b.watch.Stop()
		if err != nil {
			b.disconnect()
			return err
		}
		b.observer.Host(h.URL.Host)
		return nil
	})
}

func (h *host) ranges() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !h.noRange
}

func (h *host) refuseRanges() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.noRange = true
}

// accept checks that the answer continues where we are, and skips what we have.
func (b *Blob) accept(resp *http.Response) error {
	skip := int64(0)
	switch {
	case resp.StatusCode == http.StatusPartialContent && b.off > 0:
		want := fmt.Sprintf("bytes %d-%d/", b.off, b.size-1)
		if got := resp.Header.Get("Content-Range"); !strings.HasPrefix(got, want) {
			return fmt.Errorf("answer covers %s, want %s: %w", quote(got), want, errdef.ErrInvalid)
		}
	case resp.StatusCode == http.StatusOK:
		skip = b.off // a server without ranges
	default:
		return statusError(resp)
	}
	if n := resp.ContentLength; n >= 0 && n != b.size-b.off+skip {
		return fmt.Errorf("answer has %d bytes, the descriptor says %d: %w", n, b.size-b.off+skip, errdef.ErrInvalid)
	}
	buf := make([]byte, 32<<10)
	for skip > 0 {
		n, err := b.read(buf[:min(skip, int64(len(buf)))])
		if skip -= int64(n); err != nil && skip > 0 {
			return fmt.Errorf("skip what is there: %w: %w", errUnreachable, err)
		}
	}
	return nil
}

func (b *Blob) disconnect() {
	if b.stop != nil {
		b.watch.Stop()
		b.stop(nil)
		b.stop = nil
	}
	if b.body != nil {
		_ = b.body.Close() // the transfer is over, well or not
		b.body = nil
	}
}

// Close ends the transfer.
func (b *Blob) Close() error {
	b.disconnect()
	if b.err == nil {
		b.err = errors.New("blob is closed")
	}
	return nil
}

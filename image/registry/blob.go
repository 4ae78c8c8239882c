package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cri-runtime/cri-runtime/image/content"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// Blob opens a blob of a known size. The reader goes on where a connection broke off,
// stood still or crept, at the next host if there is one, and begins with what an earlier
// transfer left. It hands on size bytes at most,
// whatever comes; what it reads is not verified. It belongs to one goroutine, which
// closes it.
func (s *Session) Blob(ctx context.Context, d digest.Digest, size int64) *Blob {
	return &Blob{ctx: ctx, s: s, digest: d, size: size, observer: unobserved{}}
}

// Observe sets who is told how the transfer goes, before the first Read; nil is nobody.
func (b *Blob) Observe(o Observer) {
	if o != nil {
		b.observer = o
	}
}

// Resumed tells whether bytes of an earlier transfer were handed on, by a transfer that
// has not failed.
func (b *Blob) Resumed() bool { return b.resumed && (b.err == nil || errors.Is(b.err, io.EOF)) }

// Blob is a transfer.
type Blob struct {
	ctx    context.Context //nolint:containedctx // of one transfer: a Reader has no other place for it
	s      *Session
	digest digest.Digest
	size   int64

	observer Observer
	partial  *content.Partial
	kept     [2]int64 // the bytes in partial when the transfer began: from, to
	began    time.Time
	resumed  bool

	off   int64 // bytes handed on
	end   int64 // of what the present connection was asked for
	tries attempts
	hosts []*host // that served bytes of it
	host  *host   // of the present or last connection
	body  io.ReadCloser
	stop  context.CancelCauseFunc
	conn  context.Context //nolint:containedctx // of the present connection
	watch *time.Timer
	pace  pace
	err   error
}

// Read implements io.Reader.
func (b *Blob) Read(p []byte) (int, error) {
	if b.began.IsZero() {
		b.began = time.Now()
		b.partial = b.s.cfg.Partials.Open(b.digest, b.size)
		b.kept[0], b.kept[1] = b.partial.Kept()
	}
	for b.err == nil {
		if b.off == b.size {
			b.err = io.EOF
			break
		}
		if len(p) == 0 {
			return 0, nil
		}
		p = p[:min(int64(len(p)), b.size-b.off)]
		if n := b.resume(p); n > 0 {
			return n, nil
		}
		if b.body == nil {
			if err := b.connect(); err != nil {
				b.again(err)
				continue
			}
		}
		n, err := b.read(p[:min(int64(len(p)), b.end-b.off)])
		b.handOn(p[:n])
		if b.off == b.end || err != nil {
			b.disconnect()
		}
		if b.off < b.end && err != nil {
			b.again(b.broke(err))
		}
		if n > 0 {
			return n, nil
		}
	}
	b.disconnect()
	return 0, b.err
}

// resume reads what an earlier transfer left. A file that cannot be read is done without.
func (b *Blob) resume(p []byte) int {
	if b.body != nil || b.off < b.kept[0] || b.off >= b.kept[1] {
		return 0
	}
	n, err := b.partial.ReadAt(p[:min(int64(len(p)), b.kept[1]-b.off)], b.off)
	if n > 0 {
		b.resumed = true
		b.off += int64(n)
		b.observer.Bytes(int64(n), true)
	} else if err != nil {
		b.kept = [2]int64{}
		b.partial.Drop()
	}
	return n
}

func (b *Blob) handOn(p []byte) {
	if len(p) == 0 {
		return
	}
	if !slices.Contains(b.hosts, b.host) {
		b.hosts = append(b.hosts, b.host)
	}
	if b.kept[1] > 0 || time.Since(b.began) > b.s.cfg.KeepAfter {
		b.partial.Append(p, b.off)
	}
	b.off += int64(len(p))
	b.tries.progress(int64(len(p)))
	b.observer.Bytes(int64(len(p)), false)
	if b.off == b.size {
		b.s.client.memory.well(b.host.address(), slow)
	}
}

// read waits for bytes no longer than the stall time, and for a crawl no longer either.
func (b *Blob) read(p []byte) (int, error) {
	b.watch.Reset(b.s.cfg.Stall)
	start := time.Now()
	n, err := b.body.Read(p)
	waited := time.Since(start)
	b.watch.Stop()
	switch {
	case err != nil && errors.Is(context.Cause(b.conn), errStalled):
		err = fmt.Errorf("%w for %v", errStalled, b.s.cfg.Stall)
	case err == nil && b.pace.slow(int64(n), waited, b.s.cfg):
		err = fmt.Errorf("%w: less than %d bytes/s for %v", errCrawls, b.s.cfg.MinRate, b.s.cfg.Stall)
	}
	return n, err
}

// broke words the end of a connection in the middle of the body.
func (b *Blob) broke(cause error) error {
	if errors.Is(cause, io.EOF) {
		cause = io.ErrUnexpectedEOF
	}
	if b.ctx.Err() != nil {
		return cause
	}
	b.host.failed(cause)
	if errors.Is(cause, errStalled) || errors.Is(cause, errCrawls) {
		b.s.client.memory.troubled(b.host.address(), slow, b.s.cfg.Stall)
	}
	return hostErrors{{b.host, fmt.Errorf("%w: %w after %d of %d bytes", errUnreachable, cause, b.off, b.size)}}.sum(b.ask().what)
}

// again waits before the next attempt, or gives up.
func (b *Blob) again(cause error) {
	if b.ctx.Err() != nil {
		b.err = fmt.Errorf("get blob %s: %w", b.digest, context.Cause(b.ctx))
		return
	}
	b.err = b.tries.again(b.ctx, b.s, b.observer, cause)
}

func (b *Blob) ask() ask {
	return ask{what: "get blob " + b.s.name(b.digest.String()), need: canPull, digest: b.digest}
}

func (b *Blob) connect() error {
	return b.s.each(b.ctx, b.ask(), func(h *host) error {
		b.conn, b.stop = context.WithCancelCause(b.ctx)
		stop := b.stop
		b.watch = time.AfterFunc(b.s.cfg.Stall, func() { stop(errStalled) })
		b.pace = pace{}
		err := b.open(h)
		b.watch.Stop()
		if err != nil {
			b.disconnect()
			return err
		}
		b.observer.Host(h.URL.Host)
		return nil
	})
}

// open asks a host for the rest. One that serves ranges wrongly, or knows no open ones,
// is asked for all of it at once.
func (b *Blob) open(h *host) error {
	for {
		hdr := http.Header{}
		switch {
		case !h.ranges():
		case b.off < b.kept[0]:
			hdr.Set("Range", fmt.Sprintf("bytes=%d-%d", b.off, b.kept[0]-1))
		case b.off > 0:
			hdr.Set("Range", fmt.Sprintf("bytes=%d-", b.off))
		}
		resp, err := b.s.do(b.conn, h, request{http.MethodGet, "blobs/" + b.digest.String(), hdr})
		if err != nil {
			if errors.Is(context.Cause(b.conn), errStalled) {
				err = fmt.Errorf("%w: %w for %v", errUnreachable, errSilent, b.s.cfg.Stall)
			}
			return err
		}
		b.body, b.host = resp.Body, h
		if err = b.accept(resp); !errors.Is(err, errRange) || len(hdr) == 0 {
			return err
		}
		closeBody(resp)
		h.refuseRanges()
	}
}

var errRange = fmt.Errorf("range not served as asked: %w", errdef.ErrInvalid)

// accept checks that the answer continues where we are, and skips what we have.
func (b *Blob) accept(resp *http.Response) error {
	from, n := int64(0), b.size
	b.end = b.size
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusPartialContent:
		if b.off < b.kept[0] {
			b.end = b.kept[0]
		}
		var err error
		if from, n, err = contentRange(resp.Header.Get("Content-Range"), [2]int64{b.off, b.end}, b.size); err != nil {
			return err
		}
	case http.StatusRequestedRangeNotSatisfiable:
		return errRange
	default:
		return b.host.statusError(resp)
	}
	if err := genuine(resp); err != nil {
		return err
	}
	if got := resp.ContentLength; got >= 0 && got != n {
		return fmt.Errorf("answer has %d bytes, want the %d of the descriptor: %w", got, n, errdef.ErrInvalid)
	}
	buf := make([]byte, 32<<10)
	for from < b.off { // a server without ranges
		n, err := b.read(buf[:min(b.off-from, int64(len(buf)))])
		if from += int64(n); err != nil && from < b.off {
			return fmt.Errorf("skip what is here: %w: %w", errUnreachable, err)
		}
	}
	return nil
}

// contentRange reads "bytes a-b/size". The answer may end before what was asked for.
func contentRange(s string, want [2]int64, size int64) (from, n int64, err error) {
	var last int64
	var total string
	if _, e := fmt.Sscanf(s, "bytes %d-%d/%s", &from, &last, &total); e != nil || from != want[0] || last < from || last >= want[1] ||
		total != "*" && total != fmt.Sprint(size) {
		return 0, 0, fmt.Errorf("%w: answer covers %s, want bytes %d-%d/%d", errRange, quote(strings.TrimSpace(s)), want[0], want[1]-1, size)
	}
	return from, last - from + 1, nil
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

// Verified says that all of the blob is here and what its digest says: nothing of it
// need be kept.
func (b *Blob) Verified() { b.partial.Drop() }

// Mismatched says that what was read does not match the digest; nothing of it is kept.
// The result tells whose fault it was, and whether to read all of it again. A host that
// served all of it is noted and asked last of all for it; when bytes of several hosts or
// of an earlier transfer were mixed, the next transfer tells more.
func (b *Blob) Mismatched() (who string, more bool) {
	b.partial.Drop()
	if b.resumed {
		return "an earlier transfer", true
	}
	return b.s.mismatch(b.ctx, b.ask(), b.hosts)
}

// NoSpace says that the disk is full: all partial blobs go, for others need the space.
func (b *Blob) NoSpace() { b.s.cfg.Partials.Shed() }

// Close ends the transfer. What came is kept if the transfer was broken off, for then the
// rest may be had another time.
func (b *Blob) Close() error {
	b.disconnect()
	if b.ctx.Err() != nil || b.err != nil && !errors.Is(b.err, io.EOF) {
		b.partial.Close()
	} else {
		b.partial.Drop()
	}
	if b.err == nil {
		b.err = errors.New("blob is closed")
	}
	return nil
}

package content

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// partialBuffer collects small reads: a system call for each would cost more than a copy.
const partialBuffer = 128 << 10

// holeAlign is the largest block of any filesystem.
const holeAlign = 64 << 10

// PartialLimits bound what broken transfers leave on disk. Zero values mean the defaults.
type PartialLimits struct {
	MinBlob  int64         // smaller blobs are cheaper to fetch again; 1 MiB
	MaxBytes int64         // of all files, those being written counted at their full size; 16 GiB
	MaxAge   time.Duration // since the last byte came; 24 h
}

// Partials is a directory of the beginnings of blobs, one file for each digest. Nothing
// in it is trusted: who reads a beginning hashes it like any other byte, so that nothing
// has to be made durable either. It is a convenience that never makes a transfer fail;
// a nil Partials keeps nothing.
type Partials struct {
	dir string
	lim PartialLimits

	mu     sync.Mutex
	busy   map[string]*Partial // by file name
	aging  *time.Timer         // to when the oldest file has to go
	closed bool
}

var partialName = regexp.MustCompile(`^(sha256|sha512)-[0-9a-f]{64,128}$`)

// OpenPartials opens or makes dir and removes what is beyond the limits.
func OpenPartials(dir string, lim PartialLimits) (*Partials, error) {
	lim.MinBlob = cmp.Or(lim.MinBlob, 1<<20)
	lim.MaxBytes = cmp.Or(lim.MaxBytes, 16<<30)
	lim.MaxAge = cmp.Or(lim.MaxAge, 24*time.Hour)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory of partial blobs: %w", err)
	}
	p := &Partials{dir: dir, lim: lim, busy: map[string]*Partial{}}
	p.mu.Lock()
	p.aging = time.AfterFunc(lim.MaxAge, p.expire)
	defer p.mu.Unlock()
	p.sweep(0)
	return p, nil
}

// Close ends the watch over the files' age. Files stay for the next OpenPartials.
func (p *Partials) Close() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.aging.Stop()
}

func (p *Partials) expire() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.sweep(0)
	}
}

// Open gives the file of a blob, to one transfer at a time. It is nil, which keeps
// nothing and can be used like any other, for a blob that is small, too large for the
// limits or written by another transfer, and when the disk does not let us.
func (p *Partials) Open(d digest.Digest, size int64) *Partial {
	if p == nil || d.Validate() != nil || size < p.lim.MinBlob {
		return nil
	}
	name := d.Algorithm().String() + "-" + d.Encoded()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.busy[name] != nil || !partialName.MatchString(name) {
		return nil
	}
	if !p.sweep(size, name) {
		return nil
	}
	f, err := os.OpenFile(filepath.Join(p.dir, name), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil
	}
	// Another process that has it, such as a daemon that is still ending, goes on alone.
	fi, err := f.Stat()
	if err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil || !fi.Mode().IsRegular() || fi.Size() > size {
		_ = f.Close() // nothing was written
		return nil
	}
	t := &Partial{all: p, name: name, f: f, n: fi.Size(), size: size}
	if at, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA); err == nil {
		t.start = at
	}
	p.busy[name] = t
	return t
}

// Shed gives back all the space, that of files being written too, and tells how much. A
// disk that is full needs it more.
func (p *Partials) Shed() (freed int64) {
	if p == nil {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.files() {
		if t := p.busy[f.name]; t != nil {
			t.shed.Store(true) // its owner stops writing, and drops it at the end
			if err := os.Truncate(filepath.Join(p.dir, f.name), 0); err != nil {
				continue
			}
		} else if p.remove(f.name) != nil {
			continue
		}
		freed += f.bytes
	}
	return freed
}

type partialFile struct {
	name  string
	bytes int64
	when  time.Time
}

// files lists what is there, oldest first. The lock is held.
func (p *Partials) files() []partialFile {
	es, err := os.ReadDir(p.dir)
	if err != nil {
		return nil
	}
	var fs []partialFile
	for _, e := range es {
		fi, err := e.Info()
		if err != nil || !fi.Mode().IsRegular() || !partialName.MatchString(e.Name()) {
			continue
		}
		fs = append(fs, partialFile{e.Name(), fi.Size(), fi.ModTime()})
	}
	slices.SortFunc(fs, func(a, b partialFile) int { return a.when.Compare(b.when) })
	return fs
}

// sweep removes what is too old, and the oldest until there is room for need bytes. It
// spares what is being written and the named files, and reports whether there is room.
// The lock is held.
func (p *Partials) sweep(need int64, spare ...string) bool {
	total, idle := need, p.files()
	for _, t := range p.busy {
		total += t.size
	}
	idle = slices.DeleteFunc(idle, func(f partialFile) bool { return p.busy[f.name] != nil || slices.Contains(spare, f.name) })
	for _, f := range idle {
		total += f.bytes
	}
	oldest := time.Duration(-1)
	for _, f := range idle {
		age := time.Since(f.when)
		if total > p.lim.MaxBytes || age >= p.lim.MaxAge {
			if p.remove(f.name) == nil {
				total -= f.bytes
				continue
			}
		}
		oldest = max(oldest, age)
	}
	p.aging.Stop()
	if oldest >= 0 && !p.closed { // a file goes in time though nobody pulls
		p.aging.Reset(max(p.lim.MaxAge-oldest, time.Second))
	}
	return total <= p.lim.MaxBytes
}

func (p *Partials) remove(name string) error {
	return ignoreGone(os.Remove(filepath.Join(p.dir, name)))
}

// A Partial is the beginning of one blob on disk, less what came before it was worth
// keeping, which is a hole. It belongs to one goroutine, which calls Drop or Close at the
// end. A nil Partial keeps nothing.
type Partial struct {
	all  *Partials
	name string
	f    *os.File // nil when given up
	size int64    // of the whole blob

	start, n int64  // of the bytes in the file
	buf      []byte // follows these
	shed     atomic.Bool
}

// Kept tells which bytes of the blob are there: from start up to end.
func (t *Partial) Kept() (start, end int64) {
	if t == nil || t.f == nil || t.shed.Load() {
		return 0, 0
	}
	return t.start, t.n + int64(len(t.buf))
}

// ReadAt implements io.ReaderAt for what was there when the file was opened.
func (t *Partial) ReadAt(p []byte, off int64) (int, error) {
	if t == nil || t.f == nil || t.shed.Load() {
		return 0, fs.ErrClosed
	}
	return io.NewSectionReader(t.f, 0, t.n).ReadAt(p, off)
}

// Append adds bytes that follow the first off of the blob. The first to be kept may come
// from anywhere in it; those that do not follow what is there are not kept. A disk that
// takes no more ends the keeping: what there is goes, for the space is needed elsewhere.
func (t *Partial) Append(p []byte, off int64) {
	if t == nil || t.f == nil || off+int64(len(p)) > t.size {
		return
	}
	if t.shed.Load() {
		t.Drop()
		return
	}
	if t.n == 0 && len(t.buf) == 0 {
		// A filesystem tells holes from data in whole blocks.
		skip := min((holeAlign-off%holeAlign)%holeAlign, int64(len(p)))
		if p, off = p[skip:], off+skip; len(p) > 0 {
			t.start, t.n = off, off
		}
	}
	if off == t.n+int64(len(t.buf)) {
		t.add(p)
	}
}

func (t *Partial) add(p []byte) {
	if len(t.buf) == 0 && len(p) >= partialBuffer/2 {
		t.write(p)
		return
	}
	if t.buf == nil {
		t.buf = make([]byte, 0, partialBuffer)
	}
	for len(p) > 0 && t.f != nil {
		n := min(len(p), cap(t.buf)-len(t.buf))
		t.buf, p = append(t.buf, p[:n]...), p[n:]
		if len(t.buf) == cap(t.buf) {
			t.flush()
		}
	}
}

func (t *Partial) flush() {
	if len(t.buf) > 0 {
		t.write(t.buf)
		t.buf = t.buf[:0]
	}
}

func (t *Partial) write(p []byte) {
	n, err := t.f.WriteAt(p, t.n)
	t.n += int64(n)
	if err != nil {
		t.Drop()
	}
}

// Drop removes the file: the blob is complete, or not what its digest says.
func (t *Partial) Drop() {
	if t == nil || t.f == nil {
		return
	}
	f := t.f
	t.f, t.buf = nil, nil
	t.all.mu.Lock()
	delete(t.all.busy, t.name)
	err := t.all.remove(t.name)
	t.all.mu.Unlock()
	// Unlinked first, closed then: pages that were not written back yet never are.
	_ = errors.Join(err, f.Close()) // a file that stays is found by the next sweep
}

// Close leaves the file to the next transfer of the blob. An empty one goes.
func (t *Partial) Close() {
	if t == nil || t.f == nil {
		return
	}
	if !t.shed.Load() {
		t.flush()
	}
	if t.f == nil || t.n == t.start || t.shed.Load() {
		t.Drop()
		return
	}
	t.all.mu.Lock()
	defer t.all.mu.Unlock()
	_ = t.f.Close() // nothing in it is trusted
	t.f, t.buf = nil, nil
	delete(t.all.busy, t.name)
	t.all.sweep(0)
}

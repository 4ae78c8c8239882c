package power

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// The FUSE protocol as far as one file needs it, include/uapi/linux/fuse.h.
const (
	opForget      = 2
	opGetattr     = 3
	opSetattr     = 4
	opOpen        = 14
	opRead        = 15
	opWrite       = 16
	opStatfs      = 17
	opRelease     = 18
	opFsync       = 20
	opFlush       = 25
	opInit        = 26
	opInterrupt   = 36
	opDestroy     = 38
	opBatchForget = 42

	inHeader  = 40
	outHeader = 16
	maxWrite  = 1 << 20
	bigWrites = 1 << 5
	maxPages  = 1 << 22
)

// A cut says which of the writes since the last flush a power cut spares.
type cut int

const (
	none   cut = iota // the write cache is lost
	all               // it was empty
	prefix            // in order, up to some moment
	subset            // any: disks reorder; each write may also be torn at 4 KiB
	cuts
)

func (c cut) String() string { return [...]string{"none", "all", "prefix", "subset"}[c] }

type write struct {
	off  int64
	data []byte
}

// disk is a block device's content, and what of it is safe.
type disk struct {
	file string // where it is mounted: a regular file
	fd   int
	done sync.WaitGroup

	mu      sync.Mutex
	now     []byte
	safe    []byte
	touched map[int64]bool // chunks of safe or pending that were ever written
	pending []write        // since the last flush
	flushes int
}

const chunk = 64 << 10

// newDisk serves a copy of the file image as dir/disk until t ends.
func newDisk(t *testing.T, dir, image string) *disk {
	t.Helper()
	body, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	d := &disk{file: filepath.Join(dir, "disk"), now: body, safe: append([]byte(nil), body...), touched: map[int64]bool{}}
	for off := 0; off < len(body); off += chunk {
		for _, b := range body[off:min(off+chunk, len(body))] {
			if b != 0 {
				d.touched[int64(off/chunk)] = true
				break
			}
		}
	}
	if err := os.WriteFile(d.file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if d.fd, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		t.Fatal("open fuse: ", err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=%o,user_id=0,group_id=0", d.fd, unix.S_IFREG|0o600)
	if err := unix.Mount("power", d.file, "fuse", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		t.Fatal("mount fuse: ", errors.Join(err, unix.Close(d.fd)))
	}
	d.done.Go(func() { d.serve(t) })
	t.Cleanup(func() {
		if err := unix.Unmount(d.file, 0); err != nil {
			t.Error("unmount fuse: ", err)
			_ = unix.Unmount(d.file, unix.MNT_DETACH|unix.MNT_FORCE)
		}
		d.done.Wait()
		unix.Close(d.fd)
	})
	return d
}

// serve answers the kernel until the file is unmounted.
func (d *disk) serve(t *testing.T) {
	buf := make([]byte, maxWrite+4096)
	for {
		n, err := unix.Read(d.fd, buf)
		switch {
		case errors.Is(err, unix.ENODEV):
			return
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOENT):
			continue
		case err != nil || n < inHeader:
			t.Errorf("read from fuse: %d bytes, %v", n, err)
			// Without a server, everybody on the machine who asks for loop devices would hang.
			_ = unix.Unmount(d.file, unix.MNT_FORCE|unix.MNT_DETACH)
			return
		}
		op := binary.LittleEndian.Uint32(buf[4:])
		if op == opForget || op == opBatchForget || op == opInterrupt {
			continue
		}
		reply, errno := d.answer(op, buf[inHeader:n])
		out := binary.LittleEndian.AppendUint32(nil, uint32(outHeader+len(reply)))
		out = binary.LittleEndian.AppendUint32(out, uint32(-int32(errno)))
		out = append(append(out, buf[8:16]...), reply...)
		if _, err := unix.Write(d.fd, out); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
			t.Errorf("answer fuse: %v", err)
		}
	}
}

func (d *disk) answer(op uint32, in []byte) ([]byte, unix.Errno) {
	le := binary.LittleEndian
	switch op {
	case opInit:
		out := make([]byte, 64)
		le.PutUint32(out, 7)
		le.PutUint32(out[4:], 31)
		le.PutUint32(out[8:], le.Uint32(in[8:]))
		le.PutUint32(out[12:], le.Uint32(in[12:])&(bigWrites|maxPages))
		le.PutUint16(out[16:], 64)
		le.PutUint16(out[18:], 48)
		le.PutUint32(out[20:], maxWrite)
		le.PutUint32(out[24:], 1)
		le.PutUint16(out[28:], maxWrite/4096)
		return out, 0
	case opGetattr, opSetattr:
		out := make([]byte, 16+88)
		le.PutUint64(out, 1000)
		le.PutUint64(out[16:], 1)
		le.PutUint64(out[24:], uint64(len(d.now)))
		le.PutUint64(out[32:], uint64(len(d.now)/512))
		le.PutUint32(out[76:], unix.S_IFREG|0o600)
		le.PutUint32(out[80:], 1)
		le.PutUint32(out[96:], 4096)
		return out, 0
	case opOpen:
		return make([]byte, 16), 0
	case opStatfs:
		return make([]byte, 80), 0
	case opRead:
		d.mu.Lock()
		defer d.mu.Unlock()
		off, size := le.Uint64(in[8:]), le.Uint32(in[16:])
		from := min(off, uint64(len(d.now)))
		return append([]byte(nil), d.now[from:min(from+uint64(size), uint64(len(d.now)))]...), 0
	case opWrite:
		return d.write(int64(le.Uint64(in[8:])), in[40:40+le.Uint32(in[16:])])
	case opFsync:
		d.flush()
		return nil, 0
	case opRelease, opFlush, opDestroy:
		return nil, 0
	}
	return nil, unix.ENOSYS
}

func (d *disk) write(off int64, p []byte) ([]byte, unix.Errno) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if off < 0 || off+int64(len(p)) > int64(len(d.now)) {
		return nil, unix.ENOSPC
	}
	copy(d.now[off:], p)
	d.pending = append(d.pending, write{off, append([]byte(nil), p...)})
	for c := off / chunk; c <= (off+int64(len(p))-1)/chunk; c++ {
		d.touched[c] = true
	}
	return binary.LittleEndian.AppendUint64(nil, uint64(len(p))), 0
}

func (d *disk) flush() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range d.pending {
		copy(d.safe[w.off:], w.data)
	}
	d.pending = d.pending[:0]
	d.flushes++
}

// flushed counts the flushes so far.
func (d *disk) flushed() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.flushes
}

// cut writes to path what the disk may hold after a power cut at this moment, and tells
// how many of the writes since the last flush there were.
func (d *disk) cut(t *testing.T, path string, how cut, rng *rand.Rand) (unflushed int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(len(d.now))); err != nil {
		t.Fatal(err)
	}
	put := func(p []byte, off int64) {
		if _, err := f.WriteAt(p, off); err != nil {
			t.Error(err)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for c := range d.touched {
		put(d.safe[c*chunk:min((c+1)*chunk, int64(len(d.safe)))], c*chunk)
	}
	keep := len(d.pending)
	switch how {
	case none:
		keep = 0
	case prefix:
		keep = rng.IntN(keep + 1)
	default:
	}
	for _, w := range d.pending[:keep] {
		if how != subset {
			put(w.data, w.off)
			continue
		}
		for off := 0; off < len(w.data); off += 4096 {
			if rng.IntN(2) == 0 {
				put(w.data[off:min(off+4096, len(w.data))], w.off+int64(off))
			}
		}
	}
	return len(d.pending)
}

// Package netdev reads the counters of the network interfaces of a namespace.
//
// It reads the kernel's table of devices by a descriptor that was opened inside the
// namespace once: a reading is then one call on any thread, which takes no lock of the
// network's configuration. The descriptor keeps the namespace alive, so whoever takes a
// namespace down closes it first. The package starts no goroutine and writes nothing.
package netdev

import (
	"bytes"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/linux/namespace"
)

// An Interface is what went through one network interface since it was made, as seen
// from the namespace that it is in.
type Interface struct {
	Name                                  string
	RxBytes, RxPackets, RxErrors, RxDrops uint64
	TxBytes, TxPackets, TxErrors, TxDrops uint64
}

// A Table is the table of devices of one namespace. It is not safe for concurrent use.
type Table struct {
	fd  int
	buf []byte // as large as the table was
}

// Open opens the table of the namespace that path refers to.
func Open(path string) (*Table, error) {
	t := &Table{buf: make([]byte, 2*line)}
	err := namespace.Do(path, namespace.Net, func() (err error) {
		// Not /proc/self, which is the main thread's.
		for t.fd, err = -1, unix.EINTR; err == unix.EINTR; {
			t.fd, err = unix.Open("/proc/thread-self/net/dev", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open table of network devices of %s: %w", path, err)
	}
	return t, nil
}

// Close closes the table.
func (t *Table) Close() { _ = unix.Close(t.fd) }

const (
	// line is more than the longest line of the table: a name and 16 numbers.
	line = 512
	// page is what the kernel prints at a time, as many lines as there is room for.
	page = 4096
)

// Read lists all interfaces but loopback. Names are taken from last, the former list,
// where they are there; last is not changed.
func (t *Table) Read(last []Interface) ([]Interface, error) {
	n := 0
	for {
		if len(t.buf)-n < line {
			t.buf = append(t.buf, make([]byte, len(t.buf))...)
		}
		room := min(len(t.buf)-n, page)
		got, err := unix.Pread(t.fd, t.buf[n:], int64(n))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read table of network devices: %w", err)
		}
		n += got
		if got <= room-line { // one more would have found room
			break
		}
	}
	return parse(t.buf[:n], last), nil
}

// parse reads the text: two lines of headings, then "name: " and 16 numbers, those of
// what was received first.
func parse(text []byte, last []Interface) []Interface {
	var out []Interface
	for l := range bytes.Lines(text) {
		name, numbers, ok := bytes.Cut(l, []byte{':'})
		name = bytes.TrimSpace(name)
		if !ok || string(name) == "lo" || len(name) == 0 {
			continue
		}
		if out == nil {
			out = make([]Interface, 0, max(len(last), 1))
		}
		i := Interface{Name: known(last, name, len(out))}
		to := [16]*uint64{0: &i.RxBytes, 1: &i.RxPackets, 2: &i.RxErrors, 3: &i.RxDrops, 8: &i.TxBytes, 9: &i.TxPackets, 10: &i.TxErrors, 11: &i.TxDrops}
		k := 0
		for f := range bytes.FieldsSeq(numbers) {
			if k < len(to) && to[k] != nil {
				*to[k] = number(f)
			}
			k++
		}
		out = append(out, i)
	}
	return out
}

// known gives a name that a former list has already.
func known(last []Interface, name []byte, at int) string {
	if at < len(last) && last[at].Name == string(name) {
		return last[at].Name
	}
	return string(name)
}

func number(b []byte) (n uint64) {
	for _, c := range b {
		n = n*10 + uint64(c-'0')
	}
	return n
}

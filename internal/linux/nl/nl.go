// Package nl speaks netlink with as few system calls as there can be: several messages
// in one send, one answer to all of them, no poller and no large buffers.
//
// It knows how messages are laid out, not what they mean. The kernel has worked a
// message off when the send returns (netlink_unicast_kernel), so reading the answer
// does not wait. It starts no goroutine and leaves nothing behind. A Conn belongs to the
// network namespace of the thread that opened it.
package nl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Conn is a socket of one network namespace. Methods may be called concurrently.
type Conn struct {
	fd  atomic.Int32 // -1 when closed
	mu  sync.Mutex   // held for one exchange; guards seq
	seq uint32
}

// What one datagram of an answer takes: an acknowledgement with a text, or a part of a
// dump, which the kernel makes no larger than what was offered before, at most 32 KiB.
const (
	ackSize  = 1 << 10
	dumpSize = 32 << 10
)

// Open makes a socket for a netlink family, such as unix.NETLINK_ROUTE, in the network
// namespace of the calling thread.
func Open(family int) (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, family)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	c := &Conn{}
	c.fd.Store(int32(fd))
	// Errors with a text and without a copy of the request; dumps that heed their
	// filters. All of it is older than our oldest kernel.
	for _, opt := range []int{unix.NETLINK_EXT_ACK, unix.NETLINK_CAP_ACK, unix.NETLINK_GET_STRICT_CHK} {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, opt, 1); err != nil {
			return nil, errors.Join(fmt.Errorf("set up netlink socket: %w", err), c.Close())
		}
	}
	// Only a defect here or in the kernel could leave an answer out; it must not hang a pod.
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}); err != nil {
		return nil, errors.Join(fmt.Errorf("set up netlink socket: %w", err), c.Close())
	}
	return c, nil
}

// Close closes the socket.
func (c *Conn) Close() error {
	// The number will be another file's.
	return unix.Close(int(c.fd.Swap(-1)))
}

// A Batch is messages under construction.
type Batch struct {
	b     []byte
	start []int // of each message
	fine  map[int]unix.Errno
}

// Any stands for every error in Allow.
const Any = unix.Errno(0)

// Allow says that the present message may fail with e.
func (b *Batch) Allow(e unix.Errno) {
	if b.fine == nil {
		b.fine = map[int]unix.Errno{}
	}
	b.fine[len(b.start)-1] = e
}

func (b *Batch) allows(i int, e unix.Errno) bool {
	f, ok := b.fine[i]
	return ok && (f == e || f == Any)
}

// Error says which message of a batch failed.
type Error struct {
	Index int // of the message
	Errno unix.Errno
	Text  string // the kernel's own words, often empty
}

func (e *Error) Error() string {
	if e.Text == "" {
		return e.Errno.Error()
	}
	return e.Errno.Error() + " (" + e.Text + ")"
}

// Unwrap gives the error number.
func (e *Error) Unwrap() error { return e.Errno }

// Msg begins a message with its fixed part, and ends the one before.
func (b *Batch) Msg(typ, flags uint16, fixed []byte) {
	b.end()
	b.start = append(b.start, len(b.b))
	h := [unix.NLMSG_HDRLEN]byte{}
	binary.NativeEndian.PutUint16(h[4:], typ)
	binary.NativeEndian.PutUint16(h[6:], flags|unix.NLM_F_REQUEST)
	b.b = append(append(b.b, h[:]...), fixed...)
}

// Len is how many messages there are.
func (b *Batch) Len() int { return len(b.start) }

func (b *Batch) end() {
	if n := len(b.start); n > 0 {
		binary.NativeEndian.PutUint32(b.b[b.start[n-1]:], uint32(len(b.b)-b.start[n-1]))
		b.pad()
	}
}

func (b *Batch) pad() {
	for len(b.b)%unix.NLMSG_ALIGNTO != 0 {
		b.b = append(b.b, 0)
	}
}

// Bytes adds an attribute.
func (b *Batch) Bytes(typ uint16, v []byte) {
	b.b = binary.NativeEndian.AppendUint16(b.b, uint16(unix.SizeofRtAttr+len(v)))
	b.b = binary.NativeEndian.AppendUint16(b.b, typ)
	b.b = append(b.b, v...)
	b.pad()
}

// String adds a text, ended by a zero byte.
func (b *Batch) String(typ uint16, v string) { b.Bytes(typ, append([]byte(v), 0)) }

// Uint32 adds a number.
func (b *Batch) Uint32(typ uint16, v uint32) { b.Bytes(typ, binary.NativeEndian.AppendUint32(nil, v)) }

// Uint8 adds a small number.
func (b *Batch) Uint8(typ uint16, v uint8) { b.Bytes(typ, []byte{v}) }

// Nest adds an attribute that holds what fill adds.
func (b *Batch) Nest(typ uint16, fill func()) {
	at := len(b.b)
	b.Bytes(typ, nil)
	fill()
	binary.NativeEndian.PutUint16(b.b[at:], uint16(len(b.b)-at))
}

// Raw adds bytes that are no attribute, such as the fixed part of a nested message.
func (b *Batch) Raw(v []byte) {
	b.b = append(b.b, v...)
	b.pad()
}

// Do sends the batch. The kernel works off all messages, also those after one that failed; the first
// failure comes back as an *Error.
func (c *Conn) Do(b *Batch) error {
	if len(b.start) == 0 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	first, err := c.send(b, unix.NLM_F_ACK)
	if err != nil {
		return err
	}
	last := first + uint32(len(b.start)) - 1
	var failed *Error
	var in [ackSize]byte
	for {
		done, err := c.receive(in[:], func(m message) (bool, error) {
			if m.seq-first > last-first || m.typ != unix.NLMSG_ERROR { // of an exchange that was given up
				return false, nil
			}
			if e, i := m.failure(), int(m.seq-first); e != 0 && failed == nil && !b.allows(i, e) {
				failed = &Error{Index: i, Errno: e, Text: m.text()}
			}
			return m.seq == last, nil
		})
		if err != nil {
			return err
		}
		switch {
		case done && failed != nil:
			return failed
		case done:
			return nil
		}
	}
}

// Dump sends one request for a list and calls f with the type and the payload of each
// message of the answer. A list that changed while it was made is an error of unix.EINTR.
func (c *Conn) Dump(b *Batch, f func(typ uint16, payload []byte)) error {
	return c.ask(b, unix.NLM_F_DUMP, make([]byte, dumpSize), f)
}

// Ask sends one request and calls f with what comes before its acknowledgement.
func (c *Conn) Ask(b *Batch, f func(typ uint16, payload []byte)) error {
	return c.ask(b, unix.NLM_F_ACK, make([]byte, ackSize), f)
}

func (c *Conn) ask(b *Batch, flags uint16, in []byte, f func(typ uint16, payload []byte)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	want, err := c.send(b, flags)
	if err != nil {
		return err
	}
	var torn bool
	for {
		done, err := c.receive(in, func(m message) (bool, error) {
			if m.seq != want {
				return false, nil
			}
			torn = torn || m.flags&unix.NLM_F_DUMP_INTR != 0
			if m.typ != unix.NLMSG_DONE && m.typ != unix.NLMSG_ERROR {
				f(m.typ, m.payload)
				return false, nil
			}
			if e := m.failure(); e != 0 {
				return true, &Error{Errno: e, Text: m.text()}
			}
			return true, nil
		})
		if err == nil && done && torn {
			err = unix.EINTR
		}
		if done || err != nil {
			return err
		}
	}
}

// send numbers the messages and sends them; the flags go to the last one.
func (c *Conn) send(b *Batch, flags uint16) (first uint32, err error) {
	b.end()
	first = c.seq + 1
	for i, at := range b.start {
		binary.NativeEndian.PutUint32(b.b[at+8:], first+uint32(i))
	}
	c.seq += uint32(len(b.start))
	at := b.start[len(b.start)-1] + 6
	binary.NativeEndian.PutUint16(b.b[at:], binary.NativeEndian.Uint16(b.b[at:])|flags)
	// The address of a netlink socket's other end is the kernel unless another was set.
	if _, err := unix.Write(int(c.fd.Load()), b.b); err != nil {
		return 0, fmt.Errorf("ask the kernel: %w", err)
	}
	return first, nil
}

// message is one of an answer.
type message struct {
	typ, flags uint16
	seq        uint32
	payload    []byte
}

// failure is the error number that a message of type ERROR or DONE holds.
func (m message) failure() unix.Errno {
	if len(m.payload) < 4 {
		return 0
	}
	return unix.Errno(-int32(binary.NativeEndian.Uint32(m.payload)))
}

// text is the kernel's explanation: attributes behind the error number and the request's header.
func (m message) text() string {
	if m.flags&unix.NLM_F_ACK_TLVS == 0 {
		return ""
	}
	at := 4
	if m.typ == unix.NLMSG_ERROR {
		at += unix.NLMSG_HDRLEN
	}
	if len(m.payload) < at {
		return ""
	}
	text := ""
	Attrs(m.payload[at:], func(typ uint16, v []byte) {
		if typ == unix.NLMSGERR_ATTR_MSG {
			text = unix.ByteSliceToString(v)
		}
	})
	return text
}

// receive reads one datagram and calls f with its messages until f is done.
func (c *Conn) receive(in []byte, f func(message) (bool, error)) (bool, error) {
	k, err := unix.Read(int(c.fd.Load()), in)
	for err == unix.EINTR {
		k, err = unix.Read(int(c.fd.Load()), in)
	}
	if err != nil {
		return false, fmt.Errorf("read the kernel's answer: %w", err)
	}
	for b := in[:k]; len(b) >= unix.NLMSG_HDRLEN; {
		size := binary.NativeEndian.Uint32(b)
		if size < unix.NLMSG_HDRLEN || int(size) > len(b) {
			return false, errors.New("read the kernel's answer: its length is wrong")
		}
		m := message{binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint16(b[6:]), binary.NativeEndian.Uint32(b[8:]), b[unix.NLMSG_HDRLEN:size]}
		if done, err := f(m); done || err != nil {
			return done, err
		}
		b = b[min(len(b), int(size+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1)):]
	}
	return false, nil
}

// typeMask leaves the type of an attribute: two bits beside it are flags (NLA_TYPE_MASK).
const typeMask = 1<<14 - 1

// Attrs calls f with each attribute of b.
func Attrs(b []byte, f func(typ uint16, v []byte)) {
	for len(b) >= unix.SizeofRtAttr {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofRtAttr || size > len(b) {
			return
		}
		f(binary.NativeEndian.Uint16(b[2:])&typeMask, b[unix.SizeofRtAttr:size])
		b = b[min(len(b), (size+unix.RTA_ALIGNTO-1)&^(unix.RTA_ALIGNTO-1)):]
	}
}

// Index finds a link by its name. Unlike a message it takes no lock that the making of links holds.
func (c *Conn) Index(name string) (int, error) {
	r, err := c.ioctl(unix.SIOCGIFINDEX, name)
	return int(int32(binary.NativeEndian.Uint32(r[unix.IFNAMSIZ:]))), err
}

// Flags are a link's IFF_ bits.
func (c *Conn) Flags(name string) (uint16, error) {
	r, err := c.ioctl(unix.SIOCGIFFLAGS, name)
	return binary.NativeEndian.Uint16(r[unix.IFNAMSIZ:]), err
}

// MTU is the largest packet of a link.
func (c *Conn) MTU(name string) (int, error) {
	r, err := c.ioctl(unix.SIOCGIFMTU, name)
	return int(int32(binary.NativeEndian.Uint32(r[unix.IFNAMSIZ:]))), err
}

// MAC is the address of an Ethernet link.
func (c *Conn) MAC(name string) ([6]byte, error) {
	r, err := c.ioctl(unix.SIOCGIFHWADDR, name)
	return [6]byte(r[unix.IFNAMSIZ+2:]), err // behind the address family
}

// ifreq is the kernel's struct of that name, which holds a name and a union.
type ifreq [40]byte

func (c *Conn) ioctl(what uint, name string) (r ifreq, err error) {
	if name == "" || len(name) >= unix.IFNAMSIZ {
		return r, unix.ENODEV
	}
	copy(r[:], name)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(c.fd.Load()), uintptr(what), uintptr(unsafe.Pointer(&r))); e != 0 {
		return r, e
	}
	return r, nil
}

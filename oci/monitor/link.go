package monitor

import (
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/oci/monitor/wire"
)

// link is one connection to a monitor.
type link struct {
	conn *net.UnixConn
	gen  int // which life of the monitor it leads to

	mu  sync.Mutex // held while the packets of one message are written
	buf []byte
	oob []byte
}

// packet is a received message. Its files belong to whoever got it.
type packet struct {
	h     wire.Header
	body  wire.Reader
	files []*os.File
}

// dial connects to the socket in dir. A socket address holds 107 bytes, a state
// directory may be longer: hence the way through /proc.
func dial(dir *os.File) (*link, error) {
	name := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), socketName)
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: name, Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("connect to monitor: %w", err)
	}
	return &link{conn: conn, buf: make([]byte, wire.MaxPacket), oob: make([]byte, unix.CmsgSpace(4*wire.MaxFds))}, nil
}

// sendLimit bounds the time that a monitor may take to read a packet.
const sendLimit = 30 * time.Second

func (l *link) send(h wire.Header, size int, fill func(*wire.Buf), files []*os.File) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.conn.SetWriteDeadline(time.Now().Add(sendLimit)); err != nil {
		return fmt.Errorf("send to monitor: %w", err)
	}
	for len(files) > wire.MaxFds {
		part := wire.Header{Type: wire.Fds, Seq: h.Seq, Extra: wire.MaxFds}
		b := part.Begin(nil)
		if err := l.write(b.B, files[:wire.MaxFds]); err != nil {
			return err
		}
		files = files[wire.MaxFds:]
	}
	b := h.Begin(make([]byte, 0, 256+size))
	if fill != nil {
		fill(&b)
	}
	return l.write(b.B, files)
}

func (l *link) write(b []byte, files []*os.File) error {
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	if len(b) > wire.MaxRequest {
		return fmt.Errorf("send to monitor: packet of %d bytes: %w", len(b), unix.EMSGSIZE)
	}
	if _, _, err := l.conn.WriteMsgUnix(b, oob, nil); err != nil {
		return fmt.Errorf("send to monitor: %w", err)
	}
	return nil
}

// recv reads one packet. Only one goroutine at a time may call it.
func (l *link) recv() (*packet, error) {
	n, on, flags, _, err := l.conn.ReadMsgUnix(l.buf, l.oob)
	if err != nil {
		return nil, fmt.Errorf("read from monitor: %w", err)
	}
	files, err := filesOf(l.oob[:on])
	if err != nil {
		return nil, err
	}
	if n == 0 || flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		closeAll(files...)
		return nil, fmt.Errorf("read from monitor: %d bytes, flags %#x: %w", n, flags, unix.ECONNRESET)
	}
	p := &packet{files: files}
	var ok bool
	if p.h, p.body, ok = wire.Parse(append([]byte(nil), l.buf[:n]...)); !ok || p.h.NumFiles() != len(files) {
		closeAll(files...)
		return nil, fmt.Errorf("read from monitor: malformed packet of %d bytes, %d files", n, len(files))
	}
	return p, nil
}

func filesOf(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("read descriptors from monitor: %w", err)
	}
	var files []*os.File
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			closeAll(files...)
			return nil, fmt.Errorf("read descriptors from monitor: %w", err)
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "from monitor"))
		}
	}
	return files, nil
}

// take returns the file that mask names, which the caller owns from then on.
func (p *packet) take(mask uint32) *os.File {
	if p.h.Files&mask == 0 {
		return nil
	}
	i := wire.Files(p.h.Files & (mask - 1))
	f := p.files[i]
	p.files[i] = nil
	return f
}

// drop closes the files that nobody took.
func (p *packet) drop() { closeAll(p.files...) }

// A parcel collects descriptors in the order of their bits.
type parcel struct {
	mask  uint32
	files []*os.File
}

// add must be called in ascending order of bits; a nil file is left out.
func (p *parcel) add(bit uint32, f *os.File) {
	if f != nil {
		p.mask |= bit
		p.files = append(p.files, f)
	}
}

package runtime

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// console is the socket over which a runtime sends the terminal that it has made.
type console struct {
	dir, path string
	listener  *net.UnixListener
}

// socketPathLimit is the kernel's for a socket's path.
const socketPathLimit = 107

// masterLimit bounds the reading of a terminal: it was sent before the program ended.
const masterLimit = 5 * time.Second

func (c *CLI) listen() (_ *console, err error) {
	dir, err := os.MkdirTemp(filepath.Join(c.Dir, dirTemp), "")
	if err != nil {
		return nil, fmt.Errorf("make console socket: %w", err)
	}
	t := &console{dir: dir, path: filepath.Join(dir, "c")}
	if len(t.path) > socketPathLimit {
		t.close()
		return nil, fmt.Errorf("make console socket: %s is longer than %d bytes; choose a shorter state directory", t.path, socketPathLimit)
	}
	if t.listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: t.path, Net: "unix"}); err != nil {
		t.close()
		return nil, fmt.Errorf("make console socket: %w", err)
	}
	return t, nil
}

func (t *console) close() {
	if t.listener != nil {
		_ = t.listener.Close()
	}
	_ = os.RemoveAll(t.dir)
}

// receive takes the terminal, once the program has ended. It waits in the socket then.
func (t *console) receive() (*os.File, error) {
	deadline := time.Now().Add(masterLimit)
	if err := t.listener.SetDeadline(deadline); err != nil {
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	conn, err := t.listener.AcceptUnix()
	if err != nil {
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetReadDeadline(deadline); err != nil {
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	name, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(name, oob)
	if err != nil {
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return nil, errors.Join(fmt.Errorf("receive terminal: %d control messages", len(messages)), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.Join(fmt.Errorf("receive terminal: %d descriptors", len(fds)), err)
	}
	unix.CloseOnExec(fds[0])
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}

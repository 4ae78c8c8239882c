package main

import (
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/oci/monitor/wire"
)

type wireStats = wire.LogStats

// tmpRecord is no valid id.
const tmpRecord = ".new"

// writeRecord leaves the exit on tmpfs, whole or not at all. Without it, for lack
// of space, the exit is still announced and listed.
func (m *monitor) writeRecord(id string, x *wire.Exit) {
	const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_TRUNC | unix.O_CLOEXEC | unix.O_NOFOLLOW
	fd, err := unix.Openat(exitsFd, tmpRecord, flags, 0o600)
	if err != nil {
		return
	}
	b := x.Record(nil)
	n, err := unix.Write(fd, b)
	closeFd(fd)
	if err == nil && n == len(b) {
		err = unix.Renameat(exitsFd, tmpRecord, exitsFd, id)
	}
	if err != nil || n != len(b) {
		_ = unix.Unlinkat(exitsFd, tmpRecord, 0)
	}
}

func (m *monitor) readRecord(id string) (wire.Exit, bool) {
	fd, err := unix.Openat(exitsFd, id, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return wire.Exit{}, false
	}
	defer closeFd(fd)
	var b [128]byte
	n, e := read(fd, b[:])
	if e != 0 {
		return wire.Exit{}, false
	}
	return wire.ParseRecord(b[:n])
}

func (m *monitor) dropRecord(id string) { _ = unix.Unlinkat(exitsFd, id, 0) }

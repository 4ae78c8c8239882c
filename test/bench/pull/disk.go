package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/test/bench/stage"
)

// diskSize holds what the peers write for the largest image, twice.
const diskSize = 4 << 30

// disk is a loop device on a file that was written once from end to end, so that no
// pull pays for the allocation of its blocks.
type disk struct {
	device *os.File
	point  string // where it is mounted
}

func newDisk(work string) (*disk, error) {
	backing, err := os.OpenFile(filepath.Join(work, "disk"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create disk: %w", err)
	}
	defer backing.Close()
	zeros := make([]byte, 4<<20)
	for range diskSize / len(zeros) {
		if _, err := backing.Write(zeros); err != nil {
			return nil, fmt.Errorf("fill disk: %w", err)
		}
	}
	if err := backing.Sync(); err != nil {
		return nil, fmt.Errorf("fill disk: %w", err)
	}
	d := &disk{point: filepath.Join(work, "mount")}
	if err := os.Mkdir(d.point, 0o711); err != nil {
		return nil, fmt.Errorf("create mount point: %w", err)
	}
	d.device, err = attach(backing)
	return d, err
}

// attach finds a free loop device, which goes when its last user does. It reads and
// writes around the page cache, as a disk does.
func attach(backing *os.File) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("attach disk: %w", err)
	}
	defer control.Close()
	for range 10 {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		name := "/dev/loop" + strconv.Itoa(n)
		if err := unix.Mknod(name, unix.S_IFBLK|0o600, int(unix.Mkdev(7, uint32(n)))); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("make %s: %w", name, err)
		}
		device, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			return nil, fmt.Errorf("attach disk: %w", err)
		}
		config := unix.LoopConfig{Fd: uint32(backing.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO}}
		if err = unix.IoctlLoopConfigure(int(device.Fd()), &config); err == nil {
			return device, nil
		}
		err = errors.Join(fmt.Errorf("attach disk to %s: %w", name, err), device.Close())
		if !errors.Is(err, unix.EBUSY) { // somebody else was faster
			return nil, err
		}
	}
	return nil, errors.New("attach disk: every free loop device was taken by somebody else")
}

// fresh makes an empty file system. Discards would give the blocks of the backing file
// back; the kernel's lazy initialisation would write in the middle of a pull.
func (d *disk) fresh(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", "-E", "nodiscard", d.device.Name())
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make file system: %w: %s", err, bytes.TrimSpace(out))
	}
	if err := unix.Mount(d.device.Name(), d.point, "ext4", 0, "noinit_itable"); err != nil {
		return fmt.Errorf("mount file system: %w", err)
	}
	return nil
}

// drop unmounts it, and what a runtime left mounted on it.
func (d *disk) drop() error { return stage.RemoveMounts(d.point) }

// sync writes everything to the device.
func (d *disk) sync() error {
	f, err := os.Open(d.point)
	if err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	return nil
}

// used are the bytes of the file system that are taken.
func (d *disk) used() (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(d.point, &s); err != nil {
		return 0, fmt.Errorf("stat file system: %w", err)
	}
	return int64(s.Blocks-s.Bfree) * s.Bsize, nil
}

// written are the bytes that the device has been told to write since it was attached.
func (d *disk) written() (int64, error) {
	body, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(d.device.Name()), "stat"))
	if err != nil {
		return 0, fmt.Errorf("read device statistics: %w", err)
	}
	fields := strings.Fields(string(body))
	if len(fields) < 7 {
		return 0, fmt.Errorf("read device statistics: %q has too few fields", body)
	}
	sectors, err := strconv.ParseInt(fields[6], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read device statistics: %w", err)
	}
	return sectors * 512, nil
}

func (d *disk) close() error {
	if d == nil || d.device == nil {
		return nil
	}
	return errors.Join(d.drop(), d.device.Close())
}

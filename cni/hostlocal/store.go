package hostlocal

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// store is the locked directory of one network. It is used through plain system
// calls, of which package os makes two to seven for each: a pod's address is some 20.
type store struct {
	dir, lock int
	local     *sync.Mutex
	made      bool // newFile is there
}

// The names in the directory that are no addresses. newFile exists only under the lock.
const (
	lockFile = "lock"
	lastFile = "last_reserved_ip."
	newFile  = ".reserving"
)

// locks has a lock for each directory in front of the kernel's: goroutines that wait for
// that one would hold a thread each.
var locks sync.Map

// open makes the directory of a network when needed, and takes its lock.
func open(dataDir, network string) (*store, error) {
	s, err := openExisting(dataDir, network)
	if s != nil || err != nil {
		return s, err
	}
	// World-readable like the plugin's: other tools look here.
	if err := os.MkdirAll(dataDir+"/"+network, 0o755); err != nil {
		return nil, fmt.Errorf("make address directory: %w", err)
	}
	s, err = openExisting(dataDir, network)
	if s == nil && err == nil {
		err = fmt.Errorf("open address directory %s/%s: it vanished: %w", dataDir, network, errdef.ErrRetry)
	}
	return s, err
}

// openExisting is open without making anything; nil means that there is no directory.
func openExisting(dataDir, network string) (*store, error) {
	if network == "" || network == "." || network == ".." || strings.ContainsAny(network, "/\x00") {
		return nil, fmt.Errorf("network name %q: %w", network, errdef.ErrInvalid)
	}
	path := dataDir + "/" + network
	local, _ := locks.LoadOrStore(path, &sync.Mutex{})
	s := &store{dir: -1, lock: -1, local: local.(*sync.Mutex)}
	s.local.Lock()
	var err error
	s.dir, err = unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		s.close()
		return nil, nil //nolint:nilnil // documented: nothing to release
	}
	if err == nil {
		s.lock, err = unix.Openat(s.dir, lockFile, unix.O_CREAT|unix.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
	}
	if err == nil {
		err = flock(s.lock)
	}
	if err != nil {
		s.close()
		return nil, fmt.Errorf("lock address directory %s: %w", path, err)
	}
	return s, nil
}

func flock(fd int) error {
	for {
		err := unix.Flock(fd, unix.LOCK_EX)
		if err != unix.EINTR {
			return err
		}
	}
}

// close gives the lock back; the kernel does so with the last descriptor.
func (s *store) close() {
	if s.made {
		_ = unix.Unlinkat(s.dir, newFile, 0)
	}
	for _, fd := range []int{s.lock, s.dir} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
	s.local.Unlock()
}

// reserve takes the wanted address of set, or the next free one after the last taken:
// round robin leaves time for neighbours to forget a released address.
func (s *store) reserve(index int, set rangeSet, owner string, wanted netip.Addr) (netip.Addr, ipRange, error) {
	if wanted.IsValid() {
		i, _ := set.find(wanted)
		if wanted == set[i].gateway {
			return wanted, set[i], fmt.Errorf("requested address %v is the gateway: %w", wanted, errdef.ErrInvalid)
		}
		err := s.create(wanted, owner)
		if errors.Is(err, fs.ErrExist) {
			err = fmt.Errorf("requested address %v is in use: %w", wanted, errdef.ErrExists)
		}
		return wanted, set[i], err
	}
	mark, last, err := s.last(index)
	if err != nil {
		return netip.Addr{}, ipRange{}, err
	}
	defer unix.Close(mark) //nolint:errcheck // what was written is judged by the write
	var (
		got   netip.Addr
		in    ipRange
		taken map[string]bool
		fail  error
	)
	set.from(last, func(ip netip.Addr, r ipRange) bool {
		if taken[ip.String()] {
			return false
		}
		fail = s.create(ip, owner)
		if errors.Is(fail, fs.ErrExist) {
			if taken == nil {
				taken, fail = s.names()
				return fail != nil
			}
			fail = nil
			return false
		}
		got, in = ip, r
		return true
	})
	if fail != nil {
		return netip.Addr{}, ipRange{}, fail
	}
	if !got.IsValid() {
		return got, in, fmt.Errorf("no address left in range set %d (%v - %v): %w", index, set[0].first, set[len(set)-1].last, errdef.ErrExhausted)
	}
	return got, in, remember(mark, last, got)
}

// last opens the file that holds the last address of a range set, and reads it.
func (s *store) last(index int) (fd int, ip netip.Addr, err error) {
	fd, err = unix.Openat(s.dir, lastFile+strconv.Itoa(index), unix.O_CREAT|unix.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return -1, ip, fmt.Errorf("open last address: %w", err)
	}
	var b [64]byte
	n, err := unix.Read(fd, b[:])
	if err != nil {
		return -1, ip, errors.Join(fmt.Errorf("read last address: %w", err), unix.Close(fd))
	}
	// A torn or foreign content only costs the round-robin order.
	ip, _ = netip.ParseAddr(strings.TrimSpace(string(b[:n])))
	return fd, ip, nil
}

// remember overwrites in place: a truncated file would cost a new block for each pod.
func remember(fd int, before, ip netip.Addr) error {
	text := ip.String()
	_, err := unix.Pwrite(fd, []byte(text), 0)
	if err == nil && (!before.IsValid() || len(before.String()) > len(text)) {
		err = unix.Ftruncate(fd, int64(len(text)))
	}
	if err != nil {
		return fmt.Errorf("remember last address: %w", err)
	}
	return nil
}

// create makes the file of an address, complete or not at all: a link to a finished one,
// which the addresses of one request share.
func (s *store) create(ip netip.Addr, owner string) error {
	if !s.made {
		if err := s.prepare(owner); err != nil {
			return fmt.Errorf("write address file: %w", err)
		}
		s.made = true
	}
	if err := unix.Linkat(s.dir, newFile, s.dir, ip.String(), 0); err != nil {
		return fmt.Errorf("reserve %v: %w", ip, err)
	}
	return nil
}

// prepare writes newFile. What a crash left under that name may be an address's file as
// well, so it must not be written to.
func (s *store) prepare(owner string) error {
	const how = unix.O_CREAT | unix.O_EXCL | unix.O_WRONLY | unix.O_CLOEXEC
	fd, err := unix.Openat(s.dir, newFile, how, 0o644)
	if errors.Is(err, unix.EEXIST) {
		if err = unix.Unlinkat(s.dir, newFile, 0); err == nil {
			fd, err = unix.Openat(s.dir, newFile, how, 0o644)
		}
	}
	if err != nil {
		return err
	}
	n, err := unix.Write(fd, []byte(owner))
	if err == nil && n < len(owner) {
		err = unix.ENOSPC
	}
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return errors.Join(err, unix.Unlinkat(s.dir, newFile, 0))
	}
	return nil
}

// read returns an address's owner, without the line's end that hands add.
func (s *store) read(name string) (string, error) {
	fd, err := unix.Openat(s.dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("open address file %s: %w", name, err)
	}
	defer unix.Close(fd) //nolint:errcheck // only read
	var b [1024]byte
	n, err := unix.Read(fd, b[:])
	if err != nil {
		return "", fmt.Errorf("read address file %s: %w", name, err)
	}
	return strings.TrimSpace(string(b[:n])), nil
}

// names lists the taken addresses.
func (s *store) names() (map[string]bool, error) {
	fd, err := unix.Openat(s.dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open address directory: %w", err)
	}
	d := os.NewFile(uintptr(fd), "addresses")
	names, err := d.Readdirnames(-1)
	if err = errors.Join(err, d.Close()); err != nil {
		return nil, fmt.Errorf("list address directory: %w", err)
	}
	taken := make(map[string]bool, len(names))
	for _, n := range names {
		if _, err := netip.ParseAddr(n); err == nil {
			taken[n] = true
		}
	}
	return taken, nil
}

// each calls f with every address and its owner.
func (s *store) each(f func(name, owner string) error) error {
	names, err := s.names()
	if err != nil {
		return err
	}
	for name := range names {
		content, err := s.read(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := f(name, content); err != nil {
			return err
		}
	}
	return nil
}

// owns also recognises files that hold only the container id, which old versions of
// the plugin wrote.
func owns(owner, content string) bool {
	id, _, _ := strings.Cut(owner, "\r\n")
	return content == owner || content == id
}

func (s *store) release(owner string) error {
	return s.each(func(name, content string) error {
		if !owns(owner, content) {
			return nil
		}
		return s.remove(name)
	})
}

// releaseThese is release for known addresses: it does not read the whole directory.
// It returns how many were owner's.
func (s *store) releaseThese(owner string, ips []netip.Addr) (n int, err error) {
	for _, ip := range ips {
		content, err := s.read(ip.String())
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return n, err
		}
		if owns(owner, content) {
			if err := s.remove(ip.String()); err != nil {
				return n, err
			}
			n++
		}
	}
	return n, nil
}

func (s *store) count(owner string) (n int, err error) {
	err = s.each(func(_, content string) error {
		if owns(owner, content) {
			n++
		}
		return nil
	})
	return n, err
}

func (s *store) keepOnly(valid map[string]bool) error {
	ids := map[string]bool{}
	for o := range valid {
		id, _, _ := strings.Cut(o, "\r\n")
		ids[id] = true
	}
	return s.each(func(name, content string) error {
		if valid[content] || ids[content] {
			return nil
		}
		return s.remove(name)
	})
}

func (s *store) remove(name string) error {
	if err := unix.Unlinkat(s.dir, name, 0); err != nil && err != unix.ENOENT {
		return fmt.Errorf("release address %s: %w", name, err)
	}
	return nil
}

package hostlocal

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// store is the locked directory of one network.
type store struct {
	root *os.Root
	lock *os.File
}

// The names in the directory that are no addresses. newFile exists only under the lock.
const (
	lockFile = "lock"
	lastFile = "last_reserved_ip."
	newFile  = ".reserving"
)

// open makes the directory of a network when needed, and takes its lock.
func open(dataDir, network string) (*store, error) {
	if err := checkName(network); err != nil {
		return nil, err
	}
	// World-readable like the plugin's: other tools look here.
	if err := os.MkdirAll(dataDir+"/"+network, 0o755); err != nil {
		return nil, fmt.Errorf("make address directory: %w", err)
	}
	root, err := os.OpenRoot(dataDir + "/" + network)
	if err != nil {
		return nil, fmt.Errorf("open address directory: %w", err)
	}
	f, err := root.OpenFile(lockFile, os.O_CREATE|os.O_RDWR, 0o644)
	if err == nil {
		err = flock(f)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock address directory: %w", err), root.Close())
	}
	return &store{root: root, lock: f}, nil
}

// openExisting is open without making anything; nil means that there is no directory.
func openExisting(dataDir, network string) (*store, error) {
	if err := checkName(network); err != nil {
		return nil, err
	}
	if _, err := os.Stat(dataDir + "/" + network); errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // documented: nothing to release
	}
	return open(dataDir, network)
}

func checkName(network string) error {
	if network == "" || network == "." || network == ".." || strings.ContainsAny(network, "/\x00") {
		return fmt.Errorf("network name %q: %w", network, errdef.ErrInvalid)
	}
	return nil
}

func flock(f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// close gives the lock back; the kernel does so with the last descriptor.
func (s *store) close() {
	_ = s.lock.Close()
	_ = s.root.Close()
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
	last, err := s.last(index)
	if err != nil {
		return netip.Addr{}, ipRange{}, err
	}
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
	return got, in, s.remember(index, got)
}

// remember overwrites in place: a truncated file would cost a new block for each pod.
func (s *store) remember(index int, ip netip.Addr) error {
	f, err := s.root.OpenFile(lastFile+strconv.Itoa(index), os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("remember last address: %w", err)
	}
	b := []byte(ip.String())
	_, err = f.WriteAt(b, 0)
	if st, e := f.Stat(); err == nil && e == nil && st.Size() > int64(len(b)) {
		err = f.Truncate(int64(len(b)))
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("remember last address: %w", err)
	}
	return nil
}

// create makes the file of an address, complete or not at all.
func (s *store) create(ip netip.Addr, owner string) error {
	if err := s.root.WriteFile(newFile, []byte(owner), 0o644); err != nil {
		return fmt.Errorf("write address file: %w", err)
	}
	err := s.root.Link(newFile, ip.String())
	if e := s.root.Remove(newFile); e != nil && err == nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("reserve %v: %w", ip, err)
	}
	return nil
}

func (s *store) last(index int) (netip.Addr, error) {
	b, err := s.root.ReadFile(lastFile + strconv.Itoa(index))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return netip.Addr{}, fmt.Errorf("read last address: %w", err)
	}
	// A torn or foreign content only costs the round-robin order.
	ip, _ := netip.ParseAddr(strings.TrimSpace(string(b)))
	return ip, nil
}

// names lists the taken addresses.
func (s *store) names() (map[string]bool, error) {
	d, err := s.root.Open(".")
	if err != nil {
		return nil, fmt.Errorf("open address directory: %w", err)
	}
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
		b, err := s.root.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read address file: %w", err)
		}
		if err := f(name, strings.TrimSpace(string(b))); err != nil {
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
		b, err := s.root.ReadFile(ip.String())
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return n, fmt.Errorf("read address file: %w", err)
		}
		if owns(owner, strings.TrimSpace(string(b))) {
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
	if err := s.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("release address %s: %w", name, err)
	}
	return nil
}

package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/poll"
)

// trees lists the directories that together hold every process of the group and of
// its exec sessions: the unified one and one of v1, which is the freezer's if it has one.
func (g *Group) trees() (out []member) {
	legacy := -1
	for i, m := range g.members {
		switch {
		case !m.own:
		case m.v2:
			out = append(out, m)
		case legacy < 0 || m.has("freezer"):
			legacy = i
		}
	}
	if legacy >= 0 {
		out = append(out, g.members[legacy])
	}
	return out
}

// Pids lists the processes of the cgroup and of its descendants, sorted. What is
// gone has none.
func (g *Group) Pids() ([]int, error) {
	var all []int
	for _, m := range g.trees() {
		pids, err := pidsBelow(m.path)
		if err != nil {
			return nil, fmt.Errorf("list processes of cgroup %s: %w", g.path, err)
		}
		all = append(all, pids...)
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

func pidsBelow(dir string) (out []int, err error) {
	dirs, err := below(dir)
	if err != nil {
		return nil, err
	}
	for _, d := range dirs {
		list, err := readFields(filepath.Join(d, "cgroup.procs"))
		if errors.Is(err, unix.EOPNOTSUPP) { // a threaded one: its domain lists them
			continue
		}
		if err != nil && !gone(err) {
			return nil, err
		}
		for _, s := range list {
			pid, err := strconv.Atoi(s)
			if err != nil {
				return nil, err
			}
			if pid != 0 { // a process outside our pid namespace
				out = append(out, pid)
			}
		}
	}
	return out, nil
}

// below lists dir and its descendants, parents first; nothing when dir is gone.
func below(dir string) (out []string, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if gone(err) {
				return nil
			}
			return err
		}
		if d.IsDir() {
			out = append(out, path)
		}
		return nil
	})
	return out, err
}

// Kill ends all processes of the cgroup and of its descendants and waits until
// they are gone, or until ctx ends. A process may then still be a zombie.
func (g *Group) Kill(ctx context.Context) error {
	for {
		if m, ok := g.unified(); ok && m.own {
			// One write for the whole tree, which no fork can outrun (5.14).
			err := writeFile(filepath.Join(m.path, "cgroup.kill"), "1")
			if err != nil && !gone(err) {
				return fmt.Errorf("kill cgroup %s: %w", g.path, err)
			}
		}
		// A frozen v1 process does not even die. This also finds those that are in
		// the v1 hierarchies only.
		left, err := g.killV1(ctx)
		if err == nil && !left {
			err = g.waitEmpty(ctx)
			left = err == nil && g.left()
		}
		if err != nil {
			return fmt.Errorf("kill cgroup %s: %w", g.path, g.whatIsLeft(err))
		}
		if !left {
			return nil
		}
	}
}

// left tells whether a fork outran one round of killing.
func (g *Group) left() bool {
	pids, err := g.Pids()
	return err == nil && len(pids) > 0
}

// whatIsLeft names the processes that outlived the time limit, with what they are
// doing: state D is a kernel or storage matter.
func (g *Group) whatIsLeft(err error) error {
	pids, e := g.Pids()
	if e != nil || len(pids) == 0 {
		return err
	}
	var words []string
	for _, pid := range pids[:min(len(pids), 5)] {
		stat, _ := readString("/proc/" + strconv.Itoa(pid) + "/stat")
		state := "?"
		if i := strings.LastIndexByte(stat, ')'); i >= 0 && len(stat) > i+2 {
			state = stat[i+2 : i+3]
		}
		words = append(words, fmt.Sprintf("%d (state %s)", pid, state))
	}
	return fmt.Errorf("%w: %d left: %s", err, len(pids), strings.Join(words, ", "))
}

// killV1 signals every process once and waits for their ends by pidfd. It tells
// whether there was any, because new ones may have come meanwhile.
func (g *Group) killV1(ctx context.Context) (bool, error) {
	var dirs []member
	for _, m := range g.trees() {
		if !m.v2 {
			dirs = append(dirs, m)
		}
	}
	if len(dirs) == 0 {
		return false, nil
	}
	m := dirs[0]
	pids, err := pidsBelow(m.path)
	if err != nil || len(pids) == 0 {
		return false, err
	}
	frozen := m.has("freezer") && writeFile(filepath.Join(m.path, "freezer.state"), "FROZEN") == nil
	if frozen {
		// Frozen or still freezing, nothing forks any more between list and kill.
		pids, err = pidsBelow(m.path)
	}
	fds, e := signalAll(pids)
	err = errors.Join(err, e)
	defer func() {
		for _, f := range fds {
			_ = unix.Close(int(f.Fd))
		}
	}()
	if frozen {
		if e := writeFile(filepath.Join(m.path, "freezer.state"), "THAWED"); e != nil && !gone(e) {
			err = errors.Join(err, e)
		}
	}
	if err != nil {
		return false, err
	}
	return true, waitAll(ctx, fds)
}

// signalAll sends SIGKILL to all of pids and returns descriptors that tell their ends.
func signalAll(pids []int) (fds []unix.PollFd, err error) {
	for _, pid := range pids {
		fd, e := unix.PidfdOpen(pid, 0)
		if e != nil { // gone, or a thread's id in a strange group
			continue
		}
		fds = append(fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
		if e := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); e != nil && !errors.Is(e, unix.ESRCH) {
			err = errors.Join(err, fmt.Errorf("signal process %d: %w", pid, e))
		}
	}
	return fds, err
}

// waitAll waits for the end of every process.
func waitAll(ctx context.Context, fds []unix.PollFd) error {
	left := slices.Clone(fds)
	for len(left) > 0 {
		if err := poll.Wait(ctx, left); err != nil {
			return err
		}
		left = slices.DeleteFunc(left, func(f unix.PollFd) bool { return f.Revents != 0 })
	}
	return nil
}

// waitEmpty waits until the unified directory has no process left.
func (g *Group) waitEmpty(ctx context.Context) error {
	m, ok := g.unified()
	if !ok || !m.own {
		return nil
	}
	return waitEvent(ctx, filepath.Join(m.path, "cgroup.events"), "populated", "0")
}

// waitEvent waits until a flag of cgroup.events has a value; a directory that is
// gone has them all. It also looks again by itself: the kernel delays a notification
// that follows another within 10 ms, and drops it when the directory is removed
// meanwhile, by somebody else who saw it empty. It then wakes nobody.
func waitEvent(ctx context.Context, name, key, want string) error {
	f, err := os.Open(name)
	if err != nil {
		if gone(err) {
			return nil
		}
		return err
	}
	defer func() { _ = f.Close() }()
	buf := make([]byte, 256)
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		// Reading arms the notification; so read first, then wait.
		n, err := unix.Pread(int(f.Fd()), buf, 0)
		if err != nil {
			if gone(err) {
				return nil
			}
			return err
		}
		if field(string(buf[:n]), key) == want {
			return nil
		}
		look, cancel := context.WithTimeout(ctx, wait)
		err = poll.Wait(look, []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}})
		again := look.Err() != nil && ctx.Err() == nil
		cancel()
		if err != nil && !again {
			return err
		}
	}
}

// field finds the value of a key in lines of "key value".
func field(text, key string) string {
	for line := range strings.Lines(text) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), " "); ok && k == key {
			return v
		}
	}
	return ""
}

// Freeze stops all processes and waits until they stand.
func (g *Group) Freeze(ctx context.Context) error { return g.freeze(ctx, true) }

// Thaw lets frozen processes run again.
func (g *Group) Thaw(ctx context.Context) error { return g.freeze(ctx, false) }

func (g *Group) freeze(ctx context.Context, on bool) error {
	m, ok := g.of("freezer")
	if !ok || !m.own {
		m, ok = g.unified()
	}
	var err error
	switch {
	case !ok:
		err = errors.ErrUnsupported
	case m.v2:
		value := map[bool]string{true: "1", false: "0"}[on]
		if err = writeFile(filepath.Join(m.path, "cgroup.freeze"), value); err == nil {
			err = waitEvent(ctx, filepath.Join(m.path, "cgroup.events"), "frozen", value)
		}
	default:
		err = freezeV1(ctx, filepath.Join(m.path, "freezer.state"), map[bool]string{true: "FROZEN", false: "THAWED"}[on])
	}
	if err != nil {
		return fmt.Errorf("freeze (%v) cgroup %s: %w", on, g.path, notFound(err))
	}
	return nil
}

// freezeV1 looks again and again: the v1 freezer notifies nobody. Writing again
// catches processes that were forked while it was freezing.
func freezeV1(ctx context.Context, name, state string) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 20*time.Millisecond) {
		if err := writeFile(name, state); err != nil {
			return err
		}
		now, err := readString(name)
		if err != nil || now == state {
			return err
		}
		if err := poll.Pause(ctx, wait); err != nil {
			// Half frozen is the worst of both.
			return errors.Join(err, writeFile(name, "THAWED"))
		}
	}
}

// Destroy ends all processes of a cgroup and of its descendants, and removes them; see
// Kill and Remove. What is gone already is no error. A cgroup in which nothing is left,
// which is the usual one, costs one call for each hierarchy.
func (h *Host) Destroy(ctx context.Context, p Path) error {
	if err := p.Valid(); err != nil {
		return err
	}
	if h.removeEmpty(p) {
		return nil
	}
	g, err := h.Open(p)
	if errors.Is(err, errdef.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer g.Close()
	if err := g.Kill(ctx); err != nil {
		return err
	}
	return g.Remove(ctx)
}

// removeEmpty removes the cgroup unless something is in it. A process is in all hierarchies,
// so that the first one keeps the others too.
func (h *Host) removeEmpty(p Path) bool {
	for _, x := range h.all() {
		for {
			err := unix.Rmdir(x.dir(p))
			if err == nil || err == unix.ENOENT {
				break
			}
			if err != unix.EINTR {
				return false
			}
		}
	}
	return true
}

// Remove removes the cgroup and its descendants, which must be empty or about to
// be; it waits for the latter until ctx ends. What is gone already is no error.
func (g *Group) Remove(ctx context.Context) error {
	g.Close()
	for _, m := range g.members {
		switch {
		case m.own:
		case m.shared: // one may have been made for those below
			m.path = m.dir(g.path)
		default:
			continue
		}
		if err := removeTree(ctx, m); err != nil {
			return fmt.Errorf("remove cgroup %s: %w", g.path, g.whatIsLeft(err))
		}
	}
	return nil
}

// RemoveEmpty removes the cgroup if no process and no cgroup is in it, and tells whether it
// is gone.
func (g *Group) RemoveEmpty() bool {
	g.Close()
	for _, m := range g.members {
		if !m.own {
			continue
		}
		if err := unix.Rmdir(m.path); err != nil && err != unix.ENOENT {
			return false
		}
	}
	return true
}

func removeTree(ctx context.Context, m member) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err := removeOnce(m.path)
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		if m.v2 {
			// populated covers the descendants. It turns 0 a moment before rmdir is
			// possible, hence the pause below as well.
			if e := waitEvent(ctx, filepath.Join(m.path, "cgroup.events"), "populated", "0"); e != nil {
				return errors.Join(e, err)
			}
		}
		// In v1 nothing tells when the last task has left.
		if e := poll.Pause(ctx, wait); e != nil {
			return errors.Join(e, err)
		}
	}
}

func removeOnce(dir string) error {
	// The common case has no descendants: one call.
	if err := unix.Rmdir(dir); err == nil || err == unix.ENOENT {
		return nil
	}
	dirs, err := below(dir)
	if err != nil {
		return err
	}
	for _, d := range slices.Backward(dirs) {
		if err := unix.Rmdir(d); err != nil && err != unix.ENOENT {
			return fmt.Errorf("remove %s: %w", d, err)
		}
	}
	return nil
}

package probe

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// A Memory keeps what was found, so that a daemon that comes back need not try again: to
// try costs a dozen mounts and files on the disk, a third of its start.
//
// A kernel does not lose what it can while it runs. So the answers hold for one boot (the
// file lies where a reboot drops it), for one kernel and one program, and for the file
// system that they were tried on. What was missing is not kept: a module may be loaded,
// a setting changed. If one is taken away, who needs it gets the kernel's error, as one
// that was taken away after the start does.
type Memory struct {
	file string
	dir  string

	mu    sync.Mutex // guards what follows
	now   answers
	fresh bool // something is not written down yet
}

type answers struct {
	Program string   `json:"program"` // its file, as the kernel tells it from others
	Kernel  string   `json:"kernel"`
	Device  uint64   `json:"device"`
	Found   []string `json:"found"`
}

// Remember reads what an earlier start of the same program found. The file must not
// survive a reboot; dir is what the probes are about.
func Remember(ctx context.Context, file, dir string) (*Memory, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil, fmt.Errorf("name the kernel: %w", err)
	}
	var st, self unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return nil, fmt.Errorf("look at directory %s: %w", dir, err)
	}
	if err := unix.Stat("/proc/self/exe", &self); err != nil {
		return nil, fmt.Errorf("look at this program: %w", err)
	}
	m := &Memory{file: file, dir: dir, now: answers{
		Program: fmt.Sprintf("%x:%d:%d:%d", self.Dev, self.Ino, self.Size, self.Mtim.Nano()),
		Kernel:  unix.ByteSliceToString(u.Release[:]), Device: st.Dev,
	}}
	b, err := os.ReadFile(file)
	if err != nil {
		return m, nil // there is none yet, or it does not matter
	}
	var then answers
	if err := json.Unmarshal(b, &then); err != nil {
		klog.FromContext(ctx).Error(err, "What was found of the kernel cannot be read; it is tried again", "file", file)
		return m, nil
	}
	if then.Program == m.now.Program && then.Kernel == m.now.Kernel && then.Device == m.now.Device {
		m.now.Found = then.Found
	}
	return m, nil
}

// Try returns nil at once if name was found before, and what try says otherwise.
func (m *Memory) Try(name string, try func() error) error {
	m.mu.Lock()
	known := slices.Contains(m.now.Found, name)
	m.mu.Unlock()
	if known {
		return nil
	}
	if err := try(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now.Found = append(m.now.Found, name)
	m.fresh = true
	return nil
}

// Save writes down what is new. It is no loss if it fails.
func (m *Memory) Save(ctx context.Context) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.fresh {
		return
	}
	b, err := json.Marshal(m.now)
	if err == nil {
		err = os.WriteFile(m.file+".new", b, 0o600)
	}
	if err == nil {
		err = os.Rename(m.file+".new", m.file)
	}
	if err != nil {
		klog.FromContext(ctx).Error(err, "What was found of the kernel not written down; the next start tries again")
		return
	}
	m.fresh = false
}

package namespace

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

// filled has a set made, as if pods came in turn, and waits for it.
func (p *Pool) filled(t *testing.T) {
	t.Helper()
	p.expect()
	p.expect()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		p.mu.Lock()
		n := len(p.ready)
		p.mu.Unlock()
		if n > 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the pool stays empty")
		}
	}
}

func (p *Pool) counts() (ready, making int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.ready), p.making
}

func TestPool(t *testing.T) {
	testkit.Need(t, testkit.Root)
	testkit.Leaks(t)
	var p Pool
	defer p.Close()
	base := t.TempDir()
	seen := map[uint64]bool{}
	spec := Spec{Net: true, IPC: true, UTS: true, Sysctls: map[string]string{
		"net.ipv4.ip_unprivileged_port_start": "99", "kernel/shm_rmid_forced": "1"}}
	for i := range 4 {
		if i > 1 {
			p.filled(t)
		}
		dir := filepath.Join(base, strconv.Itoa(i))
		s := spec
		s.Hostname = "pod-" + strconv.Itoa(i)
		if i == 3 {
			s.Sysctls = nil
		}
		got, err := p.Pin(dir, s)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := Unpin(dir); err != nil {
				t.Error(err)
			}
		}()
		checkInside(t, got, s)
		for k, path := range got {
			ino, err := Inode(path)
			if err != nil || seen[ino] {
				t.Errorf("pod %d: namespace %s %d is another pod's, %v", i, k, ino, err)
			}
			seen[ino] = true
		}
		if ready, making := p.counts(); i == 0 && ready+making > 0 {
			t.Errorf("after a pod that came alone: %d ready, %d being made", ready, making)
		}
	}
	if own, err := os.Hostname(); err != nil || own == "pod-3" {
		t.Errorf("the node's host name: %q, %v", own, err)
	}
}

func TestPoolForgets(t *testing.T) {
	testkit.Need(t, testkit.Root)
	testkit.Leaks(t)
	var p Pool
	defer p.Close()
	pin := func(s Spec) error {
		dir := filepath.Join(t.TempDir(), "ns")
		_, err := p.Pin(dir, s)
		return errors.Join(err, Unpin(dir))
	}
	plain := Spec{Net: true, IPC: true, UTS: true}
	for range 2 {
		if err := pin(plain); err != nil {
			t.Fatal(err)
		}
	}
	p.filled(t)
	p.mu.Lock()
	p.ready[0].made = time.Now().Add(-fresh)
	p.mu.Unlock()
	if s, ok := p.take(); ok {
		t.Errorf("got a set of %v ago", time.Since(s.made))
	}
	// Others of its kind do not fit; failures leave nothing.
	um := &UserMap{UIDs: []IDMap{{0, 200000, 10}}, GIDs: []IDMap{{0, 200000, 10}}}
	for _, s := range []Spec{{UTS: true}, {Net: true, IPC: true, UTS: true, User: um}} {
		if err := pin(s); err != nil {
			t.Error(err)
		}
	}
	bad := plain
	bad.Sysctls = map[string]string{"net.ipv4.ip_forward": "many"}
	p.mu.Lock()
	p.ready[0].made = time.Now()
	p.mu.Unlock()
	if err := pin(bad); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("bad sysctl: %v", err)
	}
	p.filled(t)
	p.mu.Lock()
	for i := range p.ready {
		p.ready[i].made = time.Now().Add(-fresh)
	}
	p.mu.Unlock()
	p.drop()
	if ready, _ := p.counts(); ready > 0 {
		t.Errorf("%d sets are kept for nobody", ready)
	}
	p.Close()
	if err := pin(plain); err != nil {
		t.Errorf("closed: %v", err)
	}
	if ready, making := p.counts(); ready+making > 0 {
		t.Errorf("closed: %d ready, %d being made", ready, making)
	}
}

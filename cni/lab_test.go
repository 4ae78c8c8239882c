package cni_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/cni"
)

// needNode skips unless the test runs in namespaces of its own.
func needNode(t testing.TB) {
	t.Helper()
	if os.Getenv(insideEnv) == "" {
		if os.Getenv("CRI_TEST_STRICT") == "1" {
			t.Fatal("need root for namespaces")
		}
		t.Skip("need root for namespaces")
	}
}

// newNS pins a fresh network namespace below the test's directory.
func newNS(t testing.TB) string {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "netns")
	if err != nil {
		t.Fatal(err)
	}
	path := f.Name()
	f.Close()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal("new netns:", err)
	}
	t.Cleanup(func() { dropNS(path) })
	return path
}

func dropNS(path string) {
	_ = unix.Unmount(path, unix.MNT_DETACH)
	_ = os.Remove(path)
}

// in runs f in a namespace; an empty path is the node's.
func in(t testing.TB, path string, f func() error) {
	t.Helper()
	if err := tryIn(path, f); err != nil {
		t.Fatal(err)
	}
}

func tryIn(path string, f func() error) error {
	if path == "" {
		return f()
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		ns, err := os.Open(path)
		if err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
			ns.Close()
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// world is another machine: linked to the node by 192.0.2.0/24 and 2001:db8::/64, and
// without a route to the pods.
func world(t testing.TB) string {
	t.Helper()
	path := newNS(t)
	ns, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	la := netlink.NewLinkAttrs()
	la.Name = "uplink"
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: la, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns.Fd())}))
	t.Cleanup(func() {
		if l, err := netlink.LinkByName("uplink"); err == nil {
			_ = netlink.LinkDel(l)
		}
	})
	setup := func(link, v4, v6 string) error {
		l, err := netlink.LinkByName(link)
		if err != nil {
			return err
		}
		for _, s := range []string{v4, v6} {
			a, _ := netlink.ParseAddr(s)
			a.Flags = unix.IFA_F_NODAD
			if err := netlink.AddrAdd(l, a); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(l)
	}
	must(t, setup("uplink", "192.0.2.1/24", "2001:db8::1/64"))
	in(t, path, func() error { return setup("eth0", "192.0.2.2/24", "2001:db8::2/64") })
	return path
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// serve answers every connection and datagram in a namespace on port with the
// address that it came from.
func serve(t testing.TB, ns string, port int) {
	t.Helper()
	addr := fmt.Sprintf("[::]:%d", port)
	var l net.Listener
	var u net.PacketConn
	in(t, ns, func() (err error) {
		if l, err = net.Listen("tcp", addr); err == nil {
			u, err = net.ListenPacket("udp", addr)
		}
		return err
	})
	done := make(chan struct{}, 2)
	go func() {
		defer func() { done <- struct{}{} }()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, c.RemoteAddr().String())
			c.Close()
		}
	}()
	go func() {
		defer func() { done <- struct{}{} }()
		b := make([]byte, 100)
		for {
			_, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = u.WriteTo([]byte(from.String()), from)
		}
	}()
	t.Cleanup(func() { l.Close(); u.Close(); <-done; <-done })
}

// ask connects from a namespace and returns the address that the server saw.
func ask(ns, network, addr string) (seen netip.Addr, err error) {
	err = tryIn(ns, func() error {
		c, err := net.DialTimeout(network, addr, 2*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		if network == "udp" {
			if _, err := io.WriteString(c, "?"); err != nil {
				return err
			}
		}
		b := make([]byte, 100)
		k, err := c.Read(b)
		if err != nil {
			return err
		}
		ap, err := netip.ParseAddrPort(string(b[:k]))
		seen = ap.Addr().Unmap()
		return err
	})
	return seen, err
}

// node makes a network and takes it down with everything that tests may leave,
// complaining about what product code should not have left.
func node(t testing.TB, c cni.Config) *cni.Network {
	t.Helper()
	needNode(t)
	if c.CacheDir == "" {
		c.CacheDir = t.TempDir()
	}
	n, err := cni.New(t.Context(), c)
	must(t, err)
	t.Cleanup(func() {
		must(t, n.Purge(context.Background()))
		must(t, n.Close())
		leaks(t, c.CacheDir)
	})
	return n
}

// leaks looks for links, records, addresses and rules. Links go asynchronously with
// their namespaces.
func leaks(t testing.TB, cache string) {
	t.Helper()
	for _, sub := range []string{"pods", "results", "networks/*"} {
		files, _ := filepath.Glob(filepath.Join(cache, sub, "*"))
		for _, f := range files {
			if b := filepath.Base(f); b != "lock" && !strings.HasPrefix(b, "last_reserved_ip") && !isDir(f) {
				t.Errorf("left on disk: %s", f)
			}
		}
	}
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		left := vethNames(t)
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("left links: %v", left)
			return
		}
	}
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

func vethNames(t testing.TB) (names []string) {
	links, err := netlink.LinkList()
	must(t, err)
	for _, l := range links {
		if n := l.Attrs().Name; strings.HasPrefix(n, "veth") {
			names = append(names, n)
		}
	}
	return names
}

// pod attaches a pod in a new namespace and detaches it at the end.
func pod(t testing.TB, n *cni.Network, id string, ports ...cni.PortMapping) (cni.Pod, cni.Attachment) {
	t.Helper()
	p := cni.Pod{ID: id, Namespace: "default", Name: id, UID: "u-" + id, NetNS: newNS(t), PortMappings: ports}
	t.Cleanup(func() {
		if err := n.Detach(context.Background(), p); err != nil {
			t.Errorf("detach: %v", err)
		}
		dropNS(p.NetNS)
	})
	a, err := n.Attach(t.Context(), p)
	must(t, err)
	return p, a
}

func allocated(t testing.TB, cache string) (ips []string) {
	files, err := filepath.Glob(filepath.Join(cache, "networks/*/*"))
	must(t, err)
	for _, f := range files {
		if _, err := netip.ParseAddr(filepath.Base(f)); err == nil {
			ips = append(ips, filepath.Base(f))
		}
	}
	slices.Sort(ips)
	return ips
}

// deadline is long for what must come and short for what must not.
func deadline(come bool) time.Time {
	if come {
		return time.Now().Add(2 * time.Second)
	}
	return time.Now().Add(200 * time.Millisecond)
}

package cni_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/cni"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

func addrPort(a netip.Addr, port int) string { return netip.AddrPortFrom(a, uint16(port)).String() }

func TestPodsTalkOverTheBridge(t *testing.T) {
	n := node(t, cni.Config{Default: &cni.DefaultNetwork{}})
	if err := n.Ready(); err != nil {
		t.Fatal("ready:", err)
	}
	a, _ := pod(t, n, "a")
	b, got := pod(t, n, "b")
	if len(got.IPs) != 2 || !got.IPs[0].Is4() || !got.IPs[1].Is6() || got.HostInterface == "" || got.MAC == "" {
		t.Fatalf("attachment: %+v", got)
	}
	serve(t, b.NetNS, 80)
	serve(t, "", 8081)
	for _, ip := range got.IPs {
		for _, proto := range []string{"tcp", "udp"} {
			for from, ns := range map[string]string{"pod": a.NetNS, "node": "", "itself": b.NetNS} {
				if _, err := ask(ns, proto, addrPort(ip, 80)); err != nil {
					t.Errorf("%s from %s to %v: %v", proto, from, ip, err)
				}
			}
		}
	}
	for _, gw := range []string{"10.88.0.1:8081", "[fd00:10:88::1]:8081", "127.0.0.1:8081"} {
		_, err := ask(a.NetNS, "tcp", gw)
		if local := strings.HasPrefix(gw, "127"); (err == nil) == local {
			t.Errorf("from the pod to %s: %v", gw, err)
		}
	}
	must(t, n.Check(t.Context(), a))
	in(t, a.NetNS, func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	})
	if err := n.Check(t.Context(), a); err == nil {
		t.Error("check of a pod without eth0 succeeds")
	}
}

func TestHostPorts(t *testing.T) {
	n := node(t, cni.Config{Default: &cni.DefaultNetwork{}})
	w := world(t)
	host := netip.MustParseAddr("192.0.2.1")
	p, _ := pod(t, n, "p",
		cni.PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: cni.TCP},
		cni.PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: cni.UDP},
		cni.PortMapping{HostPort: 8090, ContainerPort: 80, Protocol: cni.TCP, HostIP: host},
		cni.PortMapping{HostPort: 8091, ContainerPort: 80, Protocol: cni.TCP, HostIP: netip.MustParseAddr("127.0.0.1")},
		cni.PortMapping{HostPort: 8092, ContainerPort: 80, Protocol: cni.SCTP},
		cni.PortMapping{ContainerPort: 99, Protocol: cni.TCP})
	other, _ := pod(t, n, "other")
	serve(t, p.NetNS, 80)
	must(t, n.Check(t.Context(), p))
	for _, tc := range []struct {
		from, ns, network, to string
		want                  bool
		seen                  string
	}{
		{"node", "", "tcp", "127.0.0.1:8080", true, ""},
		{"node", "", "udp", "127.0.0.1:8080", true, ""},
		{"node", "", "tcp", "192.0.2.1:8080", true, ""},
		{"node", "", "tcp", "[2001:db8::1]:8080", true, ""},
		{"world", w, "tcp", "192.0.2.1:8080", true, "192.0.2.2"},
		{"world", w, "udp", "192.0.2.1:8080", true, "192.0.2.2"},
		{"world", w, "tcp", "[2001:db8::1]:8080", true, "2001:db8::2"},
		{"world", w, "udp", "[2001:db8::1]:8080", true, "2001:db8::2"},
		{"other pod", other.NetNS, "tcp", "192.0.2.1:8080", true, ""},
		{"other pod", other.NetNS, "udp", "192.0.2.1:8080", true, ""},
		{"other pod", other.NetNS, "tcp", "[2001:db8::1]:8080", true, ""},
		{"the pod itself", p.NetNS, "tcp", "192.0.2.1:8080", true, ""},
		{"the pod itself", p.NetNS, "udp", "192.0.2.1:8080", true, ""},
		{"the pod itself", p.NetNS, "tcp", "[2001:db8::1]:8080", true, ""},
		{"world", w, "tcp", "192.0.2.1:8090", true, ""},
		{"node", "", "tcp", "127.0.0.1:8090", false, ""},
		{"node", "", "tcp", "127.0.0.1:8091", true, ""},
		{"world", w, "tcp", "192.0.2.1:8091", false, ""},
		{"world", w, "tcp", "192.0.2.1:80", false, ""},
	} {
		seen, err := ask(tc.ns, tc.network, tc.to)
		if (err == nil) != tc.want {
			t.Errorf("%s from %s to %s: got %v, want success %v", tc.network, tc.from, tc.to, err, tc.want)
		}
		if tc.seen != "" && seen.String() != tc.seen {
			t.Errorf("%s from %s to %s: source seen %v, want %s", tc.network, tc.from, tc.to, seen, tc.seen)
		}
	}
	must(t, n.Detach(t.Context(), p))
	for _, to := range []string{"127.0.0.1:8080", "192.0.2.1:8090"} {
		if _, err := ask("", "tcp", to); err == nil {
			t.Errorf("%s still leads to the pod", to)
		}
	}
	if _, err := ask("", "udp", "127.0.0.1:8080"); err == nil {
		t.Error("the UDP port still leads to the pod")
	}
}

func TestUDPFlowFollowsItsPort(t *testing.T) {
	n := node(t, cni.Config{Default: &cni.DefaultNetwork{}})
	w := world(t)
	var c net.Conn
	in(t, w, func() (err error) { c, err = net.Dial("udp", "192.0.2.1:53"); return err })
	defer c.Close()
	talk := func(want bool) {
		t.Helper()
		_ = c.SetDeadline(deadline(want)) // first: a write fails, too, after the last one
		_, _ = c.Write([]byte("?"))
		_, err := c.Read(make([]byte, 100))
		if (err == nil) != want {
			t.Errorf("datagram: got %v, want success %v", err, want)
		}
	}
	talk(false) // the flow is known before the port is
	m := cni.PortMapping{HostPort: 53, ContainerPort: 53, Protocol: cni.UDP}
	for _, id := range []string{"first", "second"} {
		p, _ := pod(t, n, id, m)
		serve(t, p.NetNS, 53)
		talk(true)
		must(t, n.Detach(t.Context(), p))
	}
}

func TestMasquerade(t *testing.T) {
	n := node(t, cni.Config{Default: &cni.DefaultNetwork{}})
	w := world(t)
	a, _ := pod(t, n, "a")
	b, got := pod(t, n, "b")
	serve(t, w, 80)
	serve(t, b.NetNS, 80)
	for to, want := range map[string]string{"192.0.2.2:80": "192.0.2.1", "[2001:db8::2]:80": "2001:db8::1"} {
		seen, err := ask(a.NetNS, "tcp", to)
		if err != nil || seen.String() != want {
			t.Errorf("to %s: source %v, want %s, err %v", to, seen, want, err)
		}
	}
	seen, err := ask(a.NetNS, "tcp", addrPort(got.IPs[0], 80))
	if err != nil || !strings.HasPrefix(seen.String(), "10.88.") {
		t.Errorf("pod to pod: source %v, want the pod's own, err %v", seen, err)
	}
	// Somebody flushes the ruleset; the next pod brings the rules back.
	c, err := nftables.New()
	must(t, err)
	c.FlushRuleset()
	must(t, c.Flush())
	pod(t, n, "c")
	if seen, err := ask(a.NetNS, "tcp", "192.0.2.2:80"); err != nil || seen.String() != "192.0.2.1" {
		t.Errorf("after a flush: source %v, err %v", seen, err)
	}
}

func TestLoopbackOfNodeIsOutOfReach(t *testing.T) {
	n := node(t, cni.Config{Default: &cni.DefaultNetwork{}})
	// The host port turns route_localnet on for the bridge.
	p, _ := pod(t, n, "evil", cni.PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: cni.TCP})
	l, err := net.Listen("tcp", "127.0.0.1:7000")
	must(t, err)
	defer l.Close()
	in(t, p.NetNS, func() error {
		must(t, os.WriteFile("/proc/sys/net/ipv4/conf/eth0/route_localnet", []byte("1"), 0o644))
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		addrs, err := netlink.AddrList(lo, netlink.FAMILY_V4)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			must(t, netlink.AddrDel(lo, &a))
		}
		eth, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		_, dst, _ := net.ParseCIDR("127.0.0.0/8")
		return netlink.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Dst: dst, Gw: net.ParseIP("10.88.0.1")})
	})
	if err := tryIn(p.NetNS, func() error {
		c, err := net.DialTimeout("tcp", "127.0.0.1:7000", 1e9)
		if err == nil {
			c.Close()
		}
		return err
	}); err == nil {
		t.Error("a pod reached a service on the node's loopback address")
	}
}

func TestHostPortOfAnotherPodIsRefused(t *testing.T) {
	cache := t.TempDir()
	n := node(t, cni.Config{CacheDir: cache, Default: &cni.DefaultNetwork{}})
	m := cni.PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: cni.TCP}
	pod(t, n, "first", m)
	p := cni.Pod{ID: "second", NetNS: newNS(t), PortMappings: []cni.PortMapping{m}}
	_, err := n.Attach(t.Context(), p)
	if !errors.Is(err, errdef.ErrExists) || !strings.Contains(err.Error(), "pod first") {
		t.Errorf("second pod with the port: %v", err)
	}
	must(t, n.Detach(t.Context(), p))
	if got := allocated(t, cache); len(got) != 2 {
		t.Errorf("addresses in use: %v, want those of one pod", got)
	}
}

func TestAttachTwiceAndDetachTwice(t *testing.T) {
	cache := t.TempDir()
	n := node(t, cni.Config{CacheDir: cache, Default: &cni.DefaultNetwork{}})
	p, a := pod(t, n, "p")
	b, err := n.Attach(t.Context(), p)
	if err != nil || fmt.Sprint(a.IPs) != fmt.Sprint(b.IPs) || a.HostInterface != b.HostInterface {
		t.Errorf("again: %+v, %v, want %+v", b, err, a)
	}
	// Same namespace, attached anew.
	must(t, n.Detach(t.Context(), p))
	must(t, n.Detach(t.Context(), p))
	if got := allocated(t, cache); len(got) != 0 {
		t.Errorf("addresses left: %v", got)
	}
	if c, err := n.Attach(t.Context(), p); err != nil || len(c.IPs) != 2 {
		t.Errorf("attach after detach: %+v, %v", c, err)
	}
	must(t, n.Detach(t.Context(), cni.Pod{ID: "unknown"}))
}

func TestDetachWithoutNamespace(t *testing.T) {
	n := node(t, cni.Config{Default: &cni.DefaultNetwork{}})
	p, a := pod(t, n, "p", cni.PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: cni.TCP})
	pin, err := os.Open(p.NetNS) // a stray process keeps the namespace alive
	must(t, err)
	defer pin.Close()
	dropNS(p.NetNS)
	must(t, n.Detach(t.Context(), cni.Pod{ID: p.ID}))
	if _, err := netlink.LinkByName(a.HostInterface); err == nil {
		t.Errorf("%s is still there", a.HostInterface)
	}
}

func TestDetachedPodIsSilent(t *testing.T) {
	n := node(t, cni.Config{Default: &cni.DefaultNetwork{}})
	p, a := pod(t, n, "p")
	serve(t, p.NetNS, 80)
	must(t, n.Detach(t.Context(), p))
	// The namespace lives on, and must not answer at an address that is free again.
	if _, err := ask("", "tcp", addrPort(a.IPs[0], 80)); err == nil {
		t.Error("the pod still answers")
	}
}

func TestParallelAttachesGetDifferentAddresses(t *testing.T) {
	cache := t.TempDir()
	n := node(t, cni.Config{CacheDir: cache, Default: &cni.DefaultNetwork{Subnets: []netip.Prefix{netip.MustParsePrefix("10.77.0.0/27")}}})
	const pods = 29 // a /27 has 32, less network, broadcast and gateway
	var mu sync.Mutex
	var wg sync.WaitGroup
	seen := map[netip.Addr]string{}
	for i := range pods {
		p := cni.Pod{ID: fmt.Sprintf("p%d", i), NetNS: newNS(t)}
		wg.Go(func() {
			a, err := n.Attach(t.Context(), p)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Errorf("%s: %v", p.ID, err)
				return
			}
			if o := seen[a.IPs[0]]; o != "" {
				t.Errorf("%v: both %s and %s", a.IPs[0], o, p.ID)
			}
			seen[a.IPs[0]] = p.ID
		})
	}
	wg.Wait()
	full := cni.Pod{ID: "full", NetNS: newNS(t)}
	if _, err := n.Attach(t.Context(), full); !errors.Is(err, errdef.ErrExhausted) {
		t.Errorf("one too many: %v", err)
	}
	for i := range pods - 1 {
		wg.Go(func() {
			if err := n.Detach(context.Background(), cni.Pod{ID: fmt.Sprintf("p%d", i)}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	// The rest and the failed one are unknown to the new daemon.
	must(t, n.GC(t.Context(), nil))
	if got := allocated(t, cache); len(got) != 0 {
		t.Errorf("addresses left: %v", got)
	}
}

func TestPodRangesOfTheNode(t *testing.T) {
	cache := t.TempDir()
	n := node(t, cni.Config{CacheDir: cache, Default: &cni.DefaultNetwork{}})
	old, was := pod(t, n, "old")
	must(t, n.UpdatePodCIDR([]netip.Prefix{netip.MustParsePrefix("10.99.7.0/24")}))
	if err := n.UpdatePodCIDR([]netip.Prefix{netip.MustParsePrefix("10.99.7.0/31")}); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("tiny range: %v", err)
	}
	_, a := pod(t, n, "new")
	if want := netip.MustParsePrefix("10.99.7.0/24"); len(a.IPs) != 1 || !want.Contains(a.IPs[0]) {
		t.Fatalf("addresses %v, want one of %v", a.IPs, want)
	}
	serve(t, old.NetNS, 80)
	if _, err := ask("", "tcp", addrPort(was.IPs[0], 80)); err != nil {
		t.Errorf("pod of the old range: %v", err)
	}
	again, err := cni.New(t.Context(), cni.Config{CacheDir: cache, Default: &cni.DefaultNetwork{}})
	must(t, err)
	t.Cleanup(func() { must(t, again.Close()) }) // after its pod's end
	if _, a := pod(t, again, "after"); !netip.MustParsePrefix("10.99.7.0/24").Contains(a.IPs[0]) {
		t.Errorf("after a restart: %v", a.IPs)
	}
}

func TestGCSparesValidPods(t *testing.T) {
	cache := t.TempDir()
	n := node(t, cni.Config{CacheDir: cache, Default: &cni.DefaultNetwork{}})
	_, a := pod(t, n, "keep")
	p := cni.Pod{ID: "gone", NetNS: newNS(t)}
	_, err := n.Attach(t.Context(), p)
	must(t, err)
	// An address file of a pod whose record was lost.
	lost := filepath.Join(cache, "networks/cri-runtime/10.88.200.200")
	must(t, os.WriteFile(lost, []byte("lost\r\neth0"), 0o644))
	dropNS(p.NetNS)
	must(t, n.GC(t.Context(), []string{"keep"}))
	got := allocated(t, cache)
	if len(got) != 2 || got[0] != a.IPs[0].String() {
		t.Errorf("addresses in use: %v, want %v", got, a.IPs)
	}
}

// A pod that starts does not disturb the others: with 200 of them on the bridge, a packet
// to each took longer than the rest of its start.
func TestStartingPodIsQuiet(t *testing.T) {
	n := node(t, cni.Config{Default: &cni.DefaultNetwork{}})
	first, _ := pod(t, n, "first")
	var fd int
	in(t, first.NetNS, func() (err error) {
		all := uint16(unix.ETH_P_ALL)<<8 | uint16(unix.ETH_P_ALL)>>8
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all))
		return err
	})
	defer unix.Close(fd)
	// Routers are asked for within a second (rtr_solicitation_delay).
	must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100e3}))
	for i := range 3 {
		pod(t, n, fmt.Sprint("later", i))
	}
	const icmp6, solicitation, advertisement = 58, 133, 136
	for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); {
		var b [2048]byte
		k, from, err := unix.Recvfrom(fd, b[:], 0)
		if err != nil || k < 14 {
			continue
		}
		if l, ok := from.(*unix.SockaddrLinklayer); ok && l.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		switch typ := uint16(b[12])<<8 | uint16(b[13]); {
		case typ == unix.ETH_P_ARP:
			t.Error("the first pod got an ARP packet")
		case typ == unix.ETH_P_IPV6 && k > 54 && b[20] == icmp6 && (b[54] == solicitation || b[54] == advertisement):
			t.Errorf("the first pod got an ICMPv6 packet of type %d", b[54])
		}
	}
}

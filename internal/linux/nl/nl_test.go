package nl_test

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/linux/nl"
	"github.com/cri-runtime/cri-runtime/internal/linux/thread"
	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

// inside runs f with a socket in a network namespace of its own.
func inside(t *testing.T, f func(c *nl.Conn)) {
	t.Helper()
	testkit.Need(t, testkit.Root)
	testkit.Leaks(t)
	var c *nl.Conn
	err := thread.Throwaway(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		c, err = nl.Open(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	f(c)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := c.Close(); err == nil {
		t.Error("closed twice")
	}
}

func newBridge(b *nl.Batch, name string) {
	b.Link(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, 0, unix.IFF_UP, unix.IFF_UP)
	b.String(unix.IFLA_IFNAME, name)
	b.Bytes(unix.IFLA_ADDRESS, []byte{2, 0, 0, 0, 0, 7})
	b.Uint32(unix.IFLA_MTU, 1400)
	b.Nest(unix.IFLA_LINKINFO, func() { b.String(unix.IFLA_INFO_KIND, "bridge") })
}

func TestLinksAndAddresses(t *testing.T) {
	inside(t, func(c *nl.Conn) {
		var b nl.Batch
		newBridge(&b, "br")
		if err := c.Do(&b); err != nil {
			t.Fatal(err)
		}
		index, err := c.Index("br")
		if err != nil || index < 2 {
			t.Fatalf("index %d, %v", index, err)
		}
		flags, _ := c.Flags("br")
		mac, _ := c.MAC("br")
		mtu, _ := c.MTU("br")
		if flags&unix.IFF_UP == 0 || mac != [6]byte{2, 0, 0, 0, 0, 7} || mtu != 1400 {
			t.Errorf("flags %x, mac %x, mtu %d", flags, mac, mtu)
		}
		want := []netip.Prefix{netip.MustParsePrefix("10.1.0.1/16"), netip.MustParsePrefix("fd00::1/64")}
		b = nl.Batch{}
		b.Link(unix.RTM_NEWLINK, 0, 1, unix.IFF_UP, unix.IFF_UP)
		for _, p := range want {
			b.Addr(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, index, p, 0)
		}
		b.Route(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, index,
			nl.Route{Dst: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("10.1.0.2"), MTU: 1300, Metric: 5, Table: 300})
		if err := c.Do(&b); err != nil {
			t.Fatal(err)
		}
		got, err := c.Addrs(index)
		for _, p := range want {
			if !slices.Contains(got, p) {
				t.Errorf("addresses %v lack %v, %v", got, p, err)
			}
		}
		if got, err := c.Addrs(1); err != nil || slices.Contains(got, want[0]) || len(got) != 2 {
			t.Errorf("addresses of lo: %v, %v", got, err)
		}
		b = nl.Batch{}
		b.Addr(unix.RTM_DELADDR, 0, index, want[0], 0)
		b.Link(unix.RTM_DELLINK, 0, index, 0, 0)
		if err := c.Do(&b); err != nil {
			t.Error(err)
		}
		if _, err := c.Index("br"); !errors.Is(err, unix.ENODEV) {
			t.Errorf("deleted link: %v", err)
		}
	})
}

// The error names the first message that failed; what comes after it is done all the same.
func TestErrors(t *testing.T) {
	inside(t, func(c *nl.Conn) {
		var b nl.Batch
		newBridge(&b, "one")
		newBridge(&b, "one")
		b.Allow(unix.EEXIST)
		newBridge(&b, "one")
		b.Allow(unix.EPERM) // not what comes
		newBridge(&b, "a name of more than fifteen letters")
		newBridge(&b, "two")
		err := c.Do(&b)
		e, ok := errors.AsType[*nl.Error](err)
		if !ok || e.Index != 2 || !errors.Is(err, unix.EEXIST) {
			t.Errorf("got %v (%+v), want EEXIST of message 2", err, e)
		}
		if _, err := c.Index("two"); err != nil {
			t.Errorf("the message after the failed ones: %v", err)
		}
		// The last message is acknowledged and may fail as well.
		b = nl.Batch{}
		newBridge(&b, "two")
		if err := c.Do(&b); !errors.Is(err, unix.EEXIST) {
			t.Errorf("got %v, want EEXIST", err)
		}
		b = nl.Batch{}
		newBridge(&b, "two")
		b.Allow(nl.Any)
		if err := c.Do(&b); err != nil {
			t.Errorf("an error that is allowed: %v", err)
		}
		b = nl.Batch{}
		b.Link(unix.RTM_NEWLINK, 0, 99, 0, 0)
		b.String(unix.IFLA_IFNAME, "a name of more than fifteen letters")
		if err, ok := errors.AsType[*nl.Error](c.Do(&b)); !ok || err.Text == "" {
			t.Errorf("no words of the kernel in %v", err)
		}
		if _, err := c.Index("a name of more than fifteen letters"); !errors.Is(err, unix.ENODEV) {
			t.Errorf("long name: %v", err)
		}
		if err := c.Do(&nl.Batch{}); err != nil {
			t.Errorf("nothing to do: %v", err)
		}
	})
}

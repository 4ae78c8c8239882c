package cni_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/cni/nat"
)

func TestRulesKnowOverlappingSubnets(t *testing.T) {
	needNode(t)
	tb := nat.Open()
	defer tb.Close()
	for _, s := range []string{"10.1.2.0/24", "10.1.2.0/24", "10.1.2.128/25", "10.1.0.0/16", "10.1.2.0/24", "10.2.0.0/16", "fd00::/64", "fd00::/48"} {
		if err := tb.Masquerade([]netip.Prefix{netip.MustParsePrefix(s)}); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
	gone, err := tb.Remove()
	if !gone || err != nil {
		t.Errorf("remove: %v, %v", gone, err)
	}
	if gone, err := tb.Remove(); !gone || err != nil {
		t.Errorf("remove again: %v, %v", gone, err)
	}
}

// A pod that died without a word left a port that leads to an address which another
// pod has now: the port goes with the address.
func TestPortsOfADeadOwner(t *testing.T) {
	needNode(t)
	tb := nat.Open()
	defer tb.Close()
	port := func(host uint16) nat.Port {
		return nat.Port{Proto: unix.IPPROTO_TCP, HostPort: host, Pod: netip.MustParseAddr("10.1.0.2"), ContainerPort: 80}
	}
	must(t, tb.AddPorts("dead", []nat.Port{port(80), port(81)}, nil))
	must(t, tb.AddPorts("new", []nat.Port{port(80)}, nil))
	if left, err := tb.Ports("dead"); len(left) > 0 || err != nil {
		t.Errorf("dead pod: %v, %v", left, err)
	}
	if gone, err := tb.Remove(); gone || err != nil {
		t.Errorf("remove while a port is open: %v, %v", gone, err)
	}
	must(t, tb.AddPorts("new", []nat.Port{port(82)}, nil)) // replaces
	if got, err := tb.Ports("new"); err != nil || !slices.Equal(got, []nat.Port{port(82)}) {
		t.Errorf("ports: %v, %v", got, err)
	}
	must(t, tb.RemovePorts("new"))
	must(t, tb.RemovePorts("new"))
	if gone, err := tb.Remove(); !gone || err != nil {
		t.Errorf("remove: %v, %v", gone, err)
	}
}

func TestForeignForwardDropIsSeen(t *testing.T) {
	needNode(t)
	tb := nat.Open()
	defer tb.Close()
	c, err := nftables.New()
	must(t, err)
	table := c.AddTable(&nftables.Table{Name: "fw", Family: nftables.TableFamilyIPv4})
	drop := nftables.ChainPolicyDrop
	c.AddChain(&nftables.Chain{Name: "FORWARD", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop})
	must(t, c.Flush())
	defer func() { c.DelTable(table); must(t, c.Flush()) }()
	got, err := tb.ForwardDrops()
	if err != nil || !slices.Equal(got, []string{"fw/FORWARD"}) {
		t.Errorf("got %v, %v", got, err)
	}
}

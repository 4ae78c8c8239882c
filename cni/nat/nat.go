// Package nat keeps one nftables table, "inet cri_runtime", that leads host ports to
// pods and masquerades what pods send to the world.
//
// The rules are constant: pods are elements of maps, tagged with the pod's id, so that
// the cost of a packet does not grow with the number of pods and removal is exact.
// Each change is one transaction. The table is versioned by a marker set; when the
// set is gone, because somebody flushed the ruleset, the next change installs all of
// it anew (the elements of other pods are lost with the flush, as for every other
// user of the ruleset).
//
// It refuses a host port that another pod has. It cannot accept what another table's
// forward chain drops; ForwardDrops tells. It uses no nft or iptables program, starts
// no goroutine, and leaves nothing on disk.
package nat

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	mdnetlink "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/linux/nl"
)

// TableName is the name of the table, of family inet.
const TableName = "cri_runtime"

// markBit is set on the first packet of a connection to a host port until it leaves,
// so that the hairpin chain knows it. It is the bit that the portmap plugin uses; the
// kubelet and kube-proxy use 0x4000 and 0x8000.
const markBit = 0x2000

// kernelLimit bounds one transaction.
const kernelLimit = 10 * time.Second

// stamp names the marker set. Change it whenever install changes what it makes.
const stamp = "version_1"

// A Table is the handle on the rules of one network namespace.
type Table struct {
	t  *nftables.Table
	ct *netlink.Handle // conntrack; nil when the kernel has no ctnetlink

	mu   sync.Mutex // held for one transaction; guards what follows
	c    *nftables.Conn
	sock *mdnetlink.Conn

	asked *nl.Conn // for generation; kept open for the same reason
	seen  *seen
}

// Open connects to the network namespace that the calling thread is in, which must be
// that of every thread which calls methods. It changes nothing; the table appears
// with the first rule that is needed, and only then it matters whether the kernel has
// netfilter: a network without host ports and masquerading needs none.
func Open() *Table {
	ct, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
	if err != nil {
		ct = nil
	}
	return &Table{t: &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet}, ct: ct}
}

// Close closes the sockets; the rules stay.
func (t *Table) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ct != nil {
		t.ct.Close()
	}
	var err error
	if t.asked != nil {
		err = t.asked.Close()
	}
	return errors.Join(err, t.hangUp())
}

// begin makes the socket ready for a transaction. It is kept between them, because
// the kernel makes the close of a netfilter socket wait for the RCU grace period of
// whatever was deleted: 4 to 20 ms.
func (t *Table) begin() error {
	if t.c == nil {
		c, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *mdnetlink.Conn) error {
			t.sock = c
			return nil
		}))
		if err != nil {
			return fmt.Errorf("open netfilter socket: %w", unsupported(err))
		}
		t.c = c
	}
	// The library waits for one answer per message; the kernel gives a single one when
	// it fails as late as the commit.
	if err := t.sock.SetDeadline(time.Now().Add(kernelLimit)); err != nil {
		return errors.Join(fmt.Errorf("set limit of netfilter socket: %w", err), t.hangUp())
	}
	return nil
}

// end closes the socket after an error: answers may be left in it.
func (t *Table) end(err *error) {
	if *err != nil {
		*err = errors.Join(*err, t.hangUp())
	}
}

func (t *Table) hangUp() error {
	c := t.c
	t.c, t.sock = nil, nil
	if c == nil {
		return nil
	}
	return c.CloseLasting()
}

// absent reports whether the kernel has no netfilter, so that there is nothing to take
// away.
func absent(err error) bool {
	return errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EAFNOSUPPORT)
}

// has reports whether the set of that name exists. The library hides the kernel's
// error number from listings, so callers ask before they list.
func (t *Table) has(name string) (bool, error) {
	_, err := t.c.GetSetByName(t.t, name)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for nftables table %s: %w", TableName, unsupported(err))
	}
	return true, nil
}

// ensure installs the table unless it is there. Callers hold mu.
func (t *Table) ensure() error {
	if ok, err := t.has(stamp); ok || err != nil {
		return err
	}
	// The table of another version may be there: its pods keep their ports.
	kept := map[string][]nftables.SetElement{}
	for _, name := range slices.Concat(portMaps, netSets) {
		if ok, err := t.has(name); err != nil || !ok {
			if err != nil {
				return err
			}
			continue
		}
		els, err := t.elements(name)
		if err != nil {
			return err
		}
		kept[name] = els
	}
	if err := t.install(kept); err != nil {
		return err
	}
	if err := t.c.Flush(); err != nil {
		return fmt.Errorf("install nftables table %s: %w", TableName, unsupported(err))
	}
	return nil
}

// unsupported adds to an error of the kernel what it usually means.
func unsupported(err error) error {
	for _, e := range []error{unix.EOPNOTSUPP, unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT, unix.ENOENT, unix.EINVAL} {
		if errors.Is(err, e) {
			return fmt.Errorf("%w: the kernel may lack nftables with NAT in the inet family (5.2 or newer: "+
				"CONFIG_NF_TABLES_INET, NFT_NAT, NFT_MASQ, NFT_FIB_INET)", err)
		}
	}
	return err
}

// set describes a set or map of the table by name.
func (t *Table) set(name string) *nftables.Set {
	s := &nftables.Set{Table: t.t, Name: name, KeyByteOrder: binaryutil.BigEndian}
	switch name {
	case stamp:
		s.KeyType = nftables.TypeMark
	case setMasq4, setPods4:
		s.Interval, s.KeyType = true, nftables.TypeIPAddr
	case setMasq6, setPods6:
		s.Interval, s.KeyType = true, nftables.TypeIP6Addr
	case mapAny4, mapAny6:
		s.IsMap, s.Concatenation = true, true
		s.KeyType = nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)
		s.DataType = target(name == mapAny6)
	case mapIP4, mapIP6:
		s.IsMap, s.Concatenation = true, true
		addr := nftables.TypeIPAddr
		if name == mapIP6 {
			addr = nftables.TypeIP6Addr
		}
		s.KeyType = nftables.MustConcatSetType(addr, nftables.TypeInetProto, nftables.TypeInetService)
		s.DataType = target(name == mapIP6)
	}
	return s
}

// target is the type of a pod's address and port.
func target(v6 bool) nftables.SetDatatype {
	if v6 {
		return nftables.MustConcatSetType(nftables.TypeIP6Addr, nftables.TypeInetService)
	}
	return nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
}

// ForwardDrops names the base chains of other tables that drop forwarded packets by
// policy. Rules of ours cannot override them: in nftables a drop anywhere is final.
func (t *Table) ForwardDrops() (drops []string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.begin(); err != nil {
		return nil, err
	}
	defer t.end(&err)
	chains, err := t.c.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list nftables chains: %w", err)
	}
	for _, c := range chains {
		if c.Hooknum == nil || *c.Hooknum != *nftables.ChainHookForward || c.Policy == nil || *c.Policy != nftables.ChainPolicyDrop {
			continue
		}
		if f := c.Table.Family; f == nftables.TableFamilyINet || f == nftables.TableFamilyIPv4 || f == nftables.TableFamilyIPv6 {
			drops = append(drops, c.Table.Name+"/"+c.Name)
		}
	}
	return drops, nil
}

// Remove deletes the table unless a pod still has a host port in it; it reports
// whether the table is gone.
func (t *Table) Remove() (gone bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.begin(); err != nil {
		if absent(err) {
			return true, nil
		}
		return false, err
	}
	defer t.end(&err)
	if ok, err := t.has(mapAny4); err != nil || !ok {
		return err == nil, err
	}
	for _, name := range portMaps {
		els, err := t.elements(name)
		if err != nil {
			return false, err
		}
		if len(els) > 0 {
			return false, nil
		}
	}
	t.c.DelTable(t.t)
	if err := t.c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return false, fmt.Errorf("delete nftables table %s: %w", TableName, err)
	}
	return true, nil
}

// elements lists a set, which must exist. Callers hold mu.
func (t *Table) elements(name string) ([]nftables.SetElement, error) {
	els, err := t.c.GetSetElements(t.set(name))
	if err != nil {
		return nil, fmt.Errorf("list nftables set %s: %w", name, err)
	}
	return els, nil
}

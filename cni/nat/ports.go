package nat

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// A Port leads a port of the node to one of a pod.
type Port struct {
	Proto         uint8      // IPPROTO_TCP, _UDP or _SCTP
	Host          netip.Addr // zero: all local addresses of the pod address's family
	HostPort      uint16
	Pod           netip.Addr
	ContainerPort uint16
}

func (p Port) String() string {
	names := map[uint8]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_SCTP: "sctp"}
	host := "*"
	if p.Host.IsValid() {
		host = p.Host.String()
	}
	return fmt.Sprintf("%s:%d/%s", host, p.HostPort, names[p.Proto])
}

// element returns the map that p belongs to and its element there. Every field of a
// concatenation is padded to 4 bytes.
func (p Port) element(id string) (string, nftables.SetElement) {
	name := mapAny4
	var key []byte
	if p.Host.IsValid() {
		name = mapIP4
		key = append(key, p.Host.AsSlice()...)
	}
	if p.Pod.Is6() {
		name = map[string]string{mapAny4: mapAny6, mapIP4: mapIP6}[name]
	}
	key = append(key, p.Proto, 0, 0, 0)
	key = append(binary.BigEndian.AppendUint16(key, p.HostPort), 0, 0)
	val := append(binary.BigEndian.AppendUint16(p.Pod.AsSlice(), p.ContainerPort), 0, 0)
	return name, nftables.SetElement{Key: key, Val: val, Comment: id}
}

// AddPorts opens the host ports of the pod id, all or none, and tells subnets the
// networks whose pods need their source address changed to reach them, since the
// answer would otherwise not come back through the node. Calling it again replaces
// what the pod had.
func (t *Table) AddPorts(id string, ports []Port, subnets []netip.Prefix) (err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.begin(); err != nil {
		return err
	}
	defer t.end(&err)
	if err := t.ensure(); err != nil {
		return err
	}
	want := map[string][]nftables.SetElement{}
	for _, p := range ports {
		if p.Host.IsValid() && p.Host.Is4() != p.Pod.Is4() {
			return fmt.Errorf("host port %v: families of host and pod differ: %w", p, errdef.ErrInvalid)
		}
		name, el := p.element(id)
		want[name] = append(want[name], el)
	}
	for name, els := range want {
		stale, err := t.conflicts(name, id, els)
		if err != nil {
			return err
		}
		if err := t.change(name, stale, els); err != nil {
			return err
		}
	}
	if _, err := t.addSubnets(setPods4, setPods6, subnets); err != nil {
		return err
	}
	if err := t.c.Flush(); err != nil {
		return fmt.Errorf("add host ports: %w", err)
	}
	return t.forget(ports)
}

// conflicts finds elements that must go first: the pod's own of an earlier try, and
// those that lead to an address which is now this pod's. A key of another pod is an
// error that names it.
func (t *Table) conflicts(name, id string, want []nftables.SetElement) (stale []nftables.SetElement, err error) {
	have, err := t.elements(name)
	if err != nil {
		return nil, err
	}
	addrLen := len(want[0].Val) - 4
	for _, h := range have {
		if h.Comment == id || bytes.Equal(h.Val[:addrLen], want[0].Val[:addrLen]) {
			stale = append(stale, h)
			continue
		}
		for _, w := range want {
			if bytes.Equal(h.Key, w.Key) {
				port := binary.BigEndian.Uint16(w.Key[len(w.Key)-4:])
				return nil, fmt.Errorf("host port %d is in use by pod %s: %w", port, h.Comment, errdef.ErrExists)
			}
		}
	}
	return stale, nil
}

// change puts the removal and addition of elements into the batch.
func (t *Table) change(name string, del, add []nftables.SetElement) error {
	s := t.set(name)
	if len(del) > 0 {
		if err := t.c.SetDeleteElements(s, del); err != nil {
			return fmt.Errorf("describe elements of %s: %w", name, err)
		}
	}
	if len(add) > 0 {
		if err := t.c.SetAddElements(s, add); err != nil {
			return fmt.Errorf("describe elements of %s: %w", name, err)
		}
	}
	return nil
}

// RemovePorts closes all host ports of the pod id. It succeeds when there are none,
// or no table at all.
func (t *Table) RemovePorts(id string) (err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.begin(); err != nil {
		if absent(err) {
			return nil
		}
		return err
	}
	defer t.end(&err)
	if ok, err := t.has(mapAny4); err != nil || !ok {
		return err
	}
	var gone []Port
	for _, name := range portMaps {
		have, err := t.elements(name)
		if err != nil {
			return err
		}
		var mine []nftables.SetElement
		for _, h := range have {
			if h.Comment == id {
				mine = append(mine, h)
				gone = append(gone, decode(name, h))
			}
		}
		if err := t.change(name, mine, nil); err != nil {
			return err
		}
	}
	if len(gone) == 0 {
		return nil
	}
	if err := t.c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove host ports: %w", err)
	}
	return t.forget(gone)
}

// Ports lists the host ports of the pod id.
func (t *Table) Ports(id string) (ports []Port, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.begin(); err != nil {
		return nil, err
	}
	defer t.end(&err)
	if ok, err := t.has(mapAny4); err != nil || !ok {
		return nil, err
	}
	for _, name := range portMaps {
		have, err := t.elements(name)
		if err != nil {
			return nil, err
		}
		for _, h := range have {
			if h.Comment == id {
				ports = append(ports, decode(name, h))
			}
		}
	}
	return ports, nil
}

// decode is the inverse of element.
func decode(name string, e nftables.SetElement) Port {
	k, v := len(e.Key), len(e.Val)
	p := Port{Proto: e.Key[k-8], HostPort: binary.BigEndian.Uint16(e.Key[k-4:]), ContainerPort: binary.BigEndian.Uint16(e.Val[v-4:])}
	p.Pod, _ = netip.AddrFromSlice(e.Val[:v-4])
	if name == mapIP4 || name == mapIP6 {
		p.Host, _ = netip.AddrFromSlice(e.Key[:k-8])
	}
	return p
}

// forget drops the kernel's memory of UDP flows to the ports. A flow that began before
// the rules changed would follow the old ones for as long as packets come, since
// there is no connection to be made anew. A kernel without ctnetlink is tolerated.
func (t *Table) forget(ports []Port) error {
	var v4, v6 []netlink.CustomConntrackFilter
	for _, p := range ports {
		if p.Proto != unix.IPPROTO_UDP {
			continue
		}
		f := &netlink.ConntrackFilter{}
		err := errors.Join(f.AddProtocol(unix.IPPROTO_UDP), f.AddPort(netlink.ConntrackOrigDstPort, p.HostPort))
		if err == nil && p.Host.IsValid() {
			err = f.AddIP(netlink.ConntrackOrigDstIP, p.Host.AsSlice())
		}
		if err != nil {
			return fmt.Errorf("describe flows of host port %v: %w", p, err)
		}
		if p.Pod.Is4() {
			v4 = append(v4, f)
		} else {
			v6 = append(v6, f)
		}
	}
	if t.ct == nil {
		return nil
	}
	for fam, fs := range map[netlink.InetFamily][]netlink.CustomConntrackFilter{unix.AF_INET: v4, unix.AF_INET6: v6} {
		if len(fs) == 0 {
			continue
		}
		_, err := t.ct.ConntrackDeleteFilters(netlink.ConntrackTable, fam, fs...)
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP) &&
			!errors.Is(err, netlink.ErrDumpInterrupted) {
			return fmt.Errorf("forget UDP flows: %w", err)
		}
	}
	return nil
}

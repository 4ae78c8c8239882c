package builtin

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/nl"
)

// vethName is the name of the host's end. It follows from the attachment, so that a
// crash between making a link and recording it leaves nothing that cannot be found.
func vethName(id, ifName string) string {
	sum := sha256.Sum256([]byte(id + "/" + ifName))
	return "veth" + hex.EncodeToString(sum[:])[:unix.IFNAMSIZ-1-len("veth")]
}

// randomMAC is a locally administered unicast address.
func randomMAC() net.HardwareAddr {
	b := make(net.HardwareAddr, 6)
	_, _ = rand.Read(b) // never fails
	b[0] = b[0]&^1 | 2
	return b
}

// podMAC derives the pod's address from its IP, so that a neighbour that remembers the
// previous owner of the IP is right by accident. Gratuitous ARP alone does not help:
// Linux ignores it for entries younger than a second.
func podMAC(conf *bridgeConf, res *types100.Result) net.HardwareAddr {
	if conf.mac != nil {
		return conf.mac
	}
	if len(res.IPs) == 0 {
		return randomMAC()
	}
	ip := res.IPs[0].Address.IP
	for _, c := range res.IPs {
		if c.Address.IP.To4() != nil {
			ip = c.Address.IP.To4()
			break
		}
	}
	return append(net.HardwareAddr{0x0a, 0x58}, ip[len(ip)-4:]...)
}

// bridgeLink is what is said of the bridge in results.
type bridgeLink struct {
	index, mtu int
	mac        net.HardwareAddr
}

// ensureBridge makes the bridge or checks the one that is there. In steady state it asks
// by ioctl only, which waits for no other pod's link.
func (p *Plugins) ensureBridge(conf *bridgeConf) (bridgeLink, error) {
	br, err := p.lookAtBridge(conf)
	if errors.Is(err, unix.ENODEV) {
		if err := p.makeBridge(conf); err != nil {
			return br, err
		}
		br, err = p.lookAtBridge(conf)
	}
	if err != nil {
		return br, fmt.Errorf("look up bridge %s: %w", conf.BrName, err)
	}
	flags, err := p.host.Flags(conf.BrName)
	if err != nil {
		return br, fmt.Errorf("look up bridge %s: %w", conf.BrName, err)
	}
	if conf.PromiscMode && flags&unix.IFF_PROMISC == 0 {
		if err := p.links.SetPromiscOn(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: br.index}}); err != nil {
			return br, fmt.Errorf("set bridge %s promiscuous: %w", conf.BrName, err)
		}
	}
	if flags&unix.IFF_UP == 0 {
		var b nl.Batch
		b.Link(unix.RTM_NEWLINK, 0, br.index, unix.IFF_UP, unix.IFF_UP)
		if err := p.host.Do(&b); err != nil {
			return br, fmt.Errorf("bring bridge %s up: %w", conf.BrName, err)
		}
	}
	return br, nil
}

func (p *Plugins) makeBridge(conf *bridgeConf) error {
	var b nl.Batch
	b.Link(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, 0, 0, 0)
	b.Allow(unix.EEXIST)
	b.String(unix.IFLA_IFNAME, conf.BrName)
	// A set address is fixed; otherwise the bridge takes over its ports' lowest one, and
	// pods lose their gateway whenever that changes.
	b.Bytes(unix.IFLA_ADDRESS, randomMAC())
	if conf.MTU > 0 {
		b.Uint32(unix.IFLA_MTU, uint32(conf.MTU))
	}
	b.Nest(unix.IFLA_LINKINFO, func() { b.String(unix.IFLA_INFO_KIND, "bridge") })
	if err := p.host.Do(&b); err != nil {
		return fmt.Errorf("make bridge %s: %w", conf.BrName, err)
	}
	return sysctl{"ipv6/conf/" + conf.BrName + "/accept_dad", "0"}.write()
}

// lookAtBridge finds the bridge. That it is one is asked once for an index: links keep
// their kind, and the kernel hands indexes out in turn.
func (p *Plugins) lookAtBridge(conf *bridgeConf) (br bridgeLink, err error) {
	if br.index, err = p.host.Index(conf.BrName); err != nil {
		return br, err
	}
	mac, err := p.host.MAC(conf.BrName)
	if err != nil {
		return br, err
	}
	br.mac = mac[:]
	if br.mtu, err = p.host.MTU(conf.BrName); err != nil {
		return br, err
	}
	p.mu.Lock()
	known := p.bridges[conf.BrName] == br.index
	p.mu.Unlock()
	if known {
		return br, nil
	}
	l, err := p.links.LinkByIndex(br.index)
	if err != nil {
		return br, err
	}
	if l.Type() != "bridge" {
		return br, fmt.Errorf("it is a %s, not a bridge: %w", l.Type(), errdef.ErrInvalid)
	}
	p.mu.Lock()
	p.bridges[conf.BrName] = br.index
	p.mu.Unlock()
	return br, nil
}

// ensureGateway gives the bridge the gateway addresses and turns forwarding on.
func (p *Plugins) ensureGateway(br bridgeLink, conf *bridgeConf, res *types100.Result) error {
	have, err := p.host.Addrs(br.index)
	for range 3 { // a change in the middle of the list
		if !errors.Is(err, unix.EINTR) {
			break
		}
		have, err = p.host.Addrs(br.index)
	}
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", conf.BrName, err)
	}
	for _, ip := range res.IPs {
		want, ok := prefix(ip.Gateway, ip.Address.Mask)
		if !ok {
			return fmt.Errorf("gateway %v of %s: %w", ip.Gateway, conf.BrName, errdef.ErrInvalid)
		}
		if !slices.Contains(have, want) {
			if err := p.addGateway(br, conf, want, have); err != nil {
				return err
			}
		}
		forward := sysctl{"ipv4/ip_forward", "1"}
		if want.Addr().Is6() {
			forward = sysctl{"ipv6/conf/all/forwarding", "1"}
		}
		if err := forward.set(); err != nil {
			return err
		}
	}
	return nil
}

// addGateway adds an address to the bridge. One that overlaps is in the way: it would
// make two gateways for the same pods. One of another subnet is left alone, unlike in
// the plugin, because pods of the node's previous range still use it.
func (p *Plugins) addGateway(br bridgeLink, conf *bridgeConf, want netip.Prefix, have []netip.Prefix) error {
	var b nl.Batch
	for _, h := range have {
		if !h.Overlaps(want) {
			continue
		}
		if !conf.ForceAddress {
			return fmt.Errorf("bridge %s has address %v, which overlaps %v, and forceAddress is off: %w", conf.BrName, h, want, errdef.ErrExists)
		}
		b.Addr(unix.RTM_DELADDR, 0, br.index, h, 0)
		b.Allow(unix.EADDRNOTAVAIL)
	}
	flags := uint8(0)
	if want.Addr().Is6() {
		flags = unix.IFA_F_NODAD
		// A node that boots with ipv6.disable=0 but disable_ipv6=1 for new links would
		// refuse the address.
		if err := (sysctl{"ipv6/conf/" + conf.BrName + "/disable_ipv6", "0"}).set(); err != nil {
			return err
		}
	}
	b.Addr(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, br.index, want, flags)
	b.Allow(unix.EEXIST)
	if err := p.host.Do(&b); err != nil {
		return fmt.Errorf("add address %v to %s: %w", want, conf.BrName, err)
	}
	return nil
}

// link is a pod's link to the bridge while it is made.
type link struct {
	c      Call
	conf   *bridgeConf
	bridge bridgeLink
	ns     *os.File
	res    *types100.Result
	name   string // of the node's end

	mac, podMAC net.HardwareAddr
}

// connect makes the link between bridge and pod and configures the pod's end.
func (p *Plugins) connect(l *link) (mtu int, err error) {
	err = p.makeVeth(l)
	if errors.Is(err, unix.EEXIST) {
		// The name is this attachment's alone: an earlier try was cut short.
		if err := p.cutVeth(l.name, true); err != nil {
			return 0, err
		}
		err = p.makeVeth(l)
	}
	if err == nil {
		mtu, err = l.configurePod()
	}
	if err != nil {
		return 0, errors.Join(err, p.cutVeth(l.name, true))
	}
	return mtu, nil
}

// Attributes that x/sys does not name (include/uapi/linux/if_link.h).
const (
	vethInfoPeer       = 1
	inet6AddrGenMode   = 8
	inet6AddrGenNone   = 1
	infoSlaveKind      = 4
	infoSlaveData      = 5
	brportModeHairpin  = unix.IFLA_BRPORT_MODE
	brportModeIsolated = 33
)

// makeVeth makes the pair, the pod's end directly in its namespace: moving it there
// would cost RCU grace periods.
func (p *Plugins) makeVeth(l *link) error {
	var b nl.Batch
	both := func(name string, mac net.HardwareAddr) {
		b.String(unix.IFLA_IFNAME, name)
		b.Bytes(unix.IFLA_ADDRESS, mac)
		if l.conf.MTU > 0 {
			b.Uint32(unix.IFLA_MTU, uint32(l.conf.MTU))
		}
		// By default there is a queue for each CPU, with files in sysfs and an event for each. A
		// veth takes no lock on the way out; on the way in its packets wait in the CPU's own queue.
		b.Uint32(unix.IFLA_NUM_TX_QUEUES, 1)
		b.Uint32(unix.IFLA_NUM_RX_QUEUES, 1)
	}
	b.Link(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, 0, 0, 0)
	both(l.name, l.mac)
	b.Uint32(unix.IFLA_MASTER, uint32(l.bridge.index))
	b.Nest(unix.IFLA_LINKINFO, func() {
		b.String(unix.IFLA_INFO_KIND, "veth")
		b.Nest(unix.IFLA_INFO_DATA, func() {
			b.Nest(vethInfoPeer, func() {
				b.Raw(nl.LinkInfo(unix.AF_UNSPEC, 0, 0, 0))
				both(l.c.IfName, l.podMAC)
				b.Uint32(unix.IFLA_NET_NS_FD, uint32(l.ns.Fd()))
			})
		})
	})
	if l.conf.HairpinMode || l.conf.Isolation {
		b.Link(unix.RTM_NEWLINK, 0, 0, 0, 0)
		b.String(unix.IFLA_IFNAME, l.name)
		b.Nest(unix.IFLA_LINKINFO, func() {
			b.String(infoSlaveKind, "bridge")
			b.Nest(infoSlaveData, func() {
				if l.conf.HairpinMode {
					b.Uint8(brportModeHairpin, 1)
				}
				if l.conf.Isolation {
					b.Uint8(brportModeIsolated, 1)
				}
			})
		})
	}
	if p.ipv6 {
		// The node's end is a port and needs no address of its own: each one would be
		// announced, joined to groups, and be in every list of the node's addresses.
		b.Link(unix.RTM_NEWLINK, 0, 0, 0, 0)
		b.Allow(nl.Any) // it saves work, no more
		b.String(unix.IFLA_IFNAME, l.name)
		b.Nest(unix.IFLA_AF_SPEC, func() {
			b.Nest(unix.AF_INET6, func() { b.Uint8(inet6AddrGenMode, inet6AddrGenNone) })
		})
	}
	b.Link(unix.RTM_NEWLINK, 0, 0, unix.IFF_UP, unix.IFF_UP)
	b.String(unix.IFLA_IFNAME, l.name)
	if err := p.host.Do(&b); err != nil {
		return fmt.Errorf("make link %s to %s in the pod: %w", l.name, l.c.IfName, err)
	}
	return nil
}

// configurePod sets addresses and routes, in one send. Addresses come before up, so that
// the kernel announces them when the link comes up.
func (l *link) configurePod() (mtu int, err error) {
	var pod *nl.Conn
	err = inside(l.ns, func() (err error) {
		if pod, err = nl.Open(unix.NETLINK_ROUTE); err != nil {
			return err
		}
		return l.podSysctls()
	})
	if pod != nil {
		defer pod.Close() //nolint:errcheck // a socket that nothing waits in
	}
	if err != nil {
		return 0, err
	}
	index, err := pod.Index(l.c.IfName)
	if err != nil {
		return 0, fmt.Errorf("look up %s in the pod: %w", l.c.IfName, err)
	}
	if mtu, err = pod.MTU(l.c.IfName); err != nil {
		return 0, fmt.Errorf("look up %s in the pod: %w", l.c.IfName, err)
	}
	var b nl.Batch
	loopbackUp(&b)
	what := []string{"bring lo up"}
	for _, ip := range l.res.IPs {
		a, ok := prefix(ip.Address.IP, ip.Address.Mask)
		if !ok {
			return 0, fmt.Errorf("address %v: %w", ip.Address, errdef.ErrInvalid)
		}
		flags := uint8(0)
		if a.Addr().Is6() && !l.conf.EnableDad {
			flags = unix.IFA_F_NODAD // duplicate address detection takes 1.2 s
		}
		b.Addr(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, index, a, flags)
		what = append(what, "add address "+a.String()+" to "+l.c.IfName)
	}
	b.Link(unix.RTM_NEWLINK, 0, index, unix.IFF_UP, unix.IFF_UP)
	what = append(what, "bring "+l.c.IfName+" up")
	for _, r := range l.res.Routes {
		rt, err := l.route(r)
		if err != nil {
			return 0, err
		}
		b.Route(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, index, rt)
		b.Allow(unix.EEXIST)
		what = append(what, fmt.Sprintf("add route to %v via %v", rt.Dst, rt.Gateway))
	}
	err = pod.Do(&b)
	if e, ok := errors.AsType[*nl.Error](err); ok {
		return 0, fmt.Errorf("in the pod: %s: %w", what[e.Index], err)
	}
	return mtu, err
}

// announced says whether neighbours must be told of the pod. Telling all costs every pod
// of the bridge a packet for each pod that starts. Where the bridge is the only way out, nobody
// needs it: the MAC follows from the IPv4 address, so that what a neighbour knows of the
// last pod with that address is true of this one.
func (l *link) announced() bool {
	if !l.conf.IsGW || l.conf.mac != nil {
		return true
	}
	have4 := slices.ContainsFunc(l.res.IPs, func(ip *types100.IPConfig) bool { return ip.Address.IP.To4() != nil })
	return have4 && slices.ContainsFunc(l.res.IPs, func(ip *types100.IPConfig) bool {
		// An IPv6 address that comes again has another MAC then, but in a range that is
		// handed out in turn it does not within the time that neighbours remember.
		ones, bits := ip.Address.Mask.Size()
		return bits == 128 && bits-ones < 16
	})
}

func (l *link) podSysctls() error {
	v4, v6 := "ipv4/conf/"+l.c.IfName+"/", "ipv6/conf/"+l.c.IfName+"/"
	var set []sysctl
	if l.announced() {
		set = append(set, sysctl{v4 + "arp_notify", "1"}, sysctl{v6 + "ndisc_notify", "1"})
	}
	if !l.conf.EnableDad {
		set = append(set, sysctl{v6 + "accept_dad", "0"})
	}
	if l.conf.IsGW {
		// The gateway is known. Asking for routers would cost three more packets for each
		// pod, and obeying one lets a pod take over the others' traffic (CVE-2020-10749).
		set = append(set, sysctl{v6 + "accept_ra", "0"})
	}
	for _, s := range set {
		if err := s.write(); err != nil {
			return err
		}
	}
	if !slices.ContainsFunc(l.res.IPs, func(ip *types100.IPConfig) bool { return ip.Address.IP.To4() == nil }) {
		return nil
	}
	return sysctl{v6 + "disable_ipv6", "0"}.set()
}

func (l *link) route(r *types.Route) (nl.Route, error) {
	dst, ok := prefix(r.Dst.IP, r.Dst.Mask)
	if !ok {
		return nl.Route{}, fmt.Errorf("route to %v: %w", r.Dst, errdef.ErrInvalid)
	}
	rt := nl.Route{Dst: dst, Metric: uint32(r.Priority), MTU: uint32(r.MTU), AdvMSS: uint32(r.AdvMSS)}
	if r.Table != nil {
		rt.Table = uint32(*r.Table)
	}
	if r.Scope != nil {
		rt.Scope = uint8(*r.Scope)
	}
	gw := r.GW
	if gw == nil {
		gw = gatewayFor(l.res, dst.Addr().Is4())
	}
	via, _ := netip.AddrFromSlice(gw)
	rt.Gateway = via.Unmap()
	return rt, nil
}

func gatewayFor(res *types100.Result, is4 bool) net.IP {
	for _, ip := range res.IPs {
		if a, ok := netip.AddrFromSlice(ip.Gateway); ok && a.Unmap().Is4() == is4 {
			return ip.Gateway
		}
	}
	return nil
}

// cutVeth takes the host's end out of service, or deletes the link. It succeeds when
// there is none.
func (p *Plugins) cutVeth(name string, del bool) error {
	var b nl.Batch
	what := "bring down"
	if del {
		what = "delete"
		b.Link(unix.RTM_DELLINK, 0, 0, 0, 0)
	} else {
		b.Link(unix.RTM_NEWLINK, 0, 0, 0, unix.IFF_UP)
	}
	b.Allow(unix.ENODEV)
	b.String(unix.IFLA_IFNAME, name)
	if err := p.host.Do(&b); err != nil {
		return fmt.Errorf("%s %s: %w", what, name, err)
	}
	return nil
}

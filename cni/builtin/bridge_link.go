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

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
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

// ensureBridge makes the bridge or checks the one that is there.
func (p *Plugins) ensureBridge(conf *bridgeConf) (netlink.Link, error) {
	l, err := p.host.LinkByName(conf.BrName)
	if isLinkNotFound(err) {
		la := netlink.NewLinkAttrs()
		la.Name, la.MTU = conf.BrName, conf.MTU
		// A set address is fixed; otherwise the bridge takes over its ports' lowest
		// one, and pods lose their gateway whenever that changes.
		la.HardwareAddr = randomMAC()
		if err := p.host.LinkAdd(&netlink.Bridge{LinkAttrs: la}); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("make bridge %s: %w", conf.BrName, err)
		}
		if err := (sysctl{"ipv6/conf/" + conf.BrName + "/accept_dad", "0"}).set(false); err != nil {
			return nil, err
		}
		l, err = p.host.LinkByName(conf.BrName)
	}
	if err != nil {
		return nil, fmt.Errorf("look up bridge %s: %w", conf.BrName, err)
	}
	if l.Type() != "bridge" {
		return nil, fmt.Errorf("%s is a %s, not a bridge: %w", conf.BrName, l.Type(), errdef.ErrInvalid)
	}
	if conf.PromiscMode && l.Attrs().Promisc == 0 {
		if err := p.host.SetPromiscOn(l); err != nil {
			return nil, fmt.Errorf("set bridge %s promiscuous: %w", conf.BrName, err)
		}
	}
	if l.Attrs().Flags&net.FlagUp == 0 {
		if err := p.host.LinkSetUp(l); err != nil {
			return nil, fmt.Errorf("bring bridge %s up: %w", conf.BrName, err)
		}
	}
	return l, nil
}

// ensureGateway gives the bridge the gateway addresses and turns forwarding on.
func (p *Plugins) ensureGateway(br netlink.Link, conf *bridgeConf, res *types100.Result) error {
	have, err := p.host.AddrList(br, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", conf.BrName, err)
	}
	for _, ip := range res.IPs {
		want := &netlink.Addr{IPNet: &net.IPNet{IP: ip.Gateway, Mask: ip.Address.Mask}}
		forward := sysctl{"ipv4/ip_forward", "1"}
		if ip.Gateway.To4() == nil {
			want.Flags = unix.IFA_F_NODAD
			forward = sysctl{"ipv6/conf/all/forwarding", "1"}
			// A node that boots with ipv6.disable=0 but disable_ipv6=1 for new links
			// would refuse the address.
			if err := (sysctl{"ipv6/conf/" + conf.BrName + "/disable_ipv6", "0"}).set(true); err != nil {
				return err
			}
		}
		if err := p.ensureAddr(br, conf, want, have); err != nil {
			return err
		}
		if err := forward.set(true); err != nil {
			return err
		}
	}
	return nil
}

// ensureAddr adds an address to the bridge. One that overlaps is in the way: it would
// make two gateways for the same pods. One of another subnet is left alone, unlike in
// the plugin, because pods of the node's previous range still use it.
func (p *Plugins) ensureAddr(br netlink.Link, conf *bridgeConf, want *netlink.Addr, have []netlink.Addr) error {
	for _, h := range have {
		if h.Equal(*want) {
			return nil
		}
		if !h.Contains(want.IP) && !want.Contains(h.IP) {
			continue
		}
		if !conf.ForceAddress {
			return fmt.Errorf("bridge %s has address %v, which overlaps %v, and forceAddress is off: %w", conf.BrName, h.IPNet, want.IPNet, errdef.ErrExists)
		}
		if err := p.host.AddrDel(br, &h); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("remove address %v from %s: %w", h.IPNet, conf.BrName, err)
		}
	}
	if err := p.host.AddrAdd(br, want); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add address %v to %s: %w", want.IPNet, conf.BrName, err)
	}
	return nil
}

// ensureVeth makes the link between bridge and pod, the pod's end directly in its
// namespace: moving it there would cost RCU grace periods.
func (p *Plugins) ensureVeth(c Call, conf *bridgeConf, br netlink.Link, ns *os.File, res *types100.Result) (host, pod *types100.Interface, err error) {
	la := netlink.NewLinkAttrs()
	la.Name, la.MTU, la.Flags = vethName(c.ContainerID, c.IfName), conf.MTU, net.FlagUp
	la.MasterIndex, la.HardwareAddr = br.Attrs().Index, randomMAC()
	veth := &netlink.Veth{LinkAttrs: la, PeerName: c.IfName, PeerTxQLen: -1, PeerHardwareAddr: podMAC(conf, res), PeerNamespace: netlink.NsFd(ns.Fd())}
	err = p.host.LinkAdd(veth)
	if errors.Is(err, unix.EEXIST) {
		// The name is this attachment's alone: an earlier try was cut short.
		if err := p.cutVeth(la.Name, true); err != nil {
			return nil, nil, err
		}
		err = p.host.LinkAdd(veth)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("make link %s to %s in the pod: %w", la.Name, c.IfName, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.cutVeth(la.Name, true))
		}
	}()
	if conf.HairpinMode {
		if err := p.host.LinkSetHairpin(veth, true); err != nil {
			return nil, nil, fmt.Errorf("set hairpin mode of %s: %w", la.Name, err)
		}
	}
	if conf.Isolation {
		if err := p.host.LinkSetIsolated(veth, true); err != nil {
			return nil, nil, fmt.Errorf("isolate %s: %w", la.Name, err)
		}
	}
	if pod, err = configurePod(ns, c, conf, res); err != nil {
		return nil, nil, err
	}
	return &types100.Interface{Name: la.Name, Mac: la.HardwareAddr.String(), Mtu: pod.Mtu}, pod, nil
}

// configurePod sets addresses and routes. Addresses come before up, so that the kernel
// announces them when the link comes up.
func configurePod(ns *os.File, c Call, conf *bridgeConf, res *types100.Result) (*types100.Interface, error) {
	var h *netlink.Handle
	err := inside(ns, func() (err error) {
		if h, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return fmt.Errorf("open route socket in the pod: %w", err)
		}
		return podSysctls(c.IfName, conf, res)
	})
	if h != nil {
		defer h.Close()
	}
	if err != nil {
		return nil, err
	}
	l, err := h.LinkByName(c.IfName)
	if err != nil {
		return nil, fmt.Errorf("look up %s in the pod: %w", c.IfName, err)
	}
	for _, ip := range res.IPs {
		a := &netlink.Addr{IPNet: &ip.Address}
		if ip.Address.IP.To4() == nil && !conf.EnableDad {
			a.Flags = unix.IFA_F_NODAD // duplicate address detection takes 1.2 s
		}
		if err := h.AddrAdd(l, a); err != nil {
			return nil, fmt.Errorf("add address %v to %s in the pod: %w", ip.Address.IP, c.IfName, err)
		}
	}
	if err := h.LinkSetUp(l); err != nil {
		return nil, fmt.Errorf("bring %s in the pod up: %w", c.IfName, err)
	}
	if err := addRoutes(h, l, res); err != nil {
		return nil, err
	}
	return &types100.Interface{Name: c.IfName, Mac: l.Attrs().HardwareAddr.String(), Mtu: l.Attrs().MTU, Sandbox: c.NetNS}, nil
}

func podSysctls(ifName string, conf *bridgeConf, res *types100.Result) error {
	set := []sysctl{{"ipv4/conf/" + ifName + "/arp_notify", "1"}}
	needed := false
	for _, ip := range res.IPs {
		needed = needed || ip.Address.IP.To4() == nil
	}
	if needed {
		set = append(set, sysctl{"ipv6/conf/" + ifName + "/disable_ipv6", "0"}, sysctl{"ipv6/conf/" + ifName + "/ndisc_notify", "1"})
	}
	for _, s := range set {
		if err := s.set(needed); err != nil {
			return err
		}
	}
	if conf.EnableDad {
		return nil
	}
	return sysctl{"ipv6/conf/" + ifName + "/accept_dad", "0"}.set(false)
}

func addRoutes(h *netlink.Handle, l netlink.Link, res *types100.Result) error {
	for _, r := range res.Routes {
		rt := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: &r.Dst, Gw: r.GW, MTU: r.MTU, AdvMSS: r.AdvMSS, Priority: r.Priority}
		if r.Table != nil {
			rt.Table = *r.Table
		}
		if r.Scope != nil {
			rt.Scope = netlink.Scope(*r.Scope)
		}
		if rt.Gw == nil {
			rt.Gw = gatewayFor(res, r.Dst.IP.To4() != nil)
		}
		if err := h.RouteAdd(rt); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add route to %v via %v in the pod: %w", r.Dst.String(), rt.Gw, err)
		}
	}
	return nil
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
	l, err := p.host.LinkByName(name)
	if isLinkNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look up %s: %w", name, err)
	}
	what, f := "bring down", p.host.LinkSetDown
	if del {
		what, f = "delete", p.host.LinkDel
	}
	if err := f(l); err != nil && !isLinkNotFound(err) {
		return fmt.Errorf("%s %s: %w", what, name, err)
	}
	return nil
}

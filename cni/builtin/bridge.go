package builtin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// bridgeConf is the configuration of the bridge plugin.
type bridgeConf struct {
	types.PluginConf
	BrName       string `json:"bridge"`
	IsGW         bool   `json:"isGateway"`
	IsDefaultGW  bool   `json:"isDefaultGateway"`
	ForceAddress bool   `json:"forceAddress"`
	IPMasq       bool   `json:"ipMasq"`
	MTU          int    `json:"mtu"`
	HairpinMode  bool   `json:"hairpinMode"`
	PromiscMode  bool   `json:"promiscMode"`
	EnableDad    bool   `json:"enabledad"`
	Isolation    bool   `json:"portIsolation"`
	Args         struct {
		CNI struct {
			MAC string `json:"mac"`
		} `json:"cni"`
	} `json:"args"`
	RuntimeConfig struct {
		MAC string `json:"mac"`
	} `json:"runtimeConfig"`

	mac     net.HardwareAddr
	manager addressManager // nil without one
}

// An addressManager hands addresses out and takes them back.
type addressManager interface {
	add(ctx context.Context, c Call) (*types100.Result, error)
	del(ctx context.Context, c Call) error
}

// delegated is an address manager that is a plugin of its own.
type delegated struct {
	p    *Plugins
	conf *bridgeConf
}

func readBridge(c Call) (*bridgeConf, error) {
	b := &bridgeConf{BrName: "cni0"}
	if err := json.Unmarshal(c.Conf, b); err != nil {
		return nil, fmt.Errorf("decode network configuration: %w: %w", err, errdef.ErrInvalid)
	}
	if c.Command == "DEL" || c.Command == "GC" {
		return b, nil // what was added must be removable whatever the configuration says
	}
	if err := unsupportedKeys(c.Conf, "vlan", "vlanTrunk", "macspoofchk", "disableContainerInterface", "uplinkInterface"); err != nil {
		return nil, err
	}
	if b.PromiscMode && b.HairpinMode {
		return nil, fmt.Errorf("hairpinMode and promiscMode exclude each other: %w", errdef.ErrInvalid)
	}
	b.IsGW = b.IsGW || b.IsDefaultGW
	mac := b.RuntimeConfig.MAC
	if mac == "" {
		mac = b.Args.CNI.MAC
	}
	if mac != "" {
		var err error
		if b.mac, err = net.ParseMAC(mac); err != nil {
			return nil, fmt.Errorf("mac %q: %w", mac, errdef.ErrInvalid)
		}
	}
	return b, nil
}

func (p *Plugins) bridge(ctx context.Context, c Call) (types.Result, error) {
	conf, err := readBridge(c)
	if err != nil {
		return nil, err
	}
	if conf.IPAM.Type != "" {
		conf.manager = &delegated{p, conf}
	}
	switch c.Command {
	case "ADD":
		res, err := p.bridgeAdd(ctx, c, conf)
		if err != nil {
			return nil, err
		}
		return res, nil
	case "DEL":
		return nil, p.bridgeDel(ctx, c, conf)
	case "CHECK":
		return nil, p.bridgeCheck(ctx, c, conf)
	case "GC", "STATUS":
		if conf.manager == nil {
			return nil, nil
		}
		_, err := p.delegate(ctx, conf.IPAM.Type, c)
		return nil, err
	}
	return nil, unknown(c)
}

// bridgeAdd asks for addresses first: a full range must leave no link behind, and the
// address decides the MAC.
func (p *Plugins) bridgeAdd(ctx context.Context, c Call, conf *bridgeConf) (res *types100.Result, err error) {
	ns, err := mustNetNS(c.NetNS)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	res = &types100.Result{}
	if conf.manager != nil {
		if res, err = conf.manager.add(ctx, c); err != nil {
			return nil, err
		}
		defer func() {
			if err != nil {
				err = errors.Join(err, conf.manager.del(context.WithoutCancel(ctx), c))
			}
		}()
	}
	res.CNIVersion = types100.ImplementedSpecVersion
	gateways(conf, res)
	br, err := p.ensureNetwork(conf, res)
	if err != nil {
		return nil, err
	}
	l := &link{c: c, conf: conf, bridge: br, ns: ns, res: res, name: vethName(c.ContainerID, c.IfName), mac: randomMAC(), podMAC: podMAC(conf, res)}
	mtu, err := p.connect(l)
	if err != nil {
		return nil, err
	}
	res.Interfaces = []*types100.Interface{
		{Name: conf.BrName, Mac: br.mac.String(), Mtu: br.mtu},
		{Name: l.name, Mac: l.mac.String(), Mtu: mtu},
		{Name: c.IfName, Mac: l.podMAC.String(), Mtu: mtu, Sandbox: c.NetNS}}
	for _, ip := range res.IPs {
		ip.Interface = new(2)
	}
	if conf.DNS.Nameservers != nil || conf.DNS.Search != nil || conf.DNS.Options != nil || conf.DNS.Domain != "" {
		res.DNS = conf.DNS
	}
	return res, nil
}

// ensureNetwork makes what all pods of the network share.
func (p *Plugins) ensureNetwork(conf *bridgeConf, res *types100.Result) (bridgeLink, error) {
	br, err := p.ensureBridge(conf)
	if err != nil {
		return br, err
	}
	if conf.IsGW {
		if err := p.ensureGateway(br, conf, res); err != nil {
			return br, err
		}
	}
	if conf.IPMasq {
		if err := p.nat.Masquerade(podSubnets(res)); err != nil {
			return br, err
		}
	}
	return br, nil
}

// add asks the address manager.
func (d *delegated) add(ctx context.Context, c Call) (*types100.Result, error) {
	out, err := d.p.delegate(ctx, d.conf.IPAM.Type, c)
	if err != nil {
		return nil, err
	}
	any, err := create.Create(d.conf.CNIVersion, out)
	if err == nil {
		var res *types100.Result
		if res, err = types100.NewResultFromResult(any); err == nil && len(res.IPs) > 0 {
			return res, nil
		}
	}
	if err == nil {
		err = fmt.Errorf("it gave no address: %w", errdef.ErrInvalid)
	}
	return nil, errors.Join(fmt.Errorf("address manager %s: %w", d.conf.IPAM.Type, err), d.del(context.WithoutCancel(ctx), c))
}

// del gives the addresses back.
func (d *delegated) del(ctx context.Context, c Call) error {
	c.Command = "DEL"
	_, err := d.p.delegate(ctx, d.conf.IPAM.Type, c)
	return err
}

// gateways fills in what the configuration implies: a gateway address for each IP, and
// a default route for each family unless there is one.
func gateways(conf *bridgeConf, res *types100.Result) {
	for _, ip := range res.IPs {
		if ip.Gateway == nil && conf.IsGW {
			first, _ := netip.AddrFromSlice(ip.Address.IP.Mask(ip.Address.Mask))
			ip.Gateway = first.Unmap().Next().AsSlice()
		}
		if !conf.IsDefaultGW || ip.Gateway == nil {
			continue
		}
		is4 := ip.Gateway.To4() != nil
		if slices.ContainsFunc(res.Routes, func(r *types.Route) bool {
			ones, _ := r.Dst.Mask.Size()
			return ones == 0 && (r.Dst.IP.To4() != nil) == is4
		}) {
			continue
		}
		dst := mustNet("::/0")
		if is4 {
			dst = mustNet("0.0.0.0/0")
		}
		res.Routes = append(res.Routes, &types.Route{Dst: dst, GW: ip.Gateway})
	}
}

// bridgeDel undoes bridgeAdd as far as it got. The host's end goes down before the
// address is free for another pod, since something may still pin the namespace. The
// link itself dies with the namespace: deleting it here would wait up to 30 ms for
// RCU. Without a namespace to die with, it is deleted.
func (p *Plugins) bridgeDel(ctx context.Context, c Call, conf *bridgeConf) error {
	ns, err := openNetNS(c.NetNS)
	if err != nil {
		return err
	}
	if ns != nil {
		defer ns.Close()
	}
	if err := p.cutVeth(vethName(c.ContainerID, c.IfName), ns == nil); err != nil || conf.manager == nil {
		return err
	}
	return conf.manager.del(ctx, c)
}

// bridgeCheck compares the previous result with the kernel.
func (p *Plugins) bridgeCheck(ctx context.Context, c Call, conf *bridgeConf) error {
	if conf.manager != nil {
		if _, err := p.delegate(ctx, conf.IPAM.Type, c); err != nil {
			return err
		}
	}
	prev, err := prevResult(c.Conf)
	if err != nil {
		return err
	}
	if prev == nil {
		return fmt.Errorf("previous result is missing: %w", errdef.ErrInvalid)
	}
	ns, err := mustNetNS(c.NetNS)
	if err != nil {
		return err
	}
	defer ns.Close()
	br, err := p.links.LinkByName(conf.BrName)
	if err != nil {
		return fmt.Errorf("look up bridge %s: %w", conf.BrName, err)
	}
	name := vethName(c.ContainerID, c.IfName)
	veth, err := p.links.LinkByName(name)
	if err != nil {
		return fmt.Errorf("look up %s: %w", name, err)
	}
	if veth.Attrs().MasterIndex != br.Attrs().Index {
		return fmt.Errorf("%s is not a port of %s: %w", name, conf.BrName, errdef.ErrNotFound)
	}
	return checkPod(ns, c.IfName, prev)
}

// checkPod looks for the addresses inside the pod.
func checkPod(ns *os.File, ifName string, prev *types100.Result) error {
	var h *netlink.Handle
	err := inside(ns, func() (err error) {
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return fmt.Errorf("open route socket in %s: %w", ns.Name(), err)
	}
	defer h.Close()
	l, err := h.LinkByName(ifName)
	if err != nil {
		return fmt.Errorf("look up %s in the pod: %w", ifName, err)
	}
	addrs, err := h.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", ifName, err)
	}
	for _, ip := range prev.IPs {
		if ip.Interface != nil && (*ip.Interface >= len(prev.Interfaces) || prev.Interfaces[*ip.Interface].Name != ifName) {
			continue
		}
		if !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IP.Equal(ip.Address.IP) }) {
			return fmt.Errorf("address %v on %s in the pod: %w", ip.Address.IP, ifName, errdef.ErrNotFound)
		}
	}
	return nil
}

func prefix(ip net.IP, mask net.IPMask) (netip.Prefix, bool) {
	a, ok := netip.AddrFromSlice(ip)
	ones, bits := mask.Size()
	if !ok || bits == 0 {
		return netip.Prefix{}, false
	}
	if a = a.Unmap(); a.Is4() && bits == 128 {
		ones -= 96
	}
	return netip.PrefixFrom(a, ones), true
}

package builtin

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/cni/nat"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

type portmapConf struct {
	SNAT          *bool `json:"snat"`
	RuntimeConfig struct {
		PortMaps []portEntry `json:"portMappings"`
	} `json:"runtimeConfig"`
}

type portEntry struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP"`
}

func (p *Plugins) portmap(c Call) (types.Result, error) {
	switch c.Command {
	case "ADD":
		return p.portmapAdd(c)
	case "DEL":
		return nil, p.portmapDel(c)
	case "CHECK":
		return nil, p.portmapCheck(c)
	case "GC", "STATUS": // ports are removed by records; rules are made on demand
		return nil, nil
	}
	return nil, unknown(c)
}

func (p *Plugins) portmapAdd(c Call) (types.Result, error) {
	ports, prev, err := readPorts(c)
	if err != nil {
		return nil, err
	}
	if prev == nil {
		return nil, fmt.Errorf("portmap must follow a plugin that gives an address: %w", errdef.ErrInvalid)
	}
	return prev, p.openPorts(c.ContainerID, ports, prev)
}

// portmapDel gets the mappings that ADD got, so without any there is nothing to look
// for. What they say is of no interest: the rules carry the pod's id.
func (p *Plugins) portmapDel(c Call) error {
	var conf portmapConf
	if err := json.Unmarshal(c.Conf, &conf); err == nil && len(conf.RuntimeConfig.PortMaps) == 0 {
		return nil
	}
	return p.nat.RemovePorts(c.ContainerID)
}

func (p *Plugins) portmapCheck(c Call) error {
	want, _, err := readPorts(c)
	if err != nil {
		return err
	}
	have, err := p.nat.Ports(c.ContainerID)
	if err != nil {
		return err
	}
	found := map[nat.Port]bool{}
	for _, h := range have {
		found[h] = true
	}
	for _, w := range want {
		if !found[w] {
			return fmt.Errorf("rule of host port %v: %w", w, errdef.ErrNotFound)
		}
	}
	return nil
}

// readPorts combines the mappings with the addresses of the pod: one rule for the
// first address of each family.
func readPorts(c Call) ([]nat.Port, *types100.Result, error) {
	var conf portmapConf
	if err := json.Unmarshal(c.Conf, &conf); err != nil {
		return nil, nil, fmt.Errorf("decode network configuration: %w: %w", err, errdef.ErrInvalid)
	}
	if err := unsupportedKeys(c.Conf, "conditionsV4", "conditionsV6", "masqAll", "markMasqBit", "externalSetMarkChain"); err != nil {
		return nil, nil, err
	}
	if conf.SNAT != nil && !*conf.SNAT {
		return nil, nil, fmt.Errorf("option snat: false is not supported by the built-in plugin: %w", errdef.ErrInvalid)
	}
	prev, err := prevResult(c.Conf)
	if err != nil || prev == nil {
		return nil, prev, err
	}
	ports, err := rulesFor(conf.RuntimeConfig.PortMaps, prev)
	return ports, prev, err
}

func rulesFor(entries []portEntry, res *types100.Result) (ports []nat.Port, err error) {
	for _, pod := range firstIPs(res) {
		for i, m := range entries {
			port, use, err := m.port(pod)
			if err != nil {
				return nil, fmt.Errorf("port mapping %d: %w", i, err)
			}
			if use {
				ports = append(ports, port)
			}
		}
	}
	return ports, nil
}

// port makes the rule of a mapping for a pod address; use is false when the mapping
// is for the other family, or has no host port.
func (m portEntry) port(pod netip.Addr) (p nat.Port, use bool, err error) {
	if m.HostPort == 0 {
		return p, false, nil
	}
	if m.HostPort < 0 || m.HostPort > 65535 || m.ContainerPort < 1 || m.ContainerPort > 65535 {
		return p, false, fmt.Errorf("port out of range: %w", errdef.ErrInvalid)
	}
	p = nat.Port{Pod: pod, HostPort: uint16(m.HostPort), ContainerPort: uint16(m.ContainerPort)}
	switch strings.ToLower(m.Protocol) {
	case "tcp", "":
		p.Proto = unix.IPPROTO_TCP
	case "udp":
		p.Proto = unix.IPPROTO_UDP
	case "sctp":
		p.Proto = unix.IPPROTO_SCTP
	default:
		return p, false, fmt.Errorf("protocol %q: %w", m.Protocol, errdef.ErrInvalid)
	}
	if m.HostIP == "" {
		return p, true, nil
	}
	host, err := netip.ParseAddr(m.HostIP)
	if err != nil {
		return p, false, fmt.Errorf("hostIP %q: %w", m.HostIP, errdef.ErrInvalid)
	}
	host = host.Unmap().WithZone("")
	if !host.IsUnspecified() {
		p.Host = host
	}
	return p, host.Is4() == pod.Is4(), nil
}

// firstIPs returns the pod's first address of each family.
func firstIPs(r *types100.Result) (ips []netip.Addr) {
	var have4, have6 bool
	for _, c := range r.IPs {
		if c.Interface != nil && *c.Interface >= 0 && *c.Interface < len(r.Interfaces) && r.Interfaces[*c.Interface].Sandbox == "" {
			continue
		}
		ip, ok := netip.AddrFromSlice(c.Address.IP)
		if ip = ip.Unmap(); !ok || ip.Is4() && have4 || ip.Is6() && have6 {
			continue
		}
		have4, have6 = have4 || ip.Is4(), have6 || ip.Is6()
		ips = append(ips, ip)
	}
	return ips
}

func podSubnets(r *types100.Result) (nets []netip.Prefix) {
	for _, c := range r.IPs {
		if p, ok := prefix(c.Address.IP, c.Address.Mask); ok {
			nets = append(nets, p.Masked())
		}
	}
	return nets
}

// localnet allows packets from 127.0.0.1 to leave through the interface that leads to
// the pod; there is no such switch for ::1. The nat table's guard chain keeps others
// from abusing it.
func (p *Plugins) localnet(r *types100.Result) error {
	for _, ip := range firstIPs(r) {
		if !ip.Is4() {
			continue
		}
		routes, err := p.links.RouteGet(ip.AsSlice())
		if err != nil || len(routes) == 0 {
			return fmt.Errorf("find the route to pod address %v: %w", ip, err)
		}
		l, err := p.links.LinkByIndex(routes[0].LinkIndex)
		if err != nil {
			return fmt.Errorf("look up interface to pod address %v: %w", ip, err)
		}
		return sysctl{"ipv4/conf/" + l.Attrs().Name + "/route_localnet", "1"}.set()
	}
	return nil
}

package cni

import (
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// The annotations that Kubernetes defines for bandwidth.
const (
	ingressAnnotation = "kubernetes.io/ingress-bandwidth"
	egressAnnotation  = "kubernetes.io/egress-bandwidth"
)

// runtimeConf is what libcni is told of a pod. Capabilities reach only those plugins
// that declare them.
func runtimeConf(p Pod) (*libcni.RuntimeConf, error) {
	caps := map[string]any{}
	var ports []map[string]any
	for _, m := range p.PortMappings {
		if m.HostPort == 0 {
			continue
		}
		e := map[string]any{"hostPort": m.HostPort, "containerPort": m.ContainerPort, "protocol": string(m.Protocol)}
		if m.HostIP.IsValid() {
			e["hostIP"] = m.HostIP.String()
		}
		ports = append(ports, e)
	}
	if len(ports) > 0 {
		caps["portMappings"] = ports
	}
	bw, err := bandwidth(p)
	if err != nil {
		return nil, err
	}
	if len(bw) > 0 {
		caps["bandwidth"] = bw
	}
	if len(p.DNS.Servers)+len(p.DNS.Searches)+len(p.DNS.Options) > 0 {
		caps["dns"] = p.DNS
	}
	if p.CgroupPath != "" {
		caps["cgroupPath"] = p.CgroupPath
	}
	if len(p.Annotations) > 0 {
		caps["io.kubernetes.cri.pod-annotations"] = p.Annotations
	}
	return &libcni.RuntimeConf{
		ContainerID: p.ID, NetNS: p.NetNS, IfName: IfName, CapabilityArgs: caps,
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", p.Namespace}, {"K8S_POD_NAME", p.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", p.ID}, {"K8S_POD_UID", p.UID}},
	}, nil
}

// bandwidth is the capability of the bandwidth plugin. It wants a burst with a rate;
// the largest that tc takes means none, as the kubelet's own network code had it.
func bandwidth(p Pod) (map[string]uint64, error) {
	out := map[string]uint64{}
	for _, d := range []struct {
		name, annotation string
		rate             uint64
	}{{"ingress", ingressAnnotation, p.Bandwidth.Ingress}, {"egress", egressAnnotation, p.Bandwidth.Egress}} {
		rate := d.rate
		if text := p.Annotations[d.annotation]; rate == 0 && text != "" {
			var err error
			if rate, err = quantity(text); err != nil {
				return nil, fmt.Errorf("annotation %s: %w", d.annotation, err)
			}
		}
		if rate > 0 {
			out[d.name+"Rate"], out[d.name+"Burst"] = rate, math.MaxInt32
		}
	}
	return out, nil
}

// quantity reads a Kubernetes quantity as a whole number, rounding up.
func quantity(s string) (uint64, error) {
	factor := 1.0
	number := s
	for suffix, f := range map[string]float64{"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "m": 1e-3,
		"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "Pi": 1 << 50} {
		if n, ok := strings.CutSuffix(s, suffix); ok {
			number, factor = n, f
			break
		}
	}
	v, err := strconv.ParseFloat(number, 64)
	if v *= factor; err != nil || !(v > 0 && v <= 1e18) {
		return 0, fmt.Errorf("%q is not a positive quantity: %w", s, errdef.ErrInvalid)
	}
	return uint64(math.Ceil(v)), nil
}

// attachment reads a plugin's result.
func attachment(network string, r types.Result) (*Attachment, error) {
	res, err := types100.NewResultFromResult(r)
	if err != nil {
		return nil, fmt.Errorf("convert result of network %s: %w", network, err)
	}
	raw, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode result of network %s: %w", network, err)
	}
	a := &Attachment{Network: network, Result: raw, DNS: DNS{res.DNS.Nameservers, res.DNS.Search, res.DNS.Options}}
	for _, i := range res.Interfaces {
		a.Interfaces = append(a.Interfaces, Interface{Name: i.Name, MAC: i.Mac, MTU: i.Mtu, Sandbox: i.Sandbox})
		switch {
		case i.Sandbox == "":
			a.HostInterface = i.Name // plugins name the bridge first and the pod's link after it
		case i.Name == IfName:
			a.MAC = i.Mac
		}
	}
	for _, ip := range res.IPs {
		if k := ip.Interface; k != nil && *k >= 0 && *k < len(res.Interfaces) && res.Interfaces[*k].Sandbox == "" {
			continue
		}
		if addr, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			a.IPs = append(a.IPs, addr.Unmap())
		}
	}
	if len(a.IPs) == 0 {
		// The kubelet re-creates a pod without an address, for ever.
		return nil, fmt.Errorf("network %s gave the pod no address", network)
	}
	return a, nil
}

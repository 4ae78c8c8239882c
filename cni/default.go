package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/containernetworking/cni/libcni"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

const cidrFile = "pod-cidr.json"

// The subnets of the default network until somebody says otherwise.
var (
	defaultSubnet4 = netip.MustParsePrefix("10.88.0.0/16")
	defaultSubnet6 = netip.MustParsePrefix("fd00:10:88::/64")
)

func (d DefaultNetwork) withDefaults() DefaultNetwork {
	if d.Name == "" {
		d.Name = "cri-runtime"
	}
	if d.Bridge == "" {
		d.Bridge = "cri0"
	}
	return d
}

// conflist writes the configuration that an administrator would.
func (d DefaultNetwork) conflist(subnets []netip.Prefix, dataDir string) (*loaded, error) {
	var ranges [][]map[string]string
	var routes []map[string]string
	for _, s := range subnets {
		ranges = append(ranges, []map[string]string{{"subnet": s.Masked().String()}})
		dst := "0.0.0.0/0"
		if s.Addr().Is6() {
			dst = "::/0"
		}
		routes = append(routes, map[string]string{"dst": dst})
	}
	b, err := json.Marshal(map[string]any{
		"cniVersion": "1.1.0", "name": d.Name,
		"plugins": []map[string]any{
			{"type": "bridge", "bridge": d.Bridge, "isGateway": true, "ipMasq": !d.NoMasq, "hairpinMode": true, "mtu": d.MTU,
				"ipam": map[string]any{"type": "host-local", "dataDir": dataDir, "ranges": ranges, "routes": routes}},
			{"type": "portmap", "capabilities": map[string]bool{"portMappings": true}},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("write default network: %w", err)
	}
	list, err := libcni.NetworkConfFromBytes(b)
	if err != nil {
		return nil, fmt.Errorf("default network: %w", err)
	}
	return &loaded{list: list, source: "the built-in network", here: true}, nil
}

// defaultSubnets are the given ones, or the node's ranges, or our own.
func (d DefaultNetwork) defaultSubnets(stateDir string) ([]netip.Prefix, error) {
	if len(d.Subnets) > 0 {
		return d.Subnets, nil
	}
	b, err := os.ReadFile(filepath.Join(stateDir, cidrFile))
	if err == nil {
		var kept []netip.Prefix
		if err := json.Unmarshal(b, &kept); err == nil && len(kept) > 0 {
			return kept, nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read pod ranges: %w", err)
	}
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		return []netip.Prefix{defaultSubnet4}, nil
	}
	return []netip.Prefix{defaultSubnet4, defaultSubnet6}, nil
}

// UpdatePodCIDR tells the node's ranges to the default network, unless its subnets
// were configured. Pods that have an address keep it. The ranges are kept until the
// next boot: the kubelet does not repeat them when only the runtime restarts.
func (n *Network) UpdatePodCIDR(cidrs []netip.Prefix) error {
	d := n.conf.Default
	if d == nil || len(d.Subnets) > 0 || len(cidrs) == 0 {
		return nil
	}
	for _, c := range cidrs {
		if !c.IsValid() || c.Bits() > c.Addr().BitLen()-2 {
			return fmt.Errorf("pod range %v: %w", c, errdef.ErrInvalid)
		}
	}
	l, err := d.conflist(cidrs, n.data)
	if err != nil {
		return err
	}
	b, err := json.Marshal(slices.Clone(cidrs))
	if err != nil {
		return fmt.Errorf("encode pod ranges: %w", err)
	}
	if err := replaceFile(n.conf.StateDir, cidrFile, b); err != nil {
		return err
	}
	return n.use(l)
}

// dataDir is where the default network's addresses are. Up to version 0.1 they were where
// they survive a reboot: as long as a pod of this boot has one there, all do.
func (n *Network) dataDir() (string, error) {
	dir, old := filepath.Join(n.conf.StateDir, "networks"), filepath.Join(n.conf.CacheDir, "networks")
	files, err := filepath.Glob(filepath.Join(old, "*", "*"))
	if err != nil || old == dir || !slices.ContainsFunc(files, isAddress) {
		return dir, err
	}
	ids, err := n.records.ids()
	if err != nil {
		return "", err
	}
	for _, id := range ids {
		rec, err := n.records.read(id)
		if err == nil && rec != nil && rec.Boot == n.boot && bytes.Contains(rec.Conf, []byte(old)) {
			return old, nil
		}
	}
	return dir, nil
}

func isAddress(file string) bool {
	_, err := netip.ParseAddr(filepath.Base(file))
	return err == nil
}

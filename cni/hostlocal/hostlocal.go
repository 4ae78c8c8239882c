// Package hostlocal hands out IP addresses of ranges and remembers them as files, one
// per address, in the layout of the host-local CNI plugin: DIR/NETWORK/ADDRESS holds
// the container id, CR LF and the interface name, last_reserved_ip.N the last address
// of range set N, and lock is flock'ed for every change. A node can change between this
// package and the plugin at any time.
//
// An address file appears with its content (link of a finished file), so a crash
// leaves no nameless reservation. Nothing is synced: an address that a power cut
// forgets belonged to a pod that the power cut ended.
//
// It refuses ranges that overlap, have fewer than two usable addresses, or mix families in one set.
// It starts no goroutine; waiting for the lock blocks in the kernel.
package hostlocal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// DefaultDir is where the plugin keeps its files.
const DefaultDir = "/var/lib/cni/networks"

// A Request names whose addresses are meant.
type Request struct {
	ContainerID string
	IfName      string
	Args        string // CNI_ARGS
	Conf        []byte // the network configuration, as the plugin gets it on stdin
}

// A Pool is a configuration that was read once for many requests. Their Conf is not
// looked at. Methods may be called concurrently.
type Pool struct{ c *conf }

// Open reads the configuration.
func Open(b []byte) (*Pool, error) {
	c, err := parse(b)
	if err != nil {
		return nil, err
	}
	return &Pool{c}, nil
}

// Make makes the directory and its own files, so that what appears there later is an
// address of somebody.
func (p *Pool) Make() error {
	s, err := open(p.c.IPAM.DataDir, p.c.Name)
	if err != nil {
		return err
	}
	defer s.close()
	for i := range p.c.sets {
		fd, _, err := s.last(i)
		if err != nil {
			return err
		}
		_ = unix.Close(fd)
	}
	return nil
}

// Add reserves one address of each range set.
func Add(ctx context.Context, r Request) (*types100.Result, error) {
	p, err := Open(r.Conf)
	if err != nil {
		return nil, err
	}
	return p.Add(ctx, r)
}

// Add reserves one address of each range set.
func (p *Pool) Add(ctx context.Context, r Request) (*types100.Result, error) {
	c := p.c
	wants, err := c.wishes(r.Args)
	if err != nil {
		return nil, err
	}
	res := &types100.Result{CNIVersion: types100.ImplementedSpecVersion, Routes: slices.Clone(c.IPAM.Routes)}
	if c.IPAM.ResolvConf != "" {
		if res.DNS, err = readResolvConf(c.IPAM.ResolvConf); err != nil {
			return nil, err
		}
	}
	s, err := open(c.IPAM.DataDir, c.Name)
	if err != nil {
		return nil, err
	}
	defer s.close()
	for i, set := range c.sets {
		if err := ctx.Err(); err != nil {
			return nil, errors.Join(err, s.release(r.owner()))
		}
		ip, in, err := s.reserve(i, set, r.owner(), wanted(set, wants))
		if err != nil {
			return nil, errors.Join(err, s.release(r.owner()))
		}
		res.IPs = append(res.IPs, &types100.IPConfig{
			Address: net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(in.subnet.Bits(), ip.BitLen())},
			Gateway: in.gateway.AsSlice(),
		})
	}
	if left := unmet(wants, res); len(left) > 0 {
		return nil, errors.Join(fmt.Errorf("requested address %s is in no range: %w", strings.Join(left, ", "), errdef.ErrInvalid), s.release(r.owner()))
	}
	return res, nil
}

// Del releases the addresses of the request; it succeeds when there are none. When the
// previous result names them all it reads only their files. It may not: a later
// plugin can have replaced the result, and then all files are read.
func Del(_ context.Context, r Request) error {
	c, err := decode(r.Conf)
	if err != nil {
		return err
	}
	return c.del(r.owner(), c.previous())
}

// Del releases the addresses of the request, which are most likely ips.
func (p *Pool) Del(r Request, ips []netip.Addr) error { return p.c.del(r.owner(), ips) }

func (c *conf) del(owner string, likely []netip.Addr) error {
	s, err := openExisting(c.IPAM.DataDir, c.Name)
	if s == nil || err != nil {
		return err
	}
	defer s.close()
	n, err := s.releaseThese(owner, likely)
	if err != nil || n > 0 && n == c.rangeSets() {
		return err
	}
	return s.release(owner)
}

// Check reports whether the addresses of the previous result are still reserved.
func Check(_ context.Context, r Request) error {
	c, err := decode(r.Conf)
	if err != nil {
		return err
	}
	s, err := openExisting(c.IPAM.DataDir, c.Name)
	if err != nil {
		return err
	}
	if s == nil {
		return fmt.Errorf("addresses of %s: %w", r.ContainerID, errdef.ErrNotFound)
	}
	defer s.close()
	n, err := s.count(r.owner())
	if err == nil && n == 0 {
		err = fmt.Errorf("addresses of %s: %w", r.ContainerID, errdef.ErrNotFound)
	}
	return err
}

// GC releases every address whose owner is not among the valid attachments that the
// configuration lists.
func GC(_ context.Context, r Request) error {
	c, err := decode(r.Conf)
	if err != nil {
		return err
	}
	s, err := openExisting(c.IPAM.DataDir, c.Name)
	if s == nil || err != nil {
		return err
	}
	defer s.close()
	valid := map[string]bool{}
	for _, a := range c.ValidAttachments {
		valid[owner(a.ContainerID, a.IfName)] = true
	}
	return s.keepOnly(valid)
}

// Status reports whether an address could be handed out at all.
func Status(_ context.Context, r Request) error {
	c, err := parse(r.Conf)
	if err != nil {
		return err
	}
	_, err = c.wishes(r.Args)
	return err
}

// rangeSets is how many addresses Add reserves.
func (c *conf) rangeSets() int {
	n := len(c.IPAM.Ranges) + len(c.RuntimeConfig.Ranges)
	if c.IPAM.Subnet != "" {
		n++
	}
	return n
}

func (r Request) owner() string { return owner(r.ContainerID, r.IfName) }

func owner(id, ifName string) string { return id + "\r\n" + ifName }

// decode reads the configuration without judging the ranges: what was added under a
// configuration must be removable after somebody broke it.
func decode(b []byte) (*conf, error) {
	c := &conf{}
	if err := json.Unmarshal(b, c); err != nil {
		return nil, fmt.Errorf("decode network configuration: %w: %w", err, errdef.ErrInvalid)
	}
	if c.IPAM.DataDir == "" {
		c.IPAM.DataDir = DefaultDir
	}
	if c.Name == "" {
		return nil, fmt.Errorf("network configuration: name is empty: %w", errdef.ErrInvalid)
	}
	return c, nil
}

type conf struct {
	types.PluginConf
	IPAM struct {
		rangeConf
		Ranges     [][]rangeConf  `json:"ranges"`
		DataDir    string         `json:"dataDir"`
		ResolvConf string         `json:"resolvConf"`
		Routes     []*types.Route `json:"routes"`
	} `json:"ipam"`
	RuntimeConfig struct {
		Ranges [][]rangeConf `json:"ipRanges"`
		IPs    []string      `json:"ips"`
	} `json:"runtimeConfig"`
	Args struct {
		CNI struct {
			IPs []string `json:"ips"`
		} `json:"cni"`
	} `json:"args"`
	PrevResult map[string]any `json:"prevResult"`

	sets []rangeSet
}

package hostlocal

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// rangeConf is a range as it is written in configuration.
type rangeConf struct {
	Subnet     string `json:"subnet"`
	RangeStart string `json:"rangeStart"`
	RangeEnd   string `json:"rangeEnd"`
	Gateway    string `json:"gateway"`
}

// ipRange is a range as it is used.
type ipRange struct {
	subnet      netip.Prefix
	first, last netip.Addr
	gateway     netip.Addr
}

type rangeSet []ipRange

// parse decodes a configuration and checks its ranges.
func parse(b []byte) (*conf, error) {
	c, err := decode(b)
	if err != nil {
		return nil, err
	}
	var sets [][]rangeConf
	if c.IPAM.Subnet != "" {
		sets = append(sets, []rangeConf{c.IPAM.rangeConf})
	}
	sets = append(sets, c.IPAM.Ranges...)
	// Ranges of the runtime come first, as in the plugin: they are the pod's wish.
	sets = append(slices.Clone(c.RuntimeConfig.Ranges), sets...)
	if len(sets) == 0 {
		return nil, fmt.Errorf("ipam: no ranges: %w", errdef.ErrInvalid)
	}
	for i, raw := range sets {
		set, err := newSet(raw)
		if err != nil {
			return nil, fmt.Errorf("ipam: range set %d: %w", i, err)
		}
		if slices.ContainsFunc(c.sets, set.overlaps) {
			return nil, fmt.Errorf("ipam: range set %d overlaps another: %w", i, errdef.ErrInvalid)
		}
		c.sets = append(c.sets, set)
	}
	return c, nil
}

// wishes collects the addresses that were asked for, from the three places that the
// plugin reads.
func (c *conf) wishes(args string) (wants []netip.Addr, err error) {
	all := slices.Concat(c.RuntimeConfig.IPs, c.Args.CNI.IPs)
	for kv := range strings.SplitSeq(args, ";") {
		if v, ok := strings.CutPrefix(kv, "IP="); ok && v != "" {
			all = append(all, strings.Split(v, ",")...)
		}
	}
	for _, w := range all {
		w, _, _ = strings.Cut(w, "/")
		ip, err := netip.ParseAddr(w)
		if err != nil {
			return nil, fmt.Errorf("requested address %q: %w", w, errdef.ErrInvalid)
		}
		wants = append(wants, ip.Unmap())
	}
	return wants, nil
}

// wanted returns the address that was asked for in set, or the zero address.
func wanted(set rangeSet, wants []netip.Addr) netip.Addr {
	for _, w := range wants {
		if _, ok := set.find(w); ok {
			return w
		}
	}
	return netip.Addr{}
}

// unmet lists the wishes that the result does not fulfil.
func unmet(wants []netip.Addr, res *types100.Result) (left []string) {
	for _, w := range wants {
		if !slices.ContainsFunc(res.IPs, func(ip *types100.IPConfig) bool {
			got, _ := netip.AddrFromSlice(ip.Address.IP)
			return got.Unmap() == w
		}) {
			left = append(left, w.String())
		}
	}
	return left
}

// previous returns the addresses of the previous result.
func (c *conf) previous() (ips []netip.Addr) {
	if c.PrevResult == nil {
		return nil
	}
	if _, ok := c.PrevResult["cniVersion"]; !ok {
		c.PrevResult["cniVersion"] = c.CNIVersion
	}
	b, err := json.Marshal(c.PrevResult)
	if err != nil {
		return nil
	}
	any, err := create.CreateFromBytes(b)
	if err != nil {
		return nil
	}
	res, err := types100.NewResultFromResult(any)
	if err != nil {
		return nil
	}
	for _, ip := range res.IPs {
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			ips = append(ips, a.Unmap())
		}
	}
	return ips
}

func newSet(raw []rangeConf) (rangeSet, error) {
	var set rangeSet
	for _, rc := range raw {
		r, err := rc.resolve()
		if err != nil {
			return nil, err
		}
		if len(set) > 0 && set[0].first.Is4() != r.first.Is4() {
			return nil, fmt.Errorf("families differ in one set: %w", errdef.ErrInvalid)
		}
		if set.overlaps(rangeSet{r}) {
			return nil, fmt.Errorf("ranges overlap: %w", errdef.ErrInvalid)
		}
		set = append(set, r)
	}
	if len(set) == 0 {
		return nil, fmt.Errorf("empty: %w", errdef.ErrInvalid)
	}
	return set, nil
}

// resolve fills in the defaults: all addresses but the network's, the broadcast
// address, and the gateway, which is the first.
func (rc rangeConf) resolve() (r ipRange, err error) {
	if r.subnet, err = netip.ParsePrefix(rc.Subnet); err != nil {
		return r, fmt.Errorf("subnet %q: %w", rc.Subnet, errdef.ErrInvalid)
	}
	if r.subnet != r.subnet.Masked() {
		return r, fmt.Errorf("subnet %q has host bits set, want %v: %w", rc.Subnet, r.subnet.Masked(), errdef.ErrInvalid)
	}
	if r.subnet.Bits() > r.subnet.Addr().BitLen()-2 {
		return r, fmt.Errorf("subnet %v is too small to allocate from: %w", r.subnet, errdef.ErrInvalid)
	}
	end := lastOf(r.subnet)
	if r.subnet.Addr().Is4() {
		end = end.Prev() // broadcast
	}
	for _, f := range []struct {
		name, text string
		into       *netip.Addr
		def        netip.Addr
	}{
		{"rangeStart", rc.RangeStart, &r.first, r.subnet.Addr().Next()},
		{"rangeEnd", rc.RangeEnd, &r.last, end},
		{"gateway", rc.Gateway, &r.gateway, r.subnet.Addr().Next()},
	} {
		*f.into = f.def
		if f.text == "" {
			continue
		}
		ip, err := netip.ParseAddr(f.text)
		if err != nil || f.name != "gateway" && !r.subnet.Contains(ip) {
			return r, fmt.Errorf("%s %q is not an address of %v: %w", f.name, f.text, r.subnet, errdef.ErrInvalid)
		}
		*f.into = ip
	}
	if r.last.Less(r.first) {
		return r, fmt.Errorf("rangeEnd %v is before rangeStart %v: %w", r.last, r.first, errdef.ErrInvalid)
	}
	return r, nil
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func (s rangeSet) overlaps(o rangeSet) bool {
	for _, a := range s {
		for _, b := range o {
			if a.first.Compare(b.last) <= 0 && b.first.Compare(a.last) <= 0 && a.first.Is4() == b.first.Is4() {
				return true
			}
		}
	}
	return false
}

func (s rangeSet) find(ip netip.Addr) (int, bool) {
	for i, r := range s {
		if ip.Is4() == r.first.Is4() && ip.Compare(r.first) >= 0 && ip.Compare(r.last) <= 0 {
			return i, true
		}
	}
	return 0, false
}

// from calls f for every address of the set once, starting after last and beginning
// anew at the end, until f says stop. Gateways are left out.
func (s rangeSet) from(last netip.Addr, f func(netip.Addr, ipRange) (stop bool)) {
	start := 0
	if i, ok := s.find(last); ok {
		start = i
	} else {
		last = netip.Addr{}
	}
	walk := func(r ipRange, a, b netip.Addr) bool {
		for ip := a; ip.IsValid() && ip.Compare(b) <= 0; ip = ip.Next() {
			if ip != r.gateway && f(ip, r) {
				return true
			}
		}
		return false
	}
	if last.IsValid() && walk(s[start], last.Next(), s[start].last) {
		return
	}
	for i := range s {
		k := start + i
		if last.IsValid() {
			k++
		}
		r := s[k%len(s)]
		end := r.last
		if last.IsValid() && k%len(s) == start {
			end = last
		}
		if walk(r, r.first, end) {
			return
		}
	}
}

// readResolvConf reads name servers for the result.
func readResolvConf(path string) (dns types.DNS, err error) {
	f, err := os.Open(path)
	if err != nil {
		return dns, fmt.Errorf("open resolvConf: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		w := strings.Fields(sc.Text())
		if len(w) < 2 {
			continue
		}
		switch w[0] {
		case "nameserver":
			dns.Nameservers = append(dns.Nameservers, w[1])
		case "domain":
			dns.Domain = w[1]
		case "search":
			dns.Search = append(dns.Search, w[1:]...)
		case "options":
			dns.Options = append(dns.Options, w[1:]...)
		}
	}
	return dns, nil
}

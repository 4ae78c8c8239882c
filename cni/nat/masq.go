package nat

import (
	"bytes"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
)

// Masquerade makes pods of the subnets reach the world under the node's address. It is
// per subnet, not per pod: in steady state it costs one question to the kernel.
func (t *Table) Masquerade(subnets []netip.Prefix) (err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.begin(); err != nil {
		return err
	}
	defer t.end(&err)
	if err := t.ensure(); err != nil {
		return err
	}
	if err := t.addSubnets(setMasq4, setMasq6, subnets); err != nil {
		return err
	}
	if err := t.c.Flush(); err != nil {
		return fmt.Errorf("add masquerading: %w", err)
	}
	return nil
}

// addSubnets puts what is missing into the batch. The kernel refuses overlapping
// intervals, so a subnet inside a known one is skipped, and known ones inside it go.
func (t *Table) addSubnets(set4, set6 string, subnets []netip.Prefix) error {
	for _, name := range []string{set4, set6} {
		var want []netip.Prefix
		for _, p := range subnets {
			if p.Addr().Is4() == (name == set4) {
				want = append(want, p.Masked())
			}
		}
		if len(want) == 0 {
			continue
		}
		els, err := t.elements(name)
		if err != nil {
			return err
		}
		for _, p := range want {
			lo, hi := bounds(p)
			covered := false
			var inner []nftables.SetElement
			for _, h := range intervals(els) {
				covered = covered || bytes.Compare(h[0].Key, lo) <= 0 && bytes.Compare(hi, h[1].Key) <= 0
				if bytes.Compare(lo, h[0].Key) <= 0 && bytes.Compare(h[1].Key, hi) <= 0 {
					inner = append(inner, h[0], h[1])
				}
			}
			if covered {
				continue
			}
			add := []nftables.SetElement{{Key: lo}, {Key: hi, IntervalEnd: true}}
			if err := t.change(name, inner, add); err != nil {
				return err
			}
			els = append(els, add...)
		}
	}
	return nil
}

// bounds returns the first address of p and the first one after it.
func bounds(p netip.Prefix) (lo, hi []byte) {
	lo = p.Addr().AsSlice()
	hi = bytes.Clone(lo)
	for i := p.Bits(); i < len(hi)*8; i++ {
		hi[i/8] |= 0x80 >> (i % 8)
	}
	for i := len(hi) - 1; i >= 0; i-- {
		hi[i]++
		if hi[i] != 0 {
			break
		}
	}
	return lo, hi
}

// intervals pairs starts with ends. The kernel lists them in either order, so they are
// paired by value: each start with the smallest end above it.
func intervals(els []nftables.SetElement) [][2]nftables.SetElement {
	var out [][2]nftables.SetElement
	for _, s := range els {
		if s.IntervalEnd {
			continue
		}
		var end *nftables.SetElement
		for i, e := range els {
			if e.IntervalEnd && bytes.Compare(e.Key, s.Key) > 0 && (end == nil || bytes.Compare(e.Key, end.Key) < 0) {
				end = &els[i]
			}
		}
		if end != nil {
			out = append(out, [2]nftables.SetElement{s, *end})
		}
	}
	return out
}

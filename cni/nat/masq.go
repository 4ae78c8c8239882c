package nat

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/linux/nl"
)

// seen is what was found in the kernel at one generation of its rules.
type seen struct {
	generation  uint32
	masqueraded []netip.Prefix
}

// Masquerade makes pods of the subnets reach the world under the node's address. It is
// per subnet, not per pod. The kernel numbers the states of all its tables, so what was
// found there once is still there while the number is the same: in steady state it costs
// one short question.
func (t *Table) Masquerade(subnets []netip.Prefix) (err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now, err := t.generation()
	if err != nil {
		return err
	}
	if s := t.seen; s != nil && s.generation == now && slices.Equal(s.masqueraded, subnets) {
		return nil
	}
	t.seen = nil
	if err := t.begin(); err != nil {
		return err
	}
	defer t.end(&err)
	if err := t.ensure(); err != nil {
		return err
	}
	added, err := t.addSubnets(setMasq4, setMasq6, subnets)
	if err != nil {
		return err
	}
	if added {
		if err := t.c.Flush(); err != nil {
			return fmt.Errorf("add masquerading: %w", err)
		}
	}
	// Were anything changed meanwhile, by us or by others, the number would be another one.
	t.seen = &seen{generation: now, masqueraded: slices.Clone(subnets)}
	return nil
}

// generation is the number of the present state of the kernel's tables.
func (t *Table) generation() (now uint32, err error) {
	if t.asked == nil {
		if t.asked, err = nl.Open(unix.NETLINK_NETFILTER); err != nil {
			return 0, fmt.Errorf("open netfilter socket: %w", unsupported(err))
		}
	}
	var b nl.Batch
	b.Msg(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, 0, make([]byte, nfgenSize))
	found := false
	err = t.asked.Ask(&b, func(_ uint16, p []byte) {
		if len(p) < nfgenSize {
			return
		}
		nl.Attrs(p[nfgenSize:], func(typ uint16, v []byte) {
			if typ == unix.NFTA_GEN_ID && len(v) == 4 {
				now, found = binary.BigEndian.Uint32(v), true
			}
		})
	})
	if err == nil && !found {
		err = errors.New("no number in the answer")
	}
	if err != nil {
		return 0, fmt.Errorf("ask for the generation of nftables: %w", unsupported(err))
	}
	return now, nil
}

// nfgenSize is the size of struct nfgenmsg, which begins every netfilter message.
const nfgenSize = 4

// addSubnets puts what is missing into the batch, and says whether that is anything. The
// kernel refuses overlapping intervals, so a subnet inside a known one is skipped, and
// known ones inside it go.
func (t *Table) addSubnets(set4, set6 string, subnets []netip.Prefix) (added bool, err error) {
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
			return false, err
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
				return false, err
			}
			els, added = append(els, add...), true
		}
	}
	return added, nil
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

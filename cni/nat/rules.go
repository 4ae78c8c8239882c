package nat

import (
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The sets and maps. "any" maps have the key protocol and port, for all local
// addresses; "ip" maps have the address in front.
const (
	mapAny4, mapAny6   = "hostports_any4", "hostports_any6"
	mapIP4, mapIP6     = "hostports_ip4", "hostports_ip6"
	setMasq4, setMasq6 = "masquerade4", "masquerade6" // subnets whose pods are masqueraded
	setPods4, setPods6 = "pods4", "pods6"             // subnets that have pods with host ports
)

var (
	portMaps = []string{mapAny4, mapAny6, mapIP4, mapIP6}
	netSets  = []string{setMasq4, setMasq6, setPods4, setPods6}
)

// Registers: nftables has 16 of 4 bytes, numbered from 8 on. Concatenated keys and
// data lie in consecutive ones.
const (
	reg0    = unix.NFT_REG32_00
	regMark = unix.NFT_REG32_15
)

// family holds what differs between IPv4 and IPv6.
type family struct {
	proto            byte
	addrLen          uint32
	saddr, daddr     uint32 // offsets in the network header
	mapAny, mapIP    string
	masq, pods       string
	multicast, mMask []byte
}

var families = []family{
	{unix.NFPROTO_IPV4, 4, 12, 16, mapAny4, mapIP4, setMasq4, setPods4, []byte{224, 0, 0, 0}, []byte{240, 0, 0, 0}},
	{unix.NFPROTO_IPV6, 16, 8, 24, mapAny6, mapIP6, setMasq6, setPods6,
		append([]byte{0xff}, make([]byte, 15)...), append([]byte{0xff}, make([]byte, 15)...)},
}

// install puts the whole table with the elements kept into the batch.
//
//	chain guard       { type filter hook prerouting priority raw      # see guardRule
//	chain prerouting  { type nat hook prerouting priority dstnat - 1  # the first DNAT wins: before kube-proxy's
//	                    fib daddr type local jump hostports }
//	chain output      { type nat hook output priority dstnat - 1; fib daddr type local jump hostports }
//	chain hostports   { per family: dnat to addr . proto . port map @ip, then to proto . port map @any, setting markBit }
//	chain postrouting { type nat hook postrouting priority srcnat
//	                    mark & markBit: jump hairpin
//	                    per family: saddr @masquerade, daddr not @masquerade and not multicast: masquerade }
//	chain hairpin     { saddr 127/8 or saddr @pods: masquerade }
func (t *Table) install(kept map[string][]nftables.SetElement) error {
	c, tb := t.c, t.t
	c.AddTable(tb)
	// Delete and add again: whatever an older version left would stand in the way.
	c.DelTable(tb)
	c.AddTable(tb)
	for _, name := range slices.Concat(portMaps, netSets, []string{stamp}) {
		if err := c.AddSet(t.set(name), kept[name]); err != nil {
			return fmt.Errorf("describe nftables set %s: %w", name, err)
		}
	}
	base := func(name string, typ nftables.ChainType, hook *nftables.ChainHook, prio int32) *nftables.Chain {
		return c.AddChain(&nftables.Chain{Name: name, Table: tb, Type: typ, Hooknum: hook, Priority: new(nftables.ChainPriority(prio))})
	}
	dstnat := int32(*nftables.ChainPriorityNATDest) - 1
	guard := base("guard", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, int32(*nftables.ChainPriorityRaw))
	hostports := c.AddChain(&nftables.Chain{Name: "hostports", Table: tb})
	hairpin := c.AddChain(&nftables.Chain{Name: "hairpin", Table: tb})
	pre := base("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, dstnat)
	out := base("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, dstnat)
	post := base("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, int32(*nftables.ChainPriorityNATSource))
	add := func(ch *nftables.Chain, e ...expr.Any) { c.AddRule(&nftables.Rule{Table: tb, Chain: ch, Exprs: e}) }

	add(guard, guardRule()...)
	for _, ch := range []*nftables.Chain{pre, out} {
		add(ch, &expr.Fib{Register: reg0, FlagDADDR: true, ResultADDRTYPE: true},
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
			&expr.Verdict{Kind: expr.VerdictJump, Chain: hostports.Name})
	}
	for _, f := range families {
		add(hostports, f.dnat(f.mapIP, true)...)
	}
	for _, f := range families {
		add(hostports, f.dnat(f.mapAny, false)...)
	}
	add(post, &expr.Meta{Key: expr.MetaKeyMARK, Register: regMark},
		&expr.Bitwise{SourceRegister: regMark, DestRegister: regMark, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(markBit), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: regMark, Data: make([]byte, 4)},
		&expr.Verdict{Kind: expr.VerdictJump, Chain: hairpin.Name})
	add(hairpin, loopbackSource()...)
	for _, f := range families {
		add(hairpin, append(f.in(f.saddr, f.pods, false), &expr.Masq{FullyRandom: true})...)
		add(post, f.masquerade()...)
	}
	return nil
}

// is starts a rule for one family; load reads an address.
func (f family) is() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg0}, &expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: []byte{f.proto}}}
}

func (f family) load(offset uint32) expr.Any {
	return &expr.Payload{DestRegister: reg0, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.addrLen}
}

// in matches an address against a set of subnets.
func (f family) in(offset uint32, set string, invert bool) []expr.Any {
	return append(f.is(), f.load(offset), &expr.Lookup{SourceRegister: reg0, SetName: set, Invert: invert})
}

// dnat looks the destination up and sends the packet there.
func (f family) dnat(m string, withAddr bool) []expr.Any {
	e := f.is()
	r := uint32(reg0)
	if withAddr {
		e = append(e, f.load(f.daddr))
		r += f.addrLen / 4
	}
	e = append(e,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: r},
		&expr.Payload{DestRegister: r + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: reg0, DestRegister: reg0, IsDestRegSet: true, SetName: m},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: regMark},
		&expr.Bitwise{SourceRegister: regMark, DestRegister: regMark, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(^uint32(markBit)), Xor: binaryutil.NativeEndian.PutUint32(markBit)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: regMark},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.proto), RegAddrMin: reg0, RegProtoMin: reg0 + f.addrLen/4, Specified: true})
	return e
}

// masquerade hides pods from the world. Traffic between pods keeps its addresses,
// network policies depend on that; multicast has no connection to translate.
func (f family) masquerade() []expr.Any {
	e := f.in(f.saddr, f.masq, false)
	e = append(e, f.load(f.daddr), &expr.Lookup{SourceRegister: reg0, SetName: f.masq, Invert: true})
	e = append(e, f.load(f.daddr),
		&expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: f.addrLen, Mask: f.mMask, Xor: make([]byte, f.addrLen)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg0, Data: f.multicast})
	return append(e, &expr.Masq{FullyRandom: true})
}

// guardRule drops packets for or from 127/8 that did not come through lo. Host ports
// on 127.0.0.1 need route_localnet on the bridge, which would otherwise let pods reach
// every service of the node that trusts loopback (CVE-2020-8558). Answers to the
// node's own connections carry the bridge's address here: they are translated later.
func guardRule() []expr.Any {
	lo := append([]byte("lo"), make([]byte, unix.IFNAMSIZ-2)...)
	e := []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg0}, &expr.Cmp{Op: expr.CmpOpNeq, Register: reg0, Data: lo}}
	f := families[0]
	e = append(e, f.is()...)
	e = append(e, f.load(f.daddr), loopbackNet()[0], loopbackNet()[1])
	return append(e, &expr.Verdict{Kind: expr.VerdictDrop})
}

// loopbackSource masquerades what the node sends to its own host port at 127.0.0.1:
// the pod could not answer that source.
func loopbackSource() []expr.Any {
	f := families[0]
	e := append(f.is(), f.load(f.saddr))
	return append(append(e, loopbackNet()...), &expr.Masq{FullyRandom: true})
}

func loopbackNet() []expr.Any {
	return []expr.Any{
		&expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: 4, Mask: []byte{255, 0, 0, 0}, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: []byte{127, 0, 0, 0}},
	}
}

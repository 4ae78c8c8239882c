package nl

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Link begins a message on a link: one of the kernel's own (RTM_NEWLINK, RTM_DELLINK), by
// index or, where that is 0, by a name attribute. Of the flags those in change are set.
func (b *Batch) Link(typ, nlFlags uint16, index int, flags, change uint32) {
	b.Msg(typ, nlFlags, LinkInfo(unix.AF_UNSPEC, index, flags, change))
}

// LinkInfo is the kernel's struct ifinfomsg.
func LinkInfo(family uint8, index int, flags, change uint32) []byte {
	f := [unix.SizeofIfInfomsg]byte{family}
	binary.NativeEndian.PutUint32(f[4:], uint32(index))
	binary.NativeEndian.PutUint32(f[8:], flags)
	binary.NativeEndian.PutUint32(f[12:], change)
	return f[:]
}

// Addr begins and fills a message on an address (RTM_NEWADDR, RTM_DELADDR) of a link.
func (b *Batch) Addr(typ, nlFlags uint16, index int, p netip.Prefix, flags uint8) {
	f := [unix.SizeofIfAddrmsg]byte{unix.AF_INET, uint8(p.Bits()), flags}
	if p.Addr().Is6() {
		f[0] = unix.AF_INET6
	}
	binary.NativeEndian.PutUint32(f[4:], uint32(index))
	b.Msg(typ, nlFlags, f[:])
	b.Bytes(unix.IFA_LOCAL, p.Addr().AsSlice())
	b.Bytes(unix.IFA_ADDRESS, p.Addr().AsSlice())
	if ip := p.Masked().Addr(); ip.Is4() && p.Bits() < 31 && typ == unix.RTM_NEWADDR {
		last := ip.As4()
		v := binary.BigEndian.Uint32(last[:]) | 1<<(32-p.Bits()) - 1
		b.Bytes(unix.IFA_BROADCAST, binary.BigEndian.AppendUint32(nil, v))
	}
}

// Addrs lists the addresses of a link.
func (c *Conn) Addrs(index int) (out []netip.Prefix, err error) {
	var b Batch
	f := [unix.SizeofIfAddrmsg]byte{unix.AF_UNSPEC}
	binary.NativeEndian.PutUint32(f[4:], uint32(index))
	b.Msg(unix.RTM_GETADDR, 0, f[:])
	err = c.Dump(&b, func(typ uint16, p []byte) {
		if typ != unix.RTM_NEWADDR || len(p) < unix.SizeofIfAddrmsg || binary.NativeEndian.Uint32(p[4:]) != uint32(index) {
			return
		}
		var local, other netip.Addr
		Attrs(p[unix.SizeofIfAddrmsg:], func(typ uint16, v []byte) {
			switch typ {
			case unix.IFA_LOCAL: // of a link with two ends the other is the far one
				local, _ = netip.AddrFromSlice(v)
			case unix.IFA_ADDRESS:
				other, _ = netip.AddrFromSlice(v)
			}
		})
		if !local.IsValid() {
			local = other
		}
		out = append(out, netip.PrefixFrom(local, int(p[1])))
	})
	return out, err
}

// A Route is one to be made.
type Route struct {
	Dst           netip.Prefix // 0 bits: the default route
	Gateway       netip.Addr   // zero: on the link itself
	Table, Metric uint32       // zero: main, the kernel's
	Scope         uint8
	MTU, AdvMSS   uint32
}

// Route begins and fills a message on a route over a link.
func (b *Batch) Route(typ, nlFlags uint16, index int, r Route) {
	f := [unix.SizeofRtMsg]byte{unix.AF_INET, uint8(r.Dst.Bits())}
	if r.Dst.Addr().Is6() {
		f[0] = unix.AF_INET6
	}
	f[4], f[5], f[6], f[7] = unix.RT_TABLE_UNSPEC, unix.RTPROT_BOOT, r.Scope, unix.RTN_UNICAST
	if r.Table == 0 {
		r.Table = unix.RT_TABLE_MAIN
	}
	b.Msg(typ, nlFlags, f[:])
	if r.Dst.Bits() > 0 {
		b.Bytes(unix.RTA_DST, r.Dst.Masked().Addr().AsSlice())
	}
	if r.Gateway.IsValid() {
		b.Bytes(unix.RTA_GATEWAY, r.Gateway.AsSlice())
	}
	b.Uint32(unix.RTA_OIF, uint32(index))
	b.Uint32(unix.RTA_TABLE, r.Table)
	if r.Metric != 0 {
		b.Uint32(unix.RTA_PRIORITY, r.Metric)
	}
	if r.MTU == 0 && r.AdvMSS == 0 {
		return
	}
	b.Nest(unix.RTA_METRICS, func() {
		if r.MTU != 0 {
			b.Uint32(unix.RTAX_MTU, r.MTU)
		}
		if r.AdvMSS != 0 {
			b.Uint32(unix.RTAX_ADVMSS, r.AdvMSS)
		}
	})
}

package main

import "bytes"

// maxLine is the most content that one log entry holds; the kubelet, like
// containerd, takes 16 KiB.
const maxLine = 16 << 10

// stamp is the time of a read, formatted once.
type stamp struct {
	second int64
	text   [30]byte // 2006-01-02T15:04:05.000000000Z
}

// set formats a wall clock time in nanoseconds; the date only when the second changed.
func (s *stamp) set(ns int64) {
	sec := ns / 1e9
	if sec != s.second || s.text[0] == 0 {
		s.second = sec
		s.date(sec)
	}
	digits(s.text[20:29], ns-sec*1e9)
}

// date writes everything before the fraction. The calendar arithmetic counts years
// from March, so that the leap day is the last (Howard Hinnant, days_from_civil).
func (s *stamp) date(sec int64) {
	days, rest := sec/86400, sec%86400
	z := days + 719468
	era := z / 146097
	doe := z - era*146097
	yoe := (doe - doe/1460 + doe/36524 - doe/146096) / 365
	doy := doe - (365*yoe + yoe/4 - yoe/100)
	mp := (5*doy + 2) / 153
	day := doy - (153*mp+2)/5 + 1
	month := mp + 3
	if month > 12 {
		month -= 12
	}
	year := yoe + era*400
	if month <= 2 {
		year++
	}
	copy(s.text[:], "0000-00-00T00:00:00.000000000Z")
	digits(s.text[0:4], year)
	digits(s.text[5:7], month)
	digits(s.text[8:10], day)
	digits(s.text[11:13], rest/3600)
	digits(s.text[14:16], rest/60%60)
	digits(s.text[17:19], rest%60)
}

func digits(b []byte, v int64) {
	for i := len(b) - 1; i >= 0; i-- {
		b[i] = byte('0' + v%10)
		v /= 10
	}
}

// prefix is what precedes the content of an entry.
type prefix struct {
	b   [40]byte // stamp, stream, tag
	tag int
	n   int
}

func (p *prefix) set(s *stamp, stream string) {
	n := copy(p.b[:], s.text[:])
	p.b[n] = ' '
	n += 1 + copy(p.b[n+1:], stream)
	p.b[n] = ' '
	p.tag = n + 1
	p.b[n+2] = ' '
	p.n = n + 3
}

// format turns what was read into log entries.
type format struct {
	out    []byte // entries so far; never grows beyond its capacity
	prefix prefix
}

// lines appends entries made of part, an unfinished line read earlier, and in. It
// returns how much of in it used, and whether it stopped because out is full. What
// is left of in otherwise is an unfinished line; if in was not used at all and out
// has not grown, part stays in front of it. A final call ends it with tag P.
func (f *format) lines(part, in []byte, final bool) (used int, full bool) {
	for {
		room := maxLine - len(part)
		rest := in[used:]
		n := bytes.IndexByte(rest[:min(len(rest), room+1)], '\n')
		tag, skip := byte('F'), 1
		switch {
		case n >= 0:
		case len(rest) > room:
			n, tag, skip = room, 'P', 0
		case final && len(part)+len(rest) > 0:
			n, tag, skip = len(rest), 'P', 0
		default:
			return used, false
		}
		if len(f.out)+f.prefix.n+len(part)+n+1 > cap(f.out) {
			return used, true
		}
		f.prefix.b[f.prefix.tag] = tag
		f.out = append(f.out, f.prefix.b[:f.prefix.n]...)
		if part != nil {
			f.out = append(f.out, part...)
			part = nil
		}
		if tag == 'F' { // with its newline
			f.out = append(f.out, rest[:n+1]...)
		} else {
			f.out = append(append(f.out, rest[:n]...), '\n')
		}
		used += n + skip
	}
}

// loss appends the entry that says what could not be written.
func (f *format) loss(bytes, lines uint64) {
	f.prefix.b[f.prefix.tag] = 'F'
	f.out = append(f.out, f.prefix.b[:f.prefix.n]...)
	f.out = append(f.out, "[cri-runtime: lost "...)
	f.out = appendNumber(f.out, bytes)
	f.out = append(f.out, " bytes in "...)
	f.out = appendNumber(f.out, lines)
	f.out = append(f.out, " lines that could not be written to this log]\n"...)
}

func appendNumber(b []byte, v uint64) []byte {
	var d [20]byte
	i := len(d)
	for {
		i--
		d[i] = byte('0' + v%10)
		v /= 10
		if v == 0 {
			return append(b, d[i:]...)
		}
	}
}

package plan

var compositeNames = [...]string{
	"", "prelude", "wait", "clone", "poke", "send_fd", "mk_path", "mask", "read_only", "check_fd", "check_cwd",
	"check_root", "chown_pipe", "cap_set", "skip", "ready", "exec", "drop_bounding",
}

// Format shows an instruction of the plan: its result's slot, its name, which for
// system calls is looked up in names, and its arguments. It uses no fmt, since the
// package is part of the monitor.
func (p *Plan) Format(in Ins, names map[Op]string) string {
	s := ""
	if in.Out != NoOut {
		s = "s" + itoa(int64(in.Out)) + " = "
	}
	switch name, ok := names[in.Op]; {
	case in.Op > FirstComposite && in.Op < endComposite:
		s += compositeNames[in.Op-FirstComposite]
	case ok:
		s += name
	default:
		s += "syscall_" + itoa(int64(in.Op))
	}
	s += "("
	for i, a := range in.Args {
		if i > 0 {
			s += ", "
		}
		switch a.Kind {
		case Slot:
			s += "s" + itoa(int64(a.V))
		case Data:
			s += p.show(int(a.V))
		case Imm:
			s += number(a.V)
		}
	}
	s += ")"
	if in.TolerateAny {
		s += " if possible"
	}
	for i, e := range in.Tolerate {
		if i == 0 {
			s += " ignoring "
		} else {
			s += ", "
		}
		s += e.Error()
	}
	return s
}

// show gives what lies at an offset: a string, or the words of a structure.
func (p *Plan) show(off int) string {
	if at, ok := p.shapes[off]; ok {
		s := "{"
		for i := range at.words {
			if i > 0 {
				s += " " //nolint:modernize // package strings is no part of the monitor
			}
			w := get64(p.Data[off+8*i:])
			if p.isReloc(off + 8*i) {
				s += p.show(int(w))
			} else {
				s += number(w)
			}
		}
		return s + "}"
	}
	if n, ok := p.blobs[off]; ok {
		return "<" + itoa(int64(n)) + " bytes>"
	}
	return quote(p.Data[off:])
}

func (p *Plan) isReloc(off int) bool {
	for _, r := range p.Relocs {
		if int(r) == off {
			return true
		}
	}
	return false
}

func quote(b []byte) string {
	s := []byte{'"'}
	for _, c := range b {
		switch {
		case c == 0:
			return string(append(s, '"'))
		case c < ' ' || c == '"' || c == '\\' || c > '~':
			s = append(s, '\\', 'x', hexDigits[c>>4], hexDigits[c&15])
		default:
			s = append(s, c)
		}
	}
	return string(append(s, '"'))
}

const hexDigits = "0123456789abcdef"

// number is decimal for small values of either sign, else hexadecimal.
func number(v uint64) string {
	if i := int64(v); i > -4096 && i < 4096 {
		return itoa(i)
	}
	s := ""
	for ; v != 0; v >>= 4 {
		s = string(hexDigits[v&15]) + s
	}
	return "0x" + s
}

func itoa(v int64) string {
	if v < 0 {
		return "-" + itoa(-v)
	}
	if v < 10 {
		return string(rune('0' + v))
	}
	return itoa(v/10) + itoa(v%10)
}

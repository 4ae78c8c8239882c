package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// counter is a file that Stats reads. Its descriptor stays open, which costs the kernel
// a page for each: that is why there are no more than CRI asks for.
type counter int

const (
	cpuUsage counter = iota
	memoryUsage
	memoryLimit
	memoryDetail
	swapUsage
	swapLimit
	tasks
	cpuPressure
	memoryPressure
	ioPressure
	counters // how many there are
)

// counterFiles says where each counter is: in the v1 hierarchy of a controller or else
// in the v2 tree. An empty name: it is not there, or another file has it too.
var counterFiles = [counters]struct{ controller, v1, v2 string }{
	cpuUsage:     {"cpuacct", "cpuacct.usage", "cpu.stat"},
	memoryUsage:  {"memory", "memory.usage_in_bytes", "memory.current"},
	memoryLimit:  {"memory", "memory.limit_in_bytes", "memory.max"},
	memoryDetail: {"memory", "memory.stat", "memory.stat"},
	swapUsage:    {"memory", "", "memory.swap.current"},
	swapLimit:    {"memory", "memory.memsw.limit_in_bytes", "memory.swap.max"},
	tasks:        {"pids", "pids.current", "pids.current"},
	// CRI and the kubelet know pressure from v2 hosts only: where v1 has the controllers,
	// nobody looks at what the empty tree beside them says.
	cpuPressure:    {"", "", "cpu.pressure"},
	memoryPressure: {"", "", "memory.pressure"},
	ioPressure:     {"", "", "io.pressure"},
}

// kept is a counter's descriptor.
type kept struct {
	fd    int
	state keptState
}

type keptState uint8

const (
	keptUnknown keptState = iota // not looked for yet
	keptOpen
	keptAbsent // the kernel does not have it
)

// statBuffer holds one file. The largest, memory.stat of v2, takes under 2 KiB.
type statBuffer [16 << 10]byte

// reader reads the counters of one group. Its error is that of the first read that
// failed for another reason than an absent file.
type reader struct {
	g   *Group
	buf *statBuffer
	err error
}

// Stats reads the counters that CRI asks for. Descriptors stay open until Close: a
// second reading costs one call per file. errdef.ErrNotFound when the cgroup is gone.
func (g *Group) Stats() (s Stats, err error) {
	err = g.read(func(r *reader) {
		s.Time = time.Now()
		if m, ok := g.home(cpuUsage); ok && m.v2 {
			eachLine(r.bytes(cpuUsage), func(key []byte, value uint64) {
				if string(key) == "usage_usec" {
					s.CPU.Usage = value * 1000
				}
			})
		} else {
			s.CPU.Usage = r.number(cpuUsage)
		}
		r.memory(&s)
		r.pressures(&s)
	})
	if err != nil {
		return Stats{}, err
	}
	return s, nil
}

// Tasks counts the tasks of the cgroup and of its descendants, like Stats.
func (g *Group) Tasks() (n uint64, err error) {
	err = g.read(func(r *reader) { n = r.number(tasks) })
	return n, err
}

func (g *Group) read(what func(*reader)) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	buf, _ := g.host.buffers.Get().(*statBuffer)
	if buf == nil {
		buf = new(statBuffer)
	}
	defer g.host.buffers.Put(buf)
	r := reader{g: g, buf: buf}
	if what(&r); r.err != nil {
		return fmt.Errorf("read statistics of cgroup %s: %w", g.path, notFound(r.err))
	}
	return nil
}

// home is the directory that has the counter.
func (g *Group) home(c counter) (member, bool) {
	if m, ok := g.of(counterFiles[c].controller); ok {
		return m, true
	}
	// cpu.stat and the pressure are in every v2 cgroup, whatever its controllers.
	if c == cpuUsage || g.host.mode == Unified {
		return g.unified()
	}
	return member{}, false
}

// open finds the descriptor of a counter.
func (r *reader) open(c counter) (fd int, ok bool) {
	k := &r.g.files[c]
	if k.state == keptUnknown {
		k.state = keptAbsent
		m, found := r.g.home(c)
		name := counterFiles[c].v1
		if m.v2 {
			name = counterFiles[c].v2
		}
		if found && name != "" {
			k.fd, k.state, r.err = openCounter(m.path, name)
		}
	}
	return k.fd, k.state == keptOpen
}

// openCounter opens a file of a cgroup that may lack it, which is an error only when
// the cgroup itself is gone.
func openCounter(dir, name string) (int, keptState, error) {
	fd, err := openRaw(dir+"/"+name, unix.O_RDONLY)
	if err == nil {
		return fd, keptOpen, nil
	}
	if _, e := os.Stat(dir); e != nil {
		return -1, keptUnknown, e
	}
	if errors.Is(err, os.ErrNotExist) {
		return -1, keptAbsent, nil
	}
	return -1, keptUnknown, err
}

// bytes reads a file, nil when it is absent. The result is valid until the next call.
func (r *reader) bytes(c counter) []byte {
	if r.err != nil {
		return nil
	}
	fd, ok := r.open(c)
	if !ok {
		return nil
	}
	for {
		n, err := unix.Pread(fd, r.buf[:], 0)
		switch {
		case err == unix.EINTR:
		case err == unix.EOPNOTSUPP: // pressure files with psi=0
			return nil
		case err != nil:
			r.err = err
			return nil
		default:
			return r.buf[:n]
		}
	}
}

func (r *reader) number(c counter) uint64 {
	b := r.bytes(c)
	if len(b) == 0 {
		return 0
	}
	n, ok := parseCounter(b)
	if !ok && r.err == nil {
		r.err = fmt.Errorf("%s: %q is not a number", counterFiles[c].v2, cut(string(b)))
	}
	return n
}

// parseCounter reads a line with one number, or with "max".
func parseCounter(b []byte) (n uint64, ok bool) {
	b = bytes.TrimSuffix(b, []byte{'\n'})
	if string(b) == "max" {
		return unlimited, true
	}
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + uint64(c-'0')
	}
	return n, len(b) > 0
}

// eachLine goes through lines of "key value".
func eachLine(b []byte, use func(key []byte, value uint64)) {
	for len(b) > 0 {
		line := b
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			line, b = b[:i], b[i+1:]
		} else {
			b = nil
		}
		if i := bytes.IndexByte(line, ' '); i > 0 {
			n, _ := parseCounter(line[i+1:])
			use(line[:i], n)
		}
	}
}

// limit is 0 for none.
func (r *reader) limit(c counter) uint64 {
	if n := r.number(c); !isUnlimited(n) {
		return n
	}
	return 0
}

func (r *reader) memory(s *Stats) {
	m, ok := r.g.of("memory")
	switch {
	case ok && m.v2:
		r.memoryV2(s)
	case ok:
		r.memoryV1(s)
	}
}

func (r *reader) memoryV1(s *Stats) {
	x := &s.Memory
	var inactive, swap uint64
	var bound, both uint64 // the lowest limits of the cgroup and of those above it
	x.Usage = r.number(memoryUsage)
	eachLine(r.bytes(memoryDetail), func(key []byte, value uint64) {
		switch string(key) {
		case "total_inactive_file":
			inactive = value
		case "total_rss":
			x.RSS = value
		case "total_pgfault":
			x.PageFaults = value
		case "total_pgmajfault":
			x.MajorFault = value
		case "total_swap":
			swap = value
		case "hierarchical_memory_limit":
			bound = value
		case "hierarchical_memsw_limit":
			both, s.Swap.Known = value, true // else swap is not accounted
		}
	})
	// Where nothing above has a limit neither has this one: two files less.
	if !isUnlimited(bound) {
		x.Limit = r.limit(memoryLimit)
	}
	x.derive(inactive)
	if s.Swap.Known {
		s.Swap.Usage = swap
	}
	if s.Swap.Known && !isUnlimited(both) && x.Limit > 0 {
		// v1 limits memory and swap together.
		if sum := r.limit(swapLimit); sum > 0 {
			s.Swap.Limit = sub(sum, x.Limit)
			s.Swap.Available = sub(s.Swap.Limit, swap)
		}
	}
}

func (r *reader) memoryV2(s *Stats) {
	x := &s.Memory
	var inactive uint64
	x.Usage, x.Limit = r.number(memoryUsage), r.limit(memoryLimit)
	eachLine(r.bytes(memoryDetail), func(key []byte, value uint64) {
		switch string(key) {
		case "inactive_file":
			inactive = value
		case "anon":
			x.RSS = value
		case "pgfault":
			x.PageFaults = value
		case "pgmajfault":
			x.MajorFault = value
		}
	})
	x.derive(inactive)
	usage := r.bytes(swapUsage)
	if len(usage) == 0 {
		return // swap is not accounted
	}
	s.Swap.Known = true
	s.Swap.Usage, _ = parseCounter(usage)
	s.Swap.Limit = r.limit(swapLimit)
	s.Swap.Available = sub(s.Swap.Limit, s.Swap.Usage)
}

func (x *MemoryStats) derive(inactive uint64) {
	x.WorkingSet = sub(x.Usage, inactive)
	x.Available = sub(x.Limit, x.WorkingSet)
}

// sub stops at zero: the counters are read one after the other.
func sub(a, b uint64) uint64 {
	if b > a {
		return 0
	}
	return a - b
}

func (r *reader) pressures(s *Stats) {
	if r.g.host.mode != Unified {
		return
	}
	s.CPU.PSI = r.pressure(cpuPressure)
	s.Memory.PSI = r.pressure(memoryPressure)
	s.IO.PSI = r.pressure(ioPressure)
}

func (r *reader) pressure(c counter) *Pressure {
	b := r.bytes(c)
	if len(b) == 0 {
		return nil
	}
	p := parsePressure(b)
	return &p
}

// parsePressure reads "some avg10=0.00 avg60=0.00 avg300=0.00 total=0" and "full ...".
func parsePressure(b []byte) (p Pressure) {
	to := &p.Some
	for f := range bytes.FieldsSeq(b) {
		key, value, _ := bytes.Cut(f, []byte{'='})
		switch string(key) {
		case "some":
			to = &p.Some
		case "full":
			to = &p.Full
		case "avg10":
			to.Avg10 = hundredths(value)
		case "avg60":
			to.Avg60 = hundredths(value)
		case "avg300":
			to.Avg300 = hundredths(value)
		case "total":
			to.Total, _ = parseCounter(value)
		}
	}
	return p
}

// hundredths reads "12.34"; the kernel always writes two decimals.
func hundredths(b []byte) float64 {
	whole, part, _ := bytes.Cut(b, []byte{'.'})
	w, _ := parseCounter(whole)
	d, _ := parseCounter(part)
	return float64(w*100+d) / 100
}

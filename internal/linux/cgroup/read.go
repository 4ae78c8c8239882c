package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// reader reads the files of one group. Its error is that of the first read that
// failed for another reason than an absent file.
type reader struct {
	g   *Group
	buf []byte
	err error
}

// Stats reads all counters that the kernel has. Descriptors stay open until Close:
// a second reading costs one call per file. errdef.ErrNotFound when the cgroup is
// gone.
func (g *Group) Stats() (Stats, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := &reader{g: g, buf: make([]byte, 8192)}
	s := Stats{Time: time.Now()}
	if m, ok := g.of("cpu"); ok && m.v2 {
		r.cpuV2(m, &s.CPU)
	} else {
		r.cpuV1(&s.CPU)
	}
	if m, ok := g.of("memory"); ok {
		if m.v2 {
			r.memoryV2(m, &s)
		} else {
			r.memoryV1(m, &s)
		}
	}
	if m, ok := g.of("pids"); ok {
		s.Pids.Current = r.number(m, "pids.current")
		s.Pids.Limit = orZero(r.number(m, "pids.max"))
	}
	if m, ok := g.of("io"); ok && m.v2 {
		r.ioV2(m, &s.IO)
	} else if m, ok := g.of("blkio"); ok {
		r.ioV1(m, &s.IO)
	}
	if m, ok := g.unified(); ok {
		s.CPU.PSI = r.pressure(m, "cpu.pressure")
		s.Memory.PSI = r.pressure(m, "memory.pressure")
		s.IO.PSI = r.pressure(m, "io.pressure")
	}
	if r.err != nil {
		return Stats{}, fmt.Errorf("read statistics of cgroup %s: %w", g.path, notFound(r.err))
	}
	return s, nil
}

// bytes reads a file, nil when it is absent. The result is valid until the next call.
func (r *reader) bytes(m member, name string) []byte {
	if r.err != nil {
		return nil
	}
	path := filepath.Join(m.path, name)
	f, known := r.g.files[path]
	if !known {
		if f, r.err = openStat(m.path, path); r.err != nil {
			return nil
		}
		r.g.files[path] = f
	}
	if f == nil {
		return nil
	}
	for {
		n, err := unix.Pread(int(f.Fd()), r.buf, 0)
		switch {
		case err == unix.EINTR:
		case err == unix.EOPNOTSUPP: // pressure files with psi=0
			return nil
		case err != nil:
			r.err = err
			return nil
		case n == len(r.buf): // a kernel file is read in one piece or not at all
			r.buf = make([]byte, 4*len(r.buf))
		default:
			return r.buf[:n]
		}
	}
}

// openStat opens a file of a cgroup that may lack it: nil without an error then, but
// not when the cgroup itself is gone.
func openStat(dir, path string) (*os.File, error) {
	fd, err := openRaw(path, unix.O_RDONLY)
	if err == nil {
		return os.NewFile(uintptr(fd), path), nil
	}
	if _, e := os.Stat(dir); e != nil {
		return nil, e
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return nil, err
}

func (r *reader) number(m member, name string) uint64 {
	b := r.bytes(m, name)
	if len(b) == 0 {
		return 0
	}
	n, err := parseNumber(b)
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("%s: %w", name, err)
	}
	return n
}

// pick stores the values of "key value" lines.
func (r *reader) pick(m member, name string, want map[string]*uint64) {
	for line := range bytes.Lines(r.bytes(m, name)) {
		key, value, _ := bytes.Cut(bytes.TrimSpace(line), []byte(" "))
		if to := want[string(key)]; to != nil {
			*to = atoi(value)
		}
	}
}

// atoi is for the kernel's own numbers, which have no errors worth a word.
func atoi(b []byte) uint64 {
	n, _ := strconv.ParseUint(string(bytes.TrimSpace(b)), 10, 64)
	return n
}

func orZero(n uint64) uint64 {
	if isUnlimited(n) {
		return 0
	}
	return n
}

func (r *reader) cpuV2(m member, c *CPUStats) {
	r.pick(m, "cpu.stat", map[string]*uint64{"usage_usec": &c.Usage, "user_usec": &c.User, "system_usec": &c.System,
		"nr_periods": &c.Periods, "nr_throttled": &c.ThrottledPeriods, "throttled_usec": &c.Throttled})
	for _, p := range []*uint64{&c.Usage, &c.User, &c.System, &c.Throttled} {
		*p *= 1000
	}
}

func (r *reader) cpuV1(c *CPUStats) {
	if m, ok := r.g.of("cpuacct"); ok {
		c.Usage = r.number(m, "cpuacct.usage")
		c.User = r.number(m, "cpuacct.usage_user")
		c.System = r.number(m, "cpuacct.usage_sys")
	}
	if m, ok := r.g.of("cpu"); ok {
		r.pick(m, "cpu.stat", map[string]*uint64{"nr_periods": &c.Periods, "nr_throttled": &c.ThrottledPeriods,
			"throttled_time": &c.Throttled})
	}
}

func (r *reader) memoryV1(m member, s *Stats) {
	x := &s.Memory
	var inactive, swap uint64
	x.Usage = r.number(m, "memory.usage_in_bytes")
	x.Limit = orZero(r.number(m, "memory.limit_in_bytes"))
	r.pick(m, "memory.stat", map[string]*uint64{"total_inactive_file": &inactive, "total_rss": &x.RSS,
		"total_pgfault": &x.PageFaults, "total_pgmajfault": &x.MajorFault, "total_swap": &swap})
	x.derive(inactive)
	if len(r.bytes(m, "memory.memsw.limit_in_bytes")) == 0 {
		return
	}
	both := orZero(r.number(m, "memory.memsw.limit_in_bytes"))
	s.Swap.Known, s.Swap.Usage = true, swap
	if both > 0 && x.Limit > 0 {
		s.Swap.Limit = sub(both, x.Limit)
		s.Swap.Available = sub(s.Swap.Limit, swap)
	}
}

func (r *reader) memoryV2(m member, s *Stats) {
	x := &s.Memory
	var inactive uint64
	x.Usage = r.number(m, "memory.current")
	x.Limit = orZero(r.number(m, "memory.max"))
	r.pick(m, "memory.stat", map[string]*uint64{"inactive_file": &inactive, "anon": &x.RSS,
		"pgfault": &x.PageFaults, "pgmajfault": &x.MajorFault})
	x.derive(inactive)
	if len(r.bytes(m, "memory.swap.current")) == 0 {
		return
	}
	s.Swap.Known, s.Swap.Usage = true, r.number(m, "memory.swap.current")
	s.Swap.Limit = orZero(r.number(m, "memory.swap.max"))
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

// ioV2 sums lines such as "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0".
func (r *reader) ioV2(m member, x *IOStats) {
	to := map[string]*uint64{"rbytes": &x.ReadBytes, "wbytes": &x.WriteBytes, "rios": &x.ReadOps, "wios": &x.WriteOps}
	for f := range bytes.FieldsSeq(r.bytes(m, "io.stat")) {
		key, value, _ := bytes.Cut(f, []byte("="))
		if p := to[string(key)]; p != nil {
			*p += atoi(value)
		}
	}
}

// ioV1 sums lines such as "8:0 Read 123"; the last one, "Total 123", has two words.
func (r *reader) ioV1(m member, x *IOStats) {
	for name, to := range map[string][2]*uint64{
		"blkio.throttle.io_service_bytes_recursive": {&x.ReadBytes, &x.WriteBytes},
		"blkio.throttle.io_serviced_recursive":      {&x.ReadOps, &x.WriteOps},
	} {
		for line := range bytes.Lines(r.bytes(m, name)) {
			f := bytes.Fields(line)
			if len(f) != 3 {
				continue
			}
			switch string(f[1]) {
			case "Read":
				*to[0] += atoi(f[2])
			case "Write":
				*to[1] += atoi(f[2])
			}
		}
	}
}

func (r *reader) pressure(m member, name string) *Pressure {
	b := r.bytes(m, name)
	if len(b) == 0 {
		return nil
	}
	return parsePressure(b)
}

// parsePressure reads "some avg10=0.00 avg60=0.00 avg300=0.00 total=0" and "full ...".
func parsePressure(b []byte) *Pressure {
	var p Pressure
	for line := range bytes.Lines(b) {
		f := bytes.Fields(line)
		if len(f) == 0 {
			continue
		}
		to := &p.Some
		if string(f[0]) == "full" {
			to = &p.Full
		}
		for _, kv := range f[1:] {
			key, value, _ := bytes.Cut(kv, []byte("="))
			avg, _ := strconv.ParseFloat(string(value), 64)
			switch string(key) {
			case "avg10":
				to.Avg10 = avg
			case "avg60":
				to.Avg60 = avg
			case "avg300":
				to.Avg300 = avg
			case "total":
				to.Total = atoi(value)
			}
		}
	}
	return &p
}

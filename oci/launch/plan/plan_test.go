package plan_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/oci/launch/plan"
)

// start runs p with the files and gives what the child wrote to standard output,
// the records of the status pipe and the wait status.
func start(t testing.TB, p *plan.Plan, files ...*os.File) (string, []plan.Record, syscall.WaitStatus) {
	t.Helper()
	l, e := plan.Load(p.Marshal())
	if e != 0 {
		t.Fatalf("load: %v", e)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	fds := []int32{int32(w.Fd())}
	for _, f := range files {
		fds = append(fds, int32(f.Fd()))
	}
	c, e := l.Start(fds)
	l.Unmap()
	_ = w.Close()
	if e != 0 {
		t.Fatalf("start: %v", e)
	}
	defer func() { _ = unix.Close(c.PIDFD) }()
	status := os.NewFile(uintptr(c.Status), "status")
	defer func() { _ = status.Close() }()
	raw, err := io.ReadAll(status)
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	pid := c.PID
	var recs []plan.Record
	var ws syscall.WaitStatus
	for ; len(raw) >= plan.RecordSize; raw = raw[plan.RecordSize:] {
		rec := plan.Decode(raw)
		recs = append(recs, rec)
		if rec.Step == plan.StepClone && pid != int(rec.Value) {
			if _, err := syscall.Wait4(pid, &ws, 0, nil); err != nil {
				t.Fatalf("wait for first stage: %v", err)
			}
			pid = int(rec.Value)
		}
	}
	if _, err := syscall.Wait4(pid, &ws, 0, nil); err != nil {
		t.Fatalf("wait: %v", err)
	}
	return string(out), recs, ws
}

// shell adds the end of a plan that runs sh with input 0 as its output.
func shell(p *plan.Plan, script string) {
	p.Add(plan.Ins{Op: unix.SYS_DUP3, Args: []plan.Arg{plan.S(0), plan.I(1), plan.I(0)}, Out: plan.NoOut})
	p.Add(plan.Ins{Op: unix.SYS_DUP3, Args: []plan.Arg{plan.S(0), plan.I(2), plan.I(0)}, Out: plan.NoOut})
	p.Add(plan.Ins{Op: plan.Ready, Out: plan.NoOut})
	cand := p.Words(p.Str("/nonexistent/sh"), p.Str("/etc/passwd/sh"), p.Str("/bin/sh"))
	p.Add(plan.Ins{Op: plan.Exec, Out: plan.NoOut, Args: []plan.Arg{
		cand, plan.I(3), p.Table([]string{"sh", "-c", script}), p.Table([]string{"GREETING=hello"})}})
}

func prelude(inputs int) *plan.Plan {
	p := plan.New(inputs)
	p.Add(plan.Ins{Op: plan.Prelude, Out: plan.NoOut})
	return p
}

func TestRunClosesWhatIsNotHandedOver(t *testing.T) {
	leak, err := os.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = leak.Close() }()
	if _, err := unix.FcntlInt(leak.Fd(), unix.F_SETFD, 0); err != nil {
		t.Fatal(err)
	}
	p := prelude(1)
	shell(p, `echo $GREETING; grep -E 'SigBlk|SigIgn' /proc/self/status; cd /proc/$$/fd && echo *`)
	out, recs, ws := start(t, p)
	if ws.ExitStatus() != 0 || len(recs) != 1 || recs[0].Step != plan.StepReady {
		t.Fatalf("got status %v, records %v, output %q", ws, recs, out)
	}
	// 0 is the shell's own handle of the directory: standard input was closed.
	want := "hello\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n0 1 2\n"
	if out != want {
		t.Errorf("got %q, want %q", out, want)
	}
}

func TestFailedStepIsReported(t *testing.T) {
	p := prelude(1)
	step := p.Add(plan.Ins{Op: unix.SYS_CHDIR, Args: []plan.Arg{p.Str("/does/not/exist")}, Out: plan.NoOut})
	shell(p, "true")
	_, recs, ws := start(t, p)
	want := plan.Record{Step: uint32(step), Value: uint32(unix.ENOENT)}
	if len(recs) != 1 || recs[0] != want || ws.ExitStatus() != 127 {
		t.Errorf("got records %v, status %v; want %v", recs, ws, want)
	}
}

func TestToleratedErrnoAndSkip(t *testing.T) {
	p := prelude(1)
	slot := p.NewSlot()
	p.Add(plan.Ins{Op: unix.SYS_CHDIR, Args: []plan.Arg{p.Str("/does/not/exist")}, Out: slot,
		Tolerate: []syscall.Errno{unix.EACCES, unix.ENOENT}})
	minus := -int64(unix.ENOENT)
	p.Add(plan.Ins{Op: plan.Skip, Args: []plan.Arg{plan.S(slot), plan.I(minus), plan.I(1), plan.I(0)}, Out: plan.NoOut})
	p.Add(plan.Ins{Op: unix.SYS_CHDIR, Args: []plan.Arg{p.Str("/tmp")}, Out: plan.NoOut})
	p.Add(plan.Ins{Op: plan.Skip, Args: []plan.Arg{plan.S(slot), plan.I(minus), plan.I(1), plan.I(1)}, Out: plan.NoOut})
	p.Add(plan.Ins{Op: unix.SYS_CHDIR, Args: []plan.Arg{p.Str("/usr")}, Out: plan.NoOut})
	shell(p, "pwd")
	if out, recs, _ := start(t, p); out != "/usr\n" {
		t.Errorf("got %q, records %v; want /usr", out, recs)
	}
}

func TestSecondStageIsTheCallersChild(t *testing.T) {
	p := prelude(1)
	p.Add(plan.Ins{Op: plan.Clone, Args: []plan.Arg{plan.I(0)}, Out: plan.NoOut})
	shell(p, "exit 7")
	_, recs, ws := start(t, p)
	if len(recs) != 3 || recs[0].Step != plan.StepClone || ws.ExitStatus() != 7 {
		t.Errorf("got records %v, exit %v; want a clone, announced twice, and 7", recs, ws)
	}
}

func TestMkPath(t *testing.T) {
	root := t.TempDir()
	for _, l := range [][2]string{{"/run", "var/run"}, {"../../../../etc", "up"}, {"loop", "loop"}, {"sub/file", "dangling"}, {"/", "whole"}} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, l[1])), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(l[0], filepath.Join(root, l[1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "plain"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		path  string
		flags int
		want  string // what must be there below root
		errno syscall.Errno
	}{
		"directory":           {"/a/b/c", 0, "a/b/c", 0},
		"file":                {"/f/g/h", plan.MkFile, "f/g/h", 0},
		"dangling absolute":   {"/var/run/secrets/kubernetes.io/serviceaccount", 0, "run/secrets/kubernetes.io/serviceaccount", 0},
		"escape stays inside": {"/up/passwd-of-ours", plan.MkFile, "etc/passwd-of-ours", 0},
		"dangling relative":   {"/dangling", plan.MkFile, "sub/file", 0},
		"root link":           {"/whole/new", 0, "new", 0},
		"loop":                {"/loop/x", 0, "", unix.ELOOP},
		"links refused":       {"/var/run", plan.MkNoLinks, "", unix.ELOOP},
		"file for directory":  {"/plain", 0, "", unix.ENOTDIR},
		"directory for file":  {"/var", plan.MkFile, "", unix.EISDIR},
		"below a file":        {"/plain/x", 0, "", unix.ENOTDIR},
		"trailing slash":      {"/t/u/", 0, "t/u", 0},
		"existing":            {"/", 0, ".", 0},
		"long name":           {"/" + strings.Repeat("n", 256), 0, "", unix.ENAMETOOLONG},
		"long path":           {strings.Repeat("/n", 2100), 0, "", unix.ENAMETOOLONG},
	} {
		t.Run(name, func(t *testing.T) {
			dir, err := os.Open(root)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = dir.Close() }()
			p := prelude(2)
			slot := p.NewSlot()
			step := p.Add(plan.Ins{Op: plan.MkPath, Args: []plan.Arg{plan.S(1), p.Str(tc.path), plan.I(tc.flags), plan.I(0o644)}, Out: slot})
			shell(p, "true")
			_, recs, _ := start(t, p, dir)
			if tc.errno != 0 {
				if want := (plan.Record{Step: uint32(step), Value: uint32(tc.errno)}); len(recs) != 1 || recs[0] != want {
					t.Errorf("got %v, want %v", recs, want)
				}
				return
			}
			if recs[0].Step != plan.StepReady {
				t.Fatalf("got %v (%v), want success", recs, syscall.Errno(recs[0].Value))
			}
			st, err := os.Lstat(filepath.Join(root, tc.want))
			if err != nil {
				t.Fatal(err)
			}
			if got, want := st.Mode().IsRegular(), tc.flags&plan.MkFile != 0; got != want {
				t.Errorf("regular file: got %v, want %v", got, want)
			}
		})
	}
	if _, err := os.Stat("/etc/passwd-of-ours"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("made a file outside of the root: %v", err)
	}
}

func TestLoadRefusesMalformedPlans(t *testing.T) {
	good := func() *plan.Plan {
		p := prelude(1)
		shell(p, "true")
		return p
	}
	for name, tc := range map[string]struct {
		change func(*plan.Plan)
		bytes  func([]byte) []byte
		want   syscall.Errno
	}{
		"good":            {want: 0},
		"no instructions": {change: func(p *plan.Plan) { p.Ins = nil }, want: unix.EINVAL},
		"no prelude":      {change: func(p *plan.Plan) { p.Ins = p.Ins[1:] }, want: unix.EINVAL},
		"slot":            {change: func(p *plan.Plan) { p.Ins[1].Args[0] = plan.S(77) }, want: unix.EINVAL},
		"out":             {change: func(p *plan.Plan) { p.Ins[1].Out = 77 }, want: unix.EINVAL},
		"data":            {change: func(p *plan.Plan) { p.Ins[1].Args[0] = plan.At(1 << 20) }, want: unix.EINVAL},
		"op":              {change: func(p *plan.Plan) { p.Ins[1].Op = 0xffff }, want: unix.EINVAL},
		"reloc":           {change: func(p *plan.Plan) { p.Relocs[0] = 1 << 20 }, want: unix.EINVAL},
		"unaligned reloc": {change: func(p *plan.Plan) { p.Relocs[0] |= 1 }, want: unix.EINVAL},
		"cgroup":          {change: func(p *plan.Plan) { p.CgroupInput = 3 }, want: unix.EINVAL},
		"exec table":      {change: func(p *plan.Plan) { p.Ins[len(p.Ins)-1].Args[1] = plan.I(1 << 20) }, want: unix.EINVAL},
		"cut":             {bytes: func(b []byte) []byte { return b[:len(b)-1] }, want: unix.EINVAL},
		"empty":           {bytes: func([]byte) []byte { return nil }, want: unix.EINVAL},
		"version":         {bytes: func(b []byte) []byte { b[8]++; return b }, want: unix.EPROTO},
	} {
		t.Run(name, func(t *testing.T) {
			p := good()
			if tc.change != nil {
				tc.change(p)
			}
			b := p.Marshal()
			if tc.bytes != nil {
				b = tc.bytes(b)
			}
			l, e := plan.Load(b)
			if e != tc.want {
				t.Errorf("load: got %v, want %v", e, tc.want)
			}
			if l != nil {
				l.Unmap()
			}
		})
	}
}

func FuzzLoad(f *testing.F) {
	p := prelude(1)
	shell(p, "true")
	f.Add(p.Marshal())
	f.Fuzz(func(_ *testing.T, b []byte) {
		if l, _ := plan.Load(b); l != nil {
			l.Unmap()
		}
	})
}

package launch

import (
	"fmt"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/oci/launch/plan"
)

// builder appends instructions, each with its words.
type builder struct {
	*plan.Plan
	l    *Launch
	what string
}

func newBuilder(needs []Need) *builder {
	p := plan.New(len(needs))
	return &builder{Plan: p, l: &Launch{Plan: p, Needs: needs}}
}

// say sets the words of the instructions that follow.
func (b *builder) say(format string, args ...any) { b.what = fmt.Sprintf(format, args...) }

func (b *builder) add(in plan.Ins) {
	b.l.steps = append(b.l.steps, b.what)
	b.Add(in)
}

// do appends an instruction whose result is not kept.
func (b *builder) do(op plan.Op, args ...plan.Arg) {
	b.add(plan.Ins{Op: op, Args: args, Out: plan.NoOut})
}

// get appends an instruction and gives the slot of its result.
func (b *builder) get(op plan.Op, args ...plan.Arg) int {
	s := b.NewSlot()
	b.add(plan.Ins{Op: op, Args: args, Out: s})
	return s
}

// tolerate lets the last instruction fail with these errnos.
func (b *builder) tolerate(es ...syscall.Errno) { b.Ins[len(b.Ins)-1].Tolerate = es }

// need is the slot of the n-th need of a kind, or -1.
func (b *builder) need(kind NeedKind, n int) int {
	for i, d := range b.l.Needs {
		if d.Kind != kind {
			continue
		}
		if n == 0 {
			return i
		}
		n--
	}
	return -1
}

const (
	cloexec       = unix.O_CLOEXEC
	pathDir       = unix.O_PATH | unix.O_DIRECTORY | cloexec
	attrSize      = 32
	moveFromEmpty = unix.MOVE_MOUNT_F_EMPTY_PATH
	moveEmpties   = unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_EMPTY_PATH
	dirMode       = 0o755
	fileMode      = 0o644
)

var cwdFD = plan.I(unix.AT_FDCWD)

// mountAttr is a struct mount_attr.
func (b *builder) mountAttr(set, propagation uint64) plan.Arg {
	return b.Words(plan.I(set), plan.I(uint64(0)), plan.I(propagation), plan.I(uint64(0)))
}

// openHow is a struct open_how.
func (b *builder) openHow(flags, resolve uint64) plan.Arg {
	return b.Words(plan.I(flags), plan.I(uint64(0)), plan.I(resolve))
}

// setAttr changes a mount, recursively or not.
func (b *builder) setAttr(fd int, recursive bool, attr plan.Arg) {
	flags := unix.AT_EMPTY_PATH
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	b.do(unix.SYS_MOUNT_SETATTR, plan.S(fd), b.Str(""), plan.I(flags), attr, plan.I(attrSize))
}

// newFS makes a filesystem and gives the slot of its detached mount. Options are
// "key=value" or "flag".
func (b *builder) newFS(fstype, source string, attr uint64, options []string) int {
	what := b.what
	fs := b.get(unix.SYS_FSOPEN, b.Str(fstype), plan.I(unix.FSOPEN_CLOEXEC))
	if source != "" {
		b.do(unix.SYS_FSCONFIG, plan.S(fs), plan.I(unix.FSCONFIG_SET_STRING), b.Str("source"), b.Str(source), plan.I(0))
	}
	for _, o := range options {
		b.say("%s: option %s", what, o)
		if k, v, ok := strings.Cut(o, "="); ok {
			b.do(unix.SYS_FSCONFIG, plan.S(fs), plan.I(unix.FSCONFIG_SET_STRING), b.Str(k), b.Str(v), plan.I(0))
		} else {
			b.do(unix.SYS_FSCONFIG, plan.S(fs), plan.I(unix.FSCONFIG_SET_FLAG), b.Str(o), plan.I(0), plan.I(0))
		}
	}
	b.what = what
	b.do(unix.SYS_FSCONFIG, plan.S(fs), plan.I(unix.FSCONFIG_CMD_CREATE), plan.I(0), plan.I(0), plan.I(0))
	return b.get(unix.SYS_FSMOUNT, plan.S(fs), plan.I(unix.FSMOUNT_CLOEXEC), plan.I(attr))
}

// mkPath gives the slot of path below root, which is made if need be.
func (b *builder) mkPath(root int, path string, flags, like int) int {
	mode := fileMode
	return b.get(plan.MkPath, plan.S(root), b.Str(path), plan.I(flags), plan.I(mode), plan.S(like))
}

// attach moves a detached mount onto a place.
func (b *builder) attach(tree, target int) {
	b.do(unix.SYS_MOVE_MOUNT, plan.S(tree), b.Str(""), plan.S(target), b.Str(""), plan.I(moveEmpties))
}

// attachAt moves a detached mount onto a trusted path.
func (b *builder) attachAt(tree int, dir plan.Arg, path string) {
	b.do(unix.SYS_MOVE_MOUNT, plan.S(tree), b.Str(""), dir, b.Str(path), plan.I(moveFromEmpty))
}

// undumpable hides the process from the eyes of container root: changing ids or a
// user namespace sets the flag back to what /proc/sys/fs/suid_dumpable says.
func (b *builder) undumpable() {
	b.do(unix.SYS_PRCTL, plan.I(unix.PR_SET_DUMPABLE), plan.I(0), plan.I(0), plan.I(0), plan.I(0))
}

func (b *builder) prctl(option int, args ...int) {
	as := []plan.Arg{plan.I(option)}
	for len(args) < 4 {
		args = append(args, 0)
	}
	for _, a := range args {
		as = append(as, plan.I(a))
	}
	b.do(unix.SYS_PRCTL, as...)
}

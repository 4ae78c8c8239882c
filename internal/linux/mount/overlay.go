package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/thread"
)

// Overlay describes an overlay filesystem. The upper directory of a container in
// a user namespace is plain and owned by the mapped root; only lowers are mapped.
type Overlay struct {
	Lower       []string // directories, the top one first
	Upper, Work string   // both empty: a read-only overlay
	IDMap       *os.File // user namespace by which the lowers are mapped, nil none
	ReadOnly    bool     // the mount is read-only though there is an upper
	Options     []string // further options, "key=value" or "flag"
	// Volatile is for an upper that need not survive the kernel: nothing in it is ever
	// synced. Without, each fsync in the container is one of the disk, and the end of the
	// overlay writes back the whole filesystem of the upper, whoever filled it.
	Volatile bool
	// Way restricts how the overlay is made; 0 tries each, the best one first.
	Way Way
}

// Way is one way to make an overlay. Each works from some kernel on.
type Way int

// The ways.
const (
	// Detached uses lowerdir+ and lowers that are detached mounts: 6.15, or 6.7
	// when no lower needs to be mapped.
	Detached Way = iota + 1
	// Scratch makes the overlay by mount(2) in a mount namespace of its own.
	Scratch
)

// ErrReadOnly says that overlay fell back to read-only because the kernel could
// not use the upper or work directory. It does so without an error, for example
// when they are on an idmapped mount (EOVERFLOW on the work directory).
var ErrReadOnly = errors.New("overlay became read-only: upper or work directory not usable")

// Mount makes the overlay and returns it as a detached mount.
func (o Overlay) Mount() (*os.File, error) {
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("mount overlay: %w", err)
	}
	f, err := o.mount()
	if err != nil {
		return nil, fmt.Errorf("mount overlay of %d layers: %w", len(o.Lower), err)
	}
	if o.Upper == "" {
		return f, nil
	}
	var st unix.Statfs_t
	err = unix.Fstatfs(int(f.Fd()), &st)
	if err == nil && st.Flags&unix.ST_RDONLY != 0 {
		err = ErrReadOnly
	}
	if err == nil && o.ReadOnly {
		err = SetAttr(f, false, Attr{ReadOnly: true})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("mount overlay on %s: %w", o.Upper, err), f.Close())
	}
	return f, nil
}

func (o Overlay) mount() (*os.File, error) {
	if len(o.Lower) == 1 && o.Upper == "" {
		return o.single()
	}
	if o.Way == Scratch {
		return o.scratch()
	}
	f, err := o.detached()
	if err == nil || o.Way == Detached || !tooOld(err) {
		return f, err
	}
	g, err2 := o.scratch()
	if err2 != nil {
		return nil, errors.Join(err2, fmt.Errorf("and before that: %w", err))
	}
	return g, nil
}

// single is a read-only view of the only layer: the kernel refuses an overlay of one
// directory, and a lone layer has nothing that a whiteout could hide.
func (o Overlay) single() (*os.File, error) {
	f, err := Clone(o.Lower[0], false)
	if err != nil {
		return nil, err
	}
	if err := SetAttr(f, false, Attr{ReadOnly: true, IDMap: o.IDMap}); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// tooOld tells whether an older way may still work: EINVAL is what a kernel without
// lowerdir+ (6.7), or without overlays of detached mounts (6.15), says.
func tooOld(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS)
}

func (o Overlay) check() error {
	if len(o.Lower) == 0 || len(o.Lower) > 500 { // OVL_MAX_STACK
		return fmt.Errorf("%d lower directories, want 1 to 500: %w", len(o.Lower), errdef.ErrInvalid)
	}
	if (o.Upper == "") != (o.Work == "") {
		return fmt.Errorf("upper %q and work %q: need both or neither: %w", o.Upper, o.Work, errdef.ErrInvalid)
	}
	return nil
}

// lowers opens every lower: as mapped detached mounts, or as it is.
func (o Overlay) lowers(cloned bool) (_ []*os.File, err error) {
	var out []*os.File
	defer func() {
		if err != nil {
			closeAll(out)
		}
	}()
	for _, dir := range o.Lower {
		if !cloned && o.IDMap == nil {
			f, err := openDir(dir)
			if err != nil {
				return out, fmt.Errorf("open layer: %w", err)
			}
			out = append(out, f)
			continue
		}
		f, err := Clone(dir, false)
		if err != nil {
			return out, err
		}
		out = append(out, f)
		if o.IDMap != nil {
			if err := SetAttr(f, false, Attr{IDMap: o.IDMap}); err != nil {
				return out, fmt.Errorf("map layer %s: %w", dir, err)
			}
		}
	}
	return out, nil
}

// openDir is os.OpenFile without asking the poller, which has no use for O_PATH.
func openDir(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// detached passes the layers by descriptor, so neither their number nor the length
// of their paths matters (fsconfig strings end at 256 bytes).
func (o Overlay) detached() (*os.File, error) {
	if err := o.forgetVolatile(); err != nil {
		return nil, err
	}
	lowers, err := o.lowers(false)
	if err != nil {
		return nil, err
	}
	defer closeAll(lowers)
	options := []string{}
	for _, f := range lowers {
		options = append(options, "lowerdir+="+procFd(f))
	}
	if o.Upper != "" {
		for _, d := range []struct{ key, dir string }{{"upperdir", o.Upper}, {"workdir", o.Work}} {
			f, err := openDir(d.dir)
			if err != nil {
				return nil, fmt.Errorf("open %s: %w", d.key, err)
			}
			defer func() { _ = f.Close() }()
			options = append(options, d.key+"="+procFd(f))
		}
	}
	return New("overlay", "overlay", append(options, o.options()...), Attr{})
}

func procFd(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }

// options puts ours first, so that the caller's win. With index on, the kernel's
// build default on some distributions, an upper whose former mount is still being
// torn down is refused. With xino, all files have the device number of the overlay and
// inode numbers of their own, also where each layer is a filesystem: else `tar
// --one-file-system` and `du -x` leave out the files of the layers, and two files of two
// layers may look like hard links.
func (o Overlay) options() []string {
	out := []string{"index=off", "xino=on"}
	if o.Volatile {
		out = append(out, "volatile")
	}
	return append(out, o.Options...)
}

// forgetVolatile removes the mark by which overlay refuses an upper that was volatile
// before (ovl_workdir_cleanup in fs/overlayfs/readdir.c): its files may be lost after a
// crash of the kernel. Whoever asks for Volatile knows that there was none: the upper
// would not be here any more. Each way does this: one that the kernel refuses because of
// the lowers has left the mark by then (ovl_fill_super).
func (o Overlay) forgetVolatile() error {
	if !o.Volatile || o.Work == "" {
		return nil
	}
	if err := os.RemoveAll(filepath.Join(o.Work, "work", "incompat")); err != nil {
		return fmt.Errorf("forget former mount: %w", err)
	}
	return nil
}

// scratch makes the overlay in a private mount namespace. Overlay takes layers from
// the caller's mount namespace only (before 6.15), so they are attached there, under
// names so short that the options fit mount(2)'s single page.
func (o Overlay) scratch() (*os.File, error) {
	if err := o.forgetVolatile(); err != nil {
		return nil, err
	}
	// Cloned before unshare: idmapping needs a detached mount.
	lowers, err := o.lowers(true)
	if err != nil {
		return nil, err
	}
	defer closeAll(lowers)
	var out *os.File
	err = thread.Throwaway(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
			return fmt.Errorf("make mount namespace: %w", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("make mounts private: %w", err)
		}
		out, err = o.inScratch(lowers)
		return err
	})
	return out, err
}

// inScratch runs on a thread of the private mount namespace, whose first lower
// directory serves as the place: it exists, and its content was cloned already.
func (o Overlay) inScratch(lowers []*os.File) (*os.File, error) {
	options := o.options()
	if o.Upper != "" {
		// Opened here, so that they are on this namespace's mounts.
		for _, d := range []struct{ key, dir string }{{"upperdir", o.Upper}, {"workdir", o.Work}} {
			f, err := openDir(d.dir)
			if err != nil {
				return nil, fmt.Errorf("open %s: %w", d.key, err)
			}
			defer func() { _ = f.Close() }()
			options = append(options, d.key+"="+procFd(f))
		}
	}
	if err := unix.Mount("tmpfs", o.Lower[0], "tmpfs", 0, "mode=700"); err != nil {
		return nil, fmt.Errorf("mount scratch: %w", err)
	}
	if err := unix.Chdir(o.Lower[0]); err != nil {
		return nil, fmt.Errorf("enter scratch: %w", err)
	}
	names := make([]string, len(lowers))
	for i, f := range lowers {
		names[i] = strconv.FormatInt(int64(i), 36)
		if err := unix.Mkdir(names[i], 0o700); err != nil {
			return nil, fmt.Errorf("make scratch directory: %w", err)
		}
		if err := AttachPath(f, names[i]); err != nil {
			return nil, err
		}
	}
	options = append(options, "lowerdir="+strings.Join(names, ":"))
	if err := unix.Mount("overlay", ".", "overlay", 0, strings.Join(options, ",")); err != nil {
		return nil, fmt.Errorf("mount in scratch: %w", err)
	}
	return Clone(o.Lower[0], false)
}

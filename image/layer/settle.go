package layer

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/image/erofs"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// Settle completes the layer in dir from the layers below it, topmost first, as a merged
// view would show them: hard links get a copy of their target, as overlay's link(2) makes
// it, and implied directories get owner, mode, attributes and times. It gives the bytes
// added, at most limit if that is not 0. After an error the layer is worth nothing.
func Settle(dir string, below []string, o Open, limit int64) (bytes uint64, err error) {
	root, err := openRoot(dir)
	if err != nil {
		return 0, err
	}
	defer root.close()
	t := &dirTop{root: root.root}
	err = settle(t, below, o, limit)
	return t.bytes, kindOf(err)
}

// SettleTree is Settle for an indexed layer: it completes the tree from the root
// directories of the layers below, topmost first. The data of files that they give away
// are appended to tar. It gives the bytes added to the file, at most limit if that is not 0.
func SettleTree(x *Indexed, lowers []string, tar *os.File, limit int64) (bytes uint64, err error) {
	t := &treeTop{root: x.Tree, spill: newSpill(tar, x.Size)}
	if err := settle(t, lowers, x.Open, limit); err != nil {
		return 0, kindOf(err)
	}
	if err := t.spill.close(); err != nil {
		return 0, err
	}
	bytes = uint64(t.spill.end - x.Size) // #nosec G115 -- it only grows
	x.Size, x.Open = t.spill.end, Open{}
	x.Bytes += bytes
	return bytes, nil
}

// a top is a layer that is being settled, in one of its two forms. Paths are free of links.
type top interface {
	// has tells what the layer has under a path, and whether it hides what is below it.
	has(path string) (exists, hides bool, err error)
	// mkdir makes a directory that is as n is.
	mkdir(path string, n *erofs.Node) error
	// copy puts one copy of a lower file under all names.
	copy(names []string, from *lower, n *erofs.Node) error
	// link puts what the layer has under names as well.
	link(path string, names []string) error
	// inherit gives a directory the attributes of n.
	inherit(path string, n *erofs.Node) error
}

func settle(t top, below []string, o Open, limit int64) error {
	if !o.Any() {
		return nil
	}
	lowers, err := openStack(below)
	if err != nil {
		return err
	}
	defer lowers.close()
	s := &settling{top: t, lowers: lowers, left: limit, bound: limit, made: map[string]bool{}}
	for _, l := range o.Links {
		if err := s.link(l); err != nil {
			return fmt.Errorf("hard link to %.200q: %w", l.Target, err)
		}
	}
	// Children first, so that a parent's time is not touched after it was set.
	for _, path := range slices.Backward(o.Implied) {
		from, err := lowers.find(path, false)
		if err != nil {
			return err
		}
		if from == nil {
			continue
		}
		if from.kind() == unix.S_IFDIR {
			var n *erofs.Node
			if n, err = from.node(); err == nil {
				err = t.inherit(path, n)
			}
		}
		from.close()
		if err != nil {
			return fmt.Errorf("inherit attributes of %.200q: %w", path, err)
		}
	}
	return nil
}

type settling struct {
	top
	lowers      stack
	left, bound int64
	made        map[string]bool // targets that have their copy
}

func (s *settling) link(l Link) error {
	from, err := s.lowers.find(l.Target, true)
	if err != nil {
		return err
	}
	if from == nil {
		return fmt.Errorf("neither the layer nor those below have it: %w", errdef.ErrInvalid)
	}
	defer from.close()
	if from.kind() == unix.S_IFDIR {
		return fmt.Errorf("it is a directory: %w", errdef.ErrInvalid)
	}
	names := l.Names
	if from.path != l.Target || s.made[from.path] {
		// A link of a lower layer was on the way, so that the stage could not tell what this
		// layer has at its end.
		exists, hides, err := s.has(from.path)
		switch {
		case err != nil:
			return err
		case exists:
			return s.top.link(from.path, names)
		case hides:
			return fmt.Errorf("it was deleted: %w", errdef.ErrInvalid)
		}
	}
	if l.Own {
		if err := s.parents(from.path); err != nil {
			return err
		}
		names = append([]string{from.path}, names...)
		s.made[from.path] = true
	}
	if from.kind() == unix.S_IFREG {
		if s.left -= from.st.Size; s.bound > 0 && s.left < 0 {
			return fmt.Errorf("layer is larger than %d bytes: %w", s.bound, errdef.ErrExhausted)
		}
	}
	n, err := from.node()
	if err != nil {
		return err
	}
	return s.copy(names, from, n)
}

// parents makes the directories above a path of the lower layers that are missing.
func (s *settling) parents(path string) error {
	for i := range path {
		if path[i] != '/' {
			continue
		}
		dir := path[:i]
		if exists, _, err := s.has(dir); err != nil || exists {
			if err != nil {
				return err
			}
			continue
		}
		from, err := s.lowers.find(dir, false)
		if err != nil {
			return err
		}
		if from == nil {
			return fmt.Errorf("its directory is gone: %w", errdef.ErrInvalid)
		}
		n, err := from.node()
		from.close()
		if err == nil {
			err = s.mkdir(dir, n)
		}
		if err != nil {
			return fmt.Errorf("make parent %.200q: %w", dir, err)
		}
	}
	return nil
}

// inTheWay is for links of one layer that contradict each other once those of the layers
// below have been followed.
func inTheWay(path string) error {
	return fmt.Errorf("another link is in the way of %.200q: %w", path, errdef.ErrInvalid)
}

// treeTop is a tree with the file of its data.
type treeTop struct {
	root  *erofs.Node
	spill *spill
}

func (t *treeTop) has(path string) (exists, hides bool, err error) {
	n := t.root
	for name := range strings.SplitSeq(path, "/") {
		if !isDir(n) {
			return false, true, nil
		}
		hides = hides || isOpaque(n)
		if n = n.Children[name]; n == nil {
			return false, hides, nil
		}
	}
	if isWhiteout(n) {
		return false, true, nil
	}
	return true, hides, nil
}

func (t *treeTop) put(path string, n *erofs.Node) error {
	dir, base := split(path)
	d := lookup(t.root, dir)
	if d == nil || !isDir(d) {
		return inTheWay(path)
	}
	if old := d.Children[base]; old != nil && isDir(old) {
		return inTheWay(path)
	}
	d.Children[base] = n
	return nil
}

func (t *treeTop) mkdir(path string, n *erofs.Node) error { return t.put(path, n) }

func (t *treeTop) copy(names []string, from *lower, n *erofs.Node) error {
	if from.kind() == unix.S_IFREG {
		f, err := from.open()
		if err != nil {
			return err
		}
		n.Extents, err = t.spill.add(f, n.Size)
		f.Close()
		if err != nil {
			return fmt.Errorf("copy file: %w", err)
		}
	}
	for _, name := range names {
		if err := t.put(name, n); err != nil {
			return err
		}
	}
	return nil
}

func (t *treeTop) link(path string, names []string) error {
	n := lookup(t.root, path)
	if isDir(n) {
		return fmt.Errorf("it is a directory: %w", errdef.ErrInvalid)
	}
	for _, name := range names {
		if err := t.put(name, n); err != nil {
			return err
		}
	}
	return nil
}

func (t *treeTop) inherit(path string, n *erofs.Node) error {
	d := lookup(t.root, path)
	if d == nil || !isDir(d) {
		return fmt.Errorf("it is not there: %w", errdef.ErrInvalid)
	}
	describeAgain(d, n)
	return nil
}

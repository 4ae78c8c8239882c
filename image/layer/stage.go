package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/image/erofs"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// A sink keeps what the stage has checked. Paths are free of links, their parents exist
// and, but for remove and the old name of link, nothing is there yet.
type sink interface {
	// make makes anything without data; what a directory is, finish tells.
	make(path string, n *erofs.Node) error
	file(path string, n *erofs.Node, b body) error
	link(old, path string) error
	// remove deletes a name with all below it.
	remove(path string, n *erofs.Node) error
	// finish is told the whole once the stream has ended.
	finish(root *erofs.Node) error
}

// body is the data of a file.
type body struct {
	io.Reader
	sparse bool
	entry  int // the number of the entry in the stream
}

// stage checks entries and applies them.
type stage struct {
	*tree
	sink    sink
	opt     Options
	total   int64
	entries int
	now     *tar.Header // the entry at hand
	path    string      // and its name, cleaned
	res     Result
	implied []place // in order of appearance, parents first
	links   []pending
}

// pending is a link to a lower file with the names that it got, some of them lost again.
type pending struct {
	node   *erofs.Node
	target string
	names  []string
}

// run reads the stream src to its end, by way of r.
func (s *stage) run(ctx context.Context, src *stream, r io.Reader) error {
	tr := tar.NewReader(r)
	for {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("apply layer: %w", err)
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return src.blame("read layer", err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if err := s.entry(h, tr); err != nil {
			return fmt.Errorf("apply layer entry %.200q: %w", h.Name, err)
		}
	}
	// What follows the end marker belongs to the digest.
	if _, err := io.Copy(struct{ io.Writer }{io.Discard}, r); err != nil {
		return src.blame("read layer", err)
	}
	s.close()
	return s.sink.finish(s.root)
}

func (s *stage) entry(h *tar.Header, r io.Reader) error {
	s.entries++
	if err := s.limit(); err != nil {
		return err
	}
	if s.now == nil { // a root that is not described is as old as the first that is in it
		s.root.Sec, s.root.Nsec = h.ModTime.Unix(), uint32(h.ModTime.Nanosecond()) // #nosec G115 -- below 1e9
	}
	s.now = h
	path, err := cleanPath(h.Name)
	if err != nil {
		return err
	}
	if path == "" && h.Typeflag != tar.TypeDir {
		return fmt.Errorf("the root is not a directory: %w", errdef.ErrInvalid)
	}
	if err := checkOwner(h); err != nil {
		return err
	}
	if path == "" {
		return s.describeRoot()
	}
	if ignore, err := reserved(path); ignore || err != nil || linksItself(h, path) {
		return err
	}
	s.path = path
	p, base, err := s.parent(path)
	if err != nil {
		return err
	}
	switch {
	case strings.HasPrefix(base, whiteoutPrefix):
		return s.whiteout(p, base)
	case h.Typeflag == tar.TypeLink:
		return s.link(p, base)
	case strings.IndexByte(inodeTypes, h.Typeflag) < 0:
		return fmt.Errorf("entry type %q is not supported: %w", h.Typeflag, errdef.ErrInvalid)
	}
	return s.inode(p, base, r)
}

// inodeTypes are those of entries that make an inode; 0 is a regular file of old.
const inodeTypes = string(tar.TypeReg) + "\x00" + string(tar.TypeCont) + string(tar.TypeGNUSparse) + string(tar.TypeDir) +
	string(tar.TypeSymlink) + string(tar.TypeChar) + string(tar.TypeBlock) + string(tar.TypeFifo)

func (s *stage) inode(p place, base string, r io.Reader) error {
	n, err := describe(s.now)
	if err != nil {
		return err
	}
	switch n.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return s.directory(p, base, n)
	case unix.S_IFREG:
		return s.file(p, base, n, r)
	}
	return s.add(p, base, n)
}

// linksItself tells whether an entry changes nothing, not even directories above it.
func linksItself(h *tar.Header, path string) bool {
	if h.Typeflag != tar.TypeLink {
		return false
	}
	target, err := cleanPath(h.Linkname)
	_, base := split(path)
	return err == nil && target == path && !strings.HasPrefix(base, whiteoutPrefix)
}

// at is the path of a name; most often the entry's own, which needs no new string.
func (s *stage) at(p place, base string) string {
	if n := len(p.path); len(s.path) == n+1+len(base) && s.path[:n] == p.path && s.path[n] == '/' && s.path[n+1:] == base {
		return s.path
	}
	return join(p.path, base)
}

// limit bounds what a layer makes: entries and the directories that they imply.
func (s *stage) limit() error {
	if n := s.entries + len(s.implied); s.opt.MaxEntries > 0 && n > s.opt.MaxEntries {
		return fmt.Errorf("more than %d entries: %w", s.opt.MaxEntries, errdef.ErrExhausted)
	}
	return nil
}

// reserved tells whether a path goes through a name that only marks may have: what aufs
// kept in directories of its own means nothing.
func reserved(path string) (ignore bool, err error) {
	if !strings.Contains(path, whiteoutPrefix) {
		return false, nil
	}
	dir, _ := split(path)
	for name := range strings.SplitSeq(dir, "/") {
		if strings.HasPrefix(name, aufsPrefix) {
			return true, nil
		}
		if strings.HasPrefix(name, whiteoutPrefix) {
			return false, fmt.Errorf("the mark %.200q has something below it: %w", name, errdef.ErrInvalid)
		}
	}
	return false, nil
}

// describeRoot takes the attributes of the image's root directory.
func (s *stage) describeRoot() error {
	n, err := describe(s.now)
	if err != nil {
		return err
	}
	s.res.Root = &Attr{Mode: n.Mode & 0o7777, UID: n.UID, GID: n.GID, Mtime: s.now.ModTime}
	describeAgain(s.root, n)
	return nil
}

// describeAgain replaces the attributes of a directory; what overlay is told of it stays.
func describeAgain(old, n *erofs.Node) {
	before := old.Xattr
	n.Children = old.Children
	*old = *n
	for _, x := range before {
		if strings.HasPrefix(x.Name, overlayAttrs) {
			mark(old, x)
		}
	}
}

// parent gives the directory that holds path, made if need be, and path's last element.
func (s *stage) parent(path string) (place, string, error) {
	dir, base := split(path)
	p, err := s.dir(dir)
	if err == nil && len(p.path)+1+len(base) >= unix.PathMax {
		err = fmt.Errorf("path of %d bytes behind a link: %w", len(p.path)+1+len(base), errdef.ErrInvalid)
	}
	return p, base, err
}

func (s *stage) dir(path string) (place, error) {
	p := place{node: s.root}
	if path == "" {
		return p, nil
	}
	if path == s.lastAs {
		return s.last, nil
	}
	straight := true // p.path is what path begins with
	for rest, more := path, true; more; {
		var name string
		name, rest, more = strings.Cut(rest, "/")
		n := p.node.Children[name]
		var err error
		switch {
		case n != nil && isDir(n):
			p.node = n
			if straight { // no need for a new string
				p.path = path[:len(path)-len(rest)]
				if more {
					p.path = p.path[:len(p.path)-1]
				}
			} else {
				p.path = join(p.path, name)
			}
			err = s.real(p)
		case n != nil && isLink(n):
			// A link of this layer on the way, such as lib -> usr/lib: follow it inside.
			straight = false
			p, err = s.follow(join(p.path, name))
		default:
			p, err = s.imply(p, name)
		}
		if err != nil {
			return place{}, err
		}
	}
	s.last, s.lastAs = p, path
	return p, nil
}

// follow gives the directory that a link leads to.
func (s *stage) follow(path string) (place, error) {
	w, err := s.walk(path)
	if err != nil {
		return place{}, fmt.Errorf("parent is a symbolic link that leads to no directory of this layer: %w", err)
	}
	if len(w.missing) > 0 {
		return place{}, fmt.Errorf("parent is a symbolic link that leads to no directory of this layer: %w", errdef.ErrInvalid)
	}
	for i, n := range w.nodes[1:] {
		if err := s.real(place{n, strings.Join(w.names[:i+1], "/")}); err != nil {
			return place{}, err
		}
	}
	return w.place(), nil
}

// real makes the sink have a directory that it may not have yet; the parents it has.
func (s *stage) real(p place) error {
	if len(s.states) == 0 || !s.states[p.node].virtual {
		return nil
	}
	s.states[p.node] = state{implied: true}
	return s.sink.make(p.path, p.node)
}

// imply makes a directory that the stream uses without having described it. A file, or
// a whiteout, of this layer in a parent's place gives way: the later entry wins.
func (s *stage) imply(p place, name string) (place, error) {
	n, err := s.newDir(p, name)
	if err != nil {
		return place{}, err
	}
	sub := place{n, join(p.path, name)}
	if len(sub.path) >= unix.PathMax {
		return place{}, fmt.Errorf("path of %d bytes behind a link: %w", len(sub.path), errdef.ErrInvalid)
	}
	if err := s.sink.make(sub.path, n); err != nil {
		return place{}, fmt.Errorf("make parent: %w", err)
	}
	s.states[n] = state{implied: true}
	return sub, nil
}

// newDir puts an implied directory in place of what was there.
func (s *stage) newDir(p place, name string) (*erofs.Node, error) {
	// One entry may imply two thousand.
	if err := s.limit(); err != nil {
		return nil, err
	}
	n := &erofs.Node{Mode: unix.S_IFDIR | 0o755, Children: map[string]*erofs.Node{},
		Sec: s.now.ModTime.Unix(), Nsec: uint32(s.now.ModTime.Nanosecond())} // #nosec G115 -- below 1e9
	if err := s.clearFor(p, name, n); err != nil {
		return nil, err
	}
	p.put(name, n)
	s.implied = append(s.implied, place{n, strings.Clone(join(p.path, name))})
	s.count(block)
	return n, nil
}

// clearFor removes what is in the way of n.
func (s *stage) clearFor(p place, name string, n *erofs.Node) error {
	old := p.node.Children[name]
	if old == nil {
		return nil
	}
	if isWhiteout(old) && isDir(n) {
		// The whiteout hid what the layers below have; the directory has to go on doing so.
		makeOpaque(n)
	}
	s.forget(p, name)
	if st := s.states[old]; st.virtual || st.link > 0 {
		return nil
	}
	if err := s.sink.remove(join(p.path, name), old); err != nil {
		return fmt.Errorf("replace: %w", err)
	}
	return nil
}

// add makes what has no data.
func (s *stage) add(p place, base string, n *erofs.Node) error {
	if err := s.clearFor(p, base, n); err != nil {
		return err
	}
	s.count(0)
	if isWhiteout(n) && p.node != s.root { // roots are always looked through
		mark(p.node, erofs.Xattr{Name: originAttr})
	}
	p.put(base, n)
	return s.sink.make(s.at(p, base), n)
}

func (s *stage) directory(p place, base string, n *erofs.Node) error {
	old := p.node.Children[base]
	if old != nil && isDir(old) {
		describeAgain(old, n)
		err := s.real(place{old, s.at(p, base)})
		delete(s.states, old)
		return err
	}
	n.Children = map[string]*erofs.Node{}
	if err := s.clearFor(p, base, n); err != nil {
		return err
	}
	s.count(block)
	p.put(base, n)
	return s.sink.make(s.at(p, base), n)
}

func (s *stage) file(p place, base string, n *erofs.Node, r io.Reader) error {
	if n.Size < 0 || s.opt.MaxBytes > 0 && n.Size > s.opt.MaxBytes-s.total {
		return fmt.Errorf("layer is larger than %d bytes: %w", s.opt.MaxBytes, errdef.ErrExhausted)
	}
	s.total += n.Size
	if err := s.clearFor(p, base, n); err != nil {
		return err
	}
	s.count((uint64(n.Size) + block - 1) / block * block) // #nosec G115 -- checked above
	p.put(base, n)
	return s.sink.file(s.at(p, base), n, body{r, isSparse(s.now), s.entries})
}

// isSparse tells whether what the stream holds of a file may not be the file's bytes.
func isSparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// whiteout turns the layer format's deletion marks into overlay's.
func (s *stage) whiteout(p place, base string) error {
	if base == opaqueMarker {
		if p.node == s.root {
			// Overlay merges the roots of all layers whatever their attributes say.
			s.res.OpaqueRoot = true
		} else {
			makeOpaque(p.node)
		}
		return nil
	}
	if strings.HasPrefix(base, aufsPrefix) {
		return nil
	}
	name := strings.TrimPrefix(base, whiteoutPrefix)
	if name == "" || name == "." || name == ".." {
		return fmt.Errorf("whiteout of no name: %w", errdef.ErrInvalid)
	}
	n := p.node.Children[name]
	if n == nil {
		return s.add(p, name, &erofs.Node{Mode: unix.S_IFCHR, Sec: s.now.ModTime.Unix(), Nsec: uint32(s.now.ModTime.Nanosecond())}) // #nosec G115 -- below 1e9
	}
	// The mark is about the layers below; what this layer has of that name stays.
	if isDir(n) {
		makeOpaque(n)
		return s.real(place{n, join(p.path, name)})
	}
	return nil
}

func (s *stage) count(bytes uint64) {
	s.res.Bytes += bytes
	s.res.Inodes++
}

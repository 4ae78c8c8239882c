package layer

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/image/erofs"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// link makes a hard link: to what an earlier entry of this layer made, or to what a lower
// layer has, which has to wait for Settle. A link is linked, never what it points to.
func (s *stage) link(p place, base string) error {
	target, err := cleanPath(s.now.Linkname)
	if err == nil && target == "" {
		err = fmt.Errorf("it is the root: %w", errdef.ErrInvalid)
	}
	if err == nil {
		err = s.linkTo(p, base, target)
	}
	if err != nil {
		return fmt.Errorf("hard link to %.200q: %w", s.now.Linkname, err)
	}
	return nil
}

func (s *stage) linkTo(p place, base, target string) error {
	path := s.at(p, base)
	dir, name := split(target)
	w, err := s.walk(dir)
	if err != nil {
		return err
	}
	real := join(strings.Join(slices.Concat(w.names, w.missing), "/"), name)
	if path == real {
		return nil // to itself
	}
	if strings.HasPrefix(real, path+"/") {
		return fmt.Errorf("it is below the link's own name: %w", errdef.ErrInvalid)
	}
	var n *erofs.Node
	if len(w.missing) == 0 {
		n = w.dir().Children[name]
	}
	switch {
	case n == nil:
		if n, err = s.deferLink(w, name); err != nil {
			return err
		}
	case isDir(n):
		return fmt.Errorf("it is a directory: %w", errdef.ErrInvalid)
	case isWhiteout(n):
		return fmt.Errorf("it was deleted: %w", errdef.ErrInvalid)
	case n == p.node.Children[base]:
		return nil
	}
	if err := s.clearFor(p, base, n); err != nil {
		return err
	}
	p.put(base, n)
	if i := s.states[n].link; i > 0 {
		s.links[i-1].names = append(s.links[i-1].names, path)
		return nil
	}
	return s.sink.link(real, path)
}

// deferLink makes a place for what may come from a lower layer: a placeholder that
// Settle fills in. Entries that follow can replace it, or link to it once more.
func (s *stage) deferLink(w *walked, name string) (*erofs.Node, error) {
	if s.res.OpaqueRoot || w.hidden() {
		return nil, fmt.Errorf("it was deleted: %w", errdef.ErrInvalid)
	}
	p := w.place()
	for _, d := range w.missing {
		n, err := s.newDir(p, d)
		if err != nil {
			return nil, err
		}
		s.states[n] = state{virtual: true}
		p = place{n, join(p.path, d)}
	}
	target := join(p.path, name)
	if len(target) >= unix.PathMax {
		return nil, fmt.Errorf("path of %d bytes behind a link: %w", len(target), errdef.ErrInvalid)
	}
	n := &erofs.Node{Mode: unix.S_IFREG}
	p.put(name, n)
	s.count(0)
	s.links = append(s.links, pending{node: n, target: target})
	s.states[n] = state{link: len(s.links)}
	return n, nil
}

// close tells what remains to be settled, and takes placeholders out of the tree.
func (s *stage) close() {
	for _, l := range s.links {
		own := s.lookup(l.target) == l.node
		names := slices.DeleteFunc(l.names, func(n string) bool { return s.lookup(n) != l.node })
		slices.Sort(names)
		if names = slices.Compact(names); own || len(names) > 0 {
			s.res.Links = append(s.res.Links, Link{Target: l.target, Own: own, Names: names})
		}
	}
	for _, l := range s.res.Links {
		for _, name := range l.Names {
			s.drop(name)
		}
		if l.Own {
			s.drop(l.Target)
		}
	}
	for _, p := range slices.Backward(s.implied) {
		if s.states[p.node].virtual && s.lookup(p.path) == p.node && len(p.node.Children) == 0 {
			s.drop(p.path)
		}
	}
	for _, p := range s.implied {
		if s.states[p.node].implied && s.lookup(p.path) == p.node {
			s.res.Implied = append(s.res.Implied, p.path)
		}
	}
}

// drop takes a name out of the tree.
func (s *stage) drop(path string) {
	dir, base := split(path)
	if d := s.lookup(dir); d != nil {
		delete(d.Children, base)
	}
}

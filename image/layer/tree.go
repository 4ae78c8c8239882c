package layer

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/image/erofs"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// maxLinks is the kernel's MAXSYMLINKS.
const maxLinks = 40

// state is what the stage knows of an inode beyond what an image holds; most have none.
type state struct {
	implied bool // a directory that the stream used without describing it
	// virtual: a directory that so far only the target of a link to a lower file has
	// passed; the sink has none.
	virtual bool
	link    int // 1 + the link that this placeholder stands for; the sink has none
}

// place is a directory with its path, free of links.
type place struct {
	node *erofs.Node
	path string
}

// tree is the layer as the entries so far have made it.
type tree struct {
	root   *erofs.Node
	states map[*erofs.Node]state
	last   place  // found under
	lastAs string // this path; "" for nothing
}

func newTree() *tree {
	return &tree{root: &erofs.Node{Mode: unix.S_IFDIR | 0o755, Children: map[string]*erofs.Node{}},
		states: map[*erofs.Node]state{}}
}

// lookup finds a path free of links.
func (t *tree) lookup(path string) *erofs.Node { return lookup(t.root, path) }

func lookup(n *erofs.Node, path string) *erofs.Node {
	if path == "" {
		return n
	}
	for name := range strings.SplitSeq(path, "/") {
		if n = n.Children[name]; n == nil {
			return nil
		}
	}
	return n
}

// walked is a way from the root: directories with their names, and what is missing.
type walked struct {
	nodes   []*erofs.Node
	names   []string
	missing []string
}

func (w *walked) dir() *erofs.Node { return w.nodes[len(w.nodes)-1] }

func (w *walked) place() place { return place{w.dir(), strings.Join(w.names, "/")} }

// hidden tells whether this layer hides what the layers below have there.
func (w *walked) hidden() bool { return slices.ContainsFunc(w.nodes, isOpaque) }

// walk follows path to a directory as openat2(RESOLVE_IN_ROOT) would: links are followed
// from the root if they are absolute, and ".." ends there. What does not exist yet is left
// as missing.
func (t *tree) walk(path string) (*walked, error) {
	w := &walked{nodes: []*erofs.Node{t.root}}
	todo, links := strings.Split(path, "/"), 0
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		switch {
		case name == "" || name == ".":
			continue
		case len(name) > maxName:
			return nil, fmt.Errorf("a name of %d bytes on the way: %w", len(name), errdef.ErrInvalid)
		case name == "..":
			if n := len(w.names); n > 0 {
				w.names, w.nodes = w.names[:n-1], w.nodes[:n]
			}
			continue
		}
		n := w.dir().Children[name]
		switch {
		case n == nil:
			w.missing = append([]string{name}, todo...)
			return w, w.checkMissing()
		case isDir(n):
			w.names, w.nodes = append(w.names, name), append(w.nodes, n)
		case isLink(n):
			if links++; links > maxLinks {
				return nil, fmt.Errorf("too many links on the way: %w", errdef.ErrInvalid)
			}
			if n.Target[0] == '/' {
				w.names, w.nodes = nil, w.nodes[:1]
			}
			todo = slices.Concat(strings.Split(n.Target, "/"), todo)
		default:
			return nil, fmt.Errorf("%.200q on the way is not a directory: %w", name, errdef.ErrInvalid)
		}
	}
	return w, nil
}

// checkMissing cleans what is missing. Only the layers below could tell where a ".." in
// it leads: refused.
func (w *walked) checkMissing() error {
	w.missing = slices.DeleteFunc(w.missing, func(s string) bool { return s == "" || s == "." })
	for _, s := range w.missing {
		if s == ".." || len(s) > maxName {
			return fmt.Errorf("link through %.200q, which the layer does not have: %w", s, errdef.ErrInvalid)
		}
	}
	return nil
}

// put gives a name to an inode.
func (p place) put(name string, n *erofs.Node) {
	p.node.Children[strings.Clone(name)] = n // a header's name may be long, and would stay
}

// forget drops a name. Paths through it, or through a link of that name, have changed.
func (t *tree) forget(p place, name string) {
	if n := p.node.Children[name]; isDir(n) || isLink(n) {
		t.lastAs = ""
	}
	delete(p.node.Children, name)
}

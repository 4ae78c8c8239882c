package cni

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containernetworking/cni/libcni"
	"golang.org/x/sync/semaphore"

	"github.com/cri-runtime/cri-runtime/cni/builtin"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// Builtin says when the plugins of this process are used. The zero value is Off.
type Builtin int

// The uses of the built-in bridge, host-local, portmap and loopback.
const (
	Off         Builtin = iota // only binaries
	WhenMissing                // when no binary of that name is installed
	Always                     // even when one is
)

const defaultPluginTimeout = 60 * time.Second

// Config of the network of a node.
type Config struct {
	ConfDir  string   // where conflists are, usually /etc/cni/net.d
	BinDirs  []string // where plugins are, usually /opt/cni/bin
	CacheDir string   // records and results; must survive a reboot
	StateDir string   // what a reboot ends, all of the default network's; zero: CacheDir
	Builtin  Builtin
	// Default, when set, is the network, and ConfDir is not looked at.
	Default *DefaultNetwork
	// PluginTimeout bounds one run of one plugin; zero is 60 s.
	PluginTimeout time.Duration
}

// A DefaultNetwork is a bridge network that needs no file and no binary.
type DefaultNetwork struct {
	Name    string         // zero: cri-runtime
	Bridge  string         // zero: cri0
	Subnets []netip.Prefix // zero: what UpdatePodCIDR says, before that 10.88.0.0/16 and fd00:10:88::/64
	MTU     int            // zero: the kernel's
	NoMasq  bool           // leave source addresses alone
}

// A Network attaches pods. All methods may be called concurrently.
type Network struct {
	conf    Config
	boot    string
	records records
	data    string // the default network's addresses
	results results
	dir     *confDir

	plugins *builtin.Plugins
	files   *libcni.CNIConfig // for networks of the directory
	own     *libcni.CNIConfig // for the default network
	exec    *executor         // of files
	ownExec *executor         // of own

	builtinConf atomic.Pointer[loaded] // the default network, nil without one
	pods        gates
	// all is held in part by every attach and detach, and in whole while plugins
	// collect garbage: they would take an address that is being handed out for it.
	all *semaphore.Weighted

	status status
	stop   context.CancelFunc
	work   sync.WaitGroup
}

// wholeNetwork is the weight of the right to be alone.
const wholeNetwork = 1 << 20

// New opens the network. Sockets belong to the calling thread's network namespace,
// which is the node's.
func New(ctx context.Context, c Config) (*Network, error) {
	if c.PluginTimeout == 0 {
		c.PluginTimeout = defaultPluginTimeout
	}
	if c.StateDir == "" {
		c.StateDir = c.CacheDir
	}
	n := &Network{conf: c, results: results{filepath.Join(c.CacheDir, "results")}, records: records{filepath.Join(c.CacheDir, "pods"), filepath.Join(c.StateDir, "pods")}, all: semaphore.NewWeighted(wholeNetwork)}
	for _, d := range []string{n.records.lasting, n.records.boot} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("make network directory: %w", err)
		}
	}
	if err := n.records.clean(); err != nil {
		return nil, err
	}
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("read boot id: %w", err)
	}
	n.boot = strings.TrimSpace(string(b))
	if n.data, err = n.dataDir(); err != nil {
		return nil, err
	}
	if err := n.openPlugins(); err != nil {
		return nil, err
	}
	n.dir = &confDir{dir: c.ConfDir, compile: n.compile}
	if c.Default != nil {
		d := c.Default.withDefaults()
		n.conf.Default = &d
		subnets, err := d.defaultSubnets(c.StateDir)
		if err != nil {
			return nil, errors.Join(err, n.closePlugins())
		}
		l, err := d.conflist(subnets, n.data)
		if err != nil {
			return nil, errors.Join(err, n.closePlugins())
		}
		if err := n.use(l); err != nil {
			return nil, errors.Join(err, n.closePlugins())
		}
	}
	ctx, n.stop = context.WithCancel(context.WithoutCancel(ctx))
	n.status.kick = make(chan struct{}, 1)
	n.work.Go(func() { n.watchStatus(ctx) })
	return n, nil
}

func (n *Network) openPlugins() (err error) {
	n.exec = &executor{mode: n.conf.Builtin, paths: n.conf.BinDirs, timeout: n.conf.PluginTimeout}
	// Records of a default network may be left from an earlier configuration, so its
	// plugins are always at hand.
	n.ownExec = &executor{mode: Always, paths: n.conf.BinDirs, timeout: n.conf.PluginTimeout}
	if n.plugins, err = builtin.New(n.ownExec.delegate); err != nil {
		return fmt.Errorf("open built-in plugins: %w", err)
	}
	n.exec.here, n.ownExec.here = n.plugins, n.plugins
	n.files = libcni.NewCNIConfigWithCacheDir(n.conf.BinDirs, n.conf.CacheDir, n.exec)
	n.own = libcni.NewCNIConfigWithCacheDir(n.conf.BinDirs, n.conf.CacheDir, n.ownExec)
	return nil
}

func (n *Network) closePlugins() error { return n.plugins.Close() }

// Close ends the goroutine of the network. Attached pods keep their network.
func (n *Network) Close() error {
	n.stop()
	n.work.Wait()
	return n.closePlugins()
}

// current returns the configuration for new pods.
func (n *Network) current() (*loaded, error) {
	if l := n.builtinConf.Load(); l != nil {
		return l, nil
	}
	return n.dir.current()
}

func (n *Network) cni(here bool) *libcni.CNIConfig {
	if here {
		return n.own
	}
	return n.files
}

// enter gives the right to change one pod's attachment.
func (n *Network) enter(ctx context.Context, id string) (leave func(), err error) {
	unlock, err := n.pods.enter(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("wait for another network operation on pod %s: %w", id, err)
	}
	if err := n.all.Acquire(ctx, 1); err != nil {
		unlock()
		return nil, fmt.Errorf("wait for network garbage collection: %w", err)
	}
	return func() { n.all.Release(1); unlock() }, nil
}

// Purge removes the default network's bridge and nftables table, for a node that is
// given back. It refuses while a pod is attached.
func (n *Network) Purge(_ context.Context) error {
	ids, err := n.records.ids()
	if err != nil {
		return err
	}
	if len(ids) > 0 {
		return fmt.Errorf("network has %d attached pods: %w", len(ids), errdef.ErrPhase)
	}
	if _, err := n.plugins.RemoveRules(); err != nil {
		return err
	}
	if n.conf.Default == nil {
		return nil
	}
	return n.plugins.RemoveBridge(n.conf.Default.Bridge)
}

// gates is one lock per pod, which gives up with the caller's context.
type gates struct {
	mu sync.Mutex // guards m only
	m  map[string]*gate
}

type gate struct {
	ch    chan struct{}
	users int // guarded by gates.mu; the gate goes with the last one
}

func (g *gates) enter(ctx context.Context, id string) (leave func(), err error) {
	g.mu.Lock()
	if g.m == nil {
		g.m = map[string]*gate{}
	}
	e := g.m[id]
	if e == nil {
		e = &gate{ch: make(chan struct{}, 1)}
		g.m[id] = e
	}
	e.users++
	g.mu.Unlock()
	drop := func() {
		g.mu.Lock()
		if e.users--; e.users == 0 {
			delete(g.m, id)
		}
		g.mu.Unlock()
	}
	select {
	case e.ch <- struct{}{}:
		return func() { <-e.ch; drop() }, nil
	case <-ctx.Done():
		drop()
		return nil, ctx.Err()
	}
}

// busy lists the pods that somebody works on or waits for.
func (g *gates) busy() map[string]bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := map[string]bool{}
	for id := range g.m {
		out[id] = true
	}
	return out
}

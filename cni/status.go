package cni

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// How old the plugins' answer to STATUS may be. The kubelet asks for the runtime's
// status every 5 s, and a plugin that is executed costs 2 ms of CPU each time.
const (
	statusAge    = 30 * time.Second
	badStatusAge = 3 * time.Second
	statusLimit  = 10 * time.Second
)

// status is what plugins last said of themselves.
type status struct {
	kick chan struct{} // asks the goroutine for a new answer

	mu  sync.Mutex // guards what follows
	of  *loaded
	at  time.Time
	err error
}

// Ready returns nil, or the reason why no pod can be attached. It looks at the
// directory and the plugins each time it is called, so it cannot stick to an old
// answer; only the STATUS verb is answered from the last 30 s.
func (n *Network) Ready() error {
	l, err := n.current()
	if err != nil {
		return err
	}
	e := n.exec
	if l.here {
		e = n.ownExec
	}
	for _, p := range l.list.Plugins {
		path, err := e.FindInPath(p.Network.Type, e.paths)
		if err != nil {
			return fmt.Errorf("network %s (%s): %w", l.list.Name, l.source, err)
		}
		manager := p.Network.IPAM.Type
		if manager == "" {
			continue
		}
		ipam, err := e.FindInPath(manager, e.paths)
		if err != nil {
			return fmt.Errorf("network %s (%s): address manager: %w", l.list.Name, l.source, err)
		}
		if strings.HasPrefix(ipam, builtinPrefix) && !strings.HasPrefix(path, builtinPrefix) {
			return fmt.Errorf("network %s (%s): plugin %s is a program, so its address manager %s must be installed too: %w",
				l.list.Name, l.source, p.Network.Type, manager, errdef.ErrNotFound)
		}
	}
	return n.status.last(l)
}

// last returns the newest answer for l and asks for another when it is old.
func (s *status) last(l *loaded) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	age := time.Since(s.at)
	if s.of != l || age > statusAge || s.err != nil && age > badStatusAge {
		select {
		case s.kick <- struct{}{}:
		default: // one is under way
		}
	}
	if s.of != l {
		return nil
	}
	return s.err
}

// watchStatus runs STATUS when asked to, until ctx ends.
func (n *Network) watchStatus(ctx context.Context) {
	var warned []string
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.status.kick:
		}
		l, err := n.current()
		if err != nil {
			continue
		}
		limited, cancel := context.WithTimeout(ctx, statusLimit)
		err = n.cni(l.here).GetStatusNetworkList(limited, l.list)
		cancel()
		if err != nil {
			err = short(l.list.Name, err)
		}
		n.status.mu.Lock()
		n.status.of, n.status.at, n.status.err = l, time.Now(), err
		n.status.mu.Unlock()
		warned = n.warnDrops(ctx, l, warned)
	}
}

// warnDrops tells the operator once of firewalls that no rule of ours can overrule.
func (n *Network) warnDrops(ctx context.Context, l *loaded, warned []string) []string {
	if !l.here && n.conf.Builtin == Off {
		return warned
	}
	drops, err := n.plugins.ForwardDrops()
	if err != nil || slices.Equal(drops, warned) {
		return warned
	}
	if len(drops) > 0 {
		klog.FromContext(ctx).Info("packets to and from pods are dropped unless these chains accept them", "chains", drops, "network", l.list.Name)
	}
	return drops
}

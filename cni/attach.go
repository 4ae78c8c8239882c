package cni

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/cni/builtin"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// Attach gives the pod its network and brings its lo up. A pod that is attached
// already gets the same answer again. When Attach fails something may be left: the
// caller calls Detach, now or, after a crash, at the next start.
func (n *Network) Attach(ctx context.Context, p Pod) (Attachment, error) {
	if err := p.validate(); err != nil {
		return Attachment{}, err
	}
	leave, err := n.enter(ctx, p.ID)
	if err != nil {
		return Attachment{}, err
	}
	defer leave()
	done, err := n.earlier(ctx, p)
	if err != nil {
		return Attachment{}, err
	}
	if done != nil {
		return *done, nil
	}
	return n.attach(ctx, p)
}

// earlier returns the attachment that the pod has. An attempt that was cut short is
// cleaned up: its plugins are told before they are asked anew.
func (n *Network) earlier(ctx context.Context, p Pod) (*Attachment, error) {
	rec, err := n.records.read(p.ID)
	switch {
	case err != nil && !errors.Is(err, errCorrupt):
		return nil, err
	case err == nil && rec == nil:
		return nil, nil //nolint:nilnil // documented: it has none
	case err == nil && rec.Attachment != nil && rec.Pod.NetNS == p.NetNS && rec.Boot == n.boot:
		return rec.Attachment, nil
	}
	if err := n.detach(ctx, p, rec); err != nil {
		return nil, fmt.Errorf("clean up earlier attachment: %w", err)
	}
	return nil, nil //nolint:nilnil // as above
}

// attach runs ADD. The caller has entered the pod.
func (n *Network) attach(ctx context.Context, p Pod) (Attachment, error) {
	l, err := n.current()
	if err != nil {
		return Attachment{}, fmt.Errorf("network is not ready: %w", err)
	}
	rt, err := runtimeConf(p)
	if err != nil {
		return Attachment{}, err
	}
	compiled := n.compiled(l)
	if compiled == nil {
		if err := builtin.Loopback(p.NetNS); err != nil {
			return Attachment{}, err
		}
	}
	rec := &record{Pod: p, Boot: n.boot, Conf: l.list.Bytes, Builtin: l.here}
	if err := n.records.write(rec); err != nil {
		return Attachment{}, err
	}
	var res types.Result
	if compiled != nil {
		res, err = compiled.Attach(ctx, pluginCall(rt), hostPorts(p))
	} else {
		res, err = n.cni(l.here).AddNetworkList(ctx, l.list, rt)
	}
	if err != nil {
		return Attachment{}, short(l.list.Name, err)
	}
	if rec.Attachment, err = attachment(l.list.Name, res); err != nil {
		return Attachment{}, err
	}
	if err := n.records.write(rec); err != nil {
		return Attachment{}, err
	}
	return *rec.Attachment, nil
}

// Detach takes the network away with the configuration and result that Attach used,
// whatever the configuration says today. It succeeds for a pod that is not attached.
// A failed Detach keeps its record and can be called again.
func (n *Network) Detach(ctx context.Context, p Pod) error {
	if err := p.validate(); err != nil {
		return err
	}
	leave, err := n.enter(ctx, p.ID)
	if err != nil {
		return err
	}
	defer leave()
	rec, err := n.records.read(p.ID)
	if err != nil && !errors.Is(err, errCorrupt) {
		return err
	}
	if rec == nil && err == nil {
		return nil
	}
	return n.detach(ctx, p, rec)
}

// detach runs DEL. A nil rec means that the record cannot be read: then today's
// configuration is the best guess. The caller has entered the pod.
func (n *Network) detach(ctx context.Context, p Pod, rec *record) error {
	netns := p.NetNS
	if rec == nil {
		l, err := n.current()
		if err != nil {
			return fmt.Errorf("network record is corrupt and there is no other configuration: %w", err)
		}
		klog.FromContext(ctx).Info("network record is corrupt, using the present configuration to clean up", "id", p.ID, "network", l.list.Name)
		rec = &record{Pod: p, Boot: n.boot, Conf: l.list.Bytes, Builtin: l.here}
	}
	if _, err := os.Stat(netns); err != nil || rec.Boot != n.boot {
		netns = "" // gone; plugins are told by an empty path
	}
	l, err := n.recorded(rec)
	if err != nil {
		return err
	}
	rec.Pod.NetNS = netns
	rt, err := runtimeConf(rec.Pod)
	if err != nil {
		return err
	}
	if compiled := n.compiled(l); compiled != nil && !n.results.have(l.list.Name, p.ID) {
		var ips []netip.Addr
		if rec.Attachment != nil {
			ips = rec.Attachment.IPs
		}
		err = compiled.Detach(ctx, pluginCall(rt), ips, len(rec.Pod.PortMappings) > 0)
	} else if err = n.results.ensure(l.list, rt, rec); err == nil {
		err = n.cni(rec.Builtin).DelNetworkList(ctx, l.list, rt)
	}
	if err != nil {
		return short(l.list.Name, err)
	}
	return n.records.remove(p.ID)
}

// Check asks the plugins whether all is as they left it. Plugins of old versions of
// the specification cannot tell, which is no error.
func (n *Network) Check(ctx context.Context, p Pod) error {
	if err := p.validate(); err != nil {
		return err
	}
	leave, err := n.enter(ctx, p.ID)
	if err != nil {
		return err
	}
	defer leave()
	rec, err := n.records.read(p.ID)
	if err != nil {
		return err
	}
	if rec == nil || rec.Attachment == nil {
		return fmt.Errorf("network of pod %s: %w", p.ID, errdef.ErrNotFound)
	}
	l, err := n.recorded(rec)
	if err != nil {
		return err
	}
	rt, err := runtimeConf(rec.Pod)
	if err != nil {
		return err
	}
	if err := n.results.ensure(l.list, rt, rec); err != nil {
		return err
	}
	err = n.cni(rec.Builtin).CheckNetworkList(ctx, l.list, rt)
	if err == nil || errors.Is(err, libcni.ErrorCheckNotSupp) {
		return nil
	}
	return short(l.list.Name, err)
}

// GC releases what belongs to pods that are not in valid: first by our records, then by
// asking the plugins of the present network, which know of more. Pods that are being
// attached meanwhile are safe. It does what it can and joins the errors.
func (n *Network) GC(ctx context.Context, valid []string) error {
	keep := n.pods.busy()
	for _, id := range valid {
		keep[id] = true
	}
	ids, err := n.records.ids()
	if err != nil {
		return err
	}
	var errs []error
	for _, id := range ids {
		if keep[id] {
			continue
		}
		// The namespace of a pod that nobody knows is gone or about to.
		if err := n.Detach(ctx, Pod{ID: id}); err != nil {
			errs = append(errs, fmt.Errorf("detach unknown pod %s: %w", id, err))
		}
	}
	return errors.Join(append(errs, n.gcVerb(ctx, valid))...)
}

// gcVerb runs the GC verb alone on the network. When it cannot be alone now it says so
// by ErrRetry rather than make everybody wait behind a slow plugin.
func (n *Network) gcVerb(ctx context.Context, valid []string) error {
	l, err := n.current()
	if err != nil {
		return nil // nothing to ask
	}
	if !n.all.TryAcquire(wholeNetwork) {
		return fmt.Errorf("network garbage collection: pods are being attached: %w", errdef.ErrRetry)
	}
	defer n.all.Release(wholeNetwork)
	// What still has a record is in use, or its plugin refused to give it up.
	ids, err := n.records.ids()
	if err != nil {
		return err
	}
	var args libcni.GCArgs
	for _, id := range append(ids, valid...) {
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: id, IfName: IfName})
	}
	if err := n.cni(l.here).GCNetworkList(ctx, l.list, &args); err != nil {
		return short(l.list.Name, err)
	}
	return nil
}

// short takes libcni's own words out of an error when a plugin said what is wrong.
func short(network string, err error) error {
	if pe, ok := errors.AsType[*PluginError](err); ok {
		return fmt.Errorf("network %s: %w", network, pe)
	}
	if se, ok := errors.AsType[*builtin.StepError](err); ok {
		return fmt.Errorf("network %s: %w", network, &PluginError{Plugin: se.Plugin, Msg: cut(se.Err.Error()), Err: se.Err})
	}
	return fmt.Errorf("network %s: %w", network, err)
}

package cni

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/libcni"

	"github.com/cri-runtime/cri-runtime/cni/builtin"
)

// compile reads the plugins of l for use without libcni, if they are of the usual shape.
func (n *Network) compile(l *loaded) *loaded {
	var confs [][]byte
	for _, p := range l.list.Plugins {
		confs = append(confs, p.Bytes)
	}
	l.compiled = n.plugins.Compile(l.list.Name, l.list.CNIVersion, confs)
	return l
}

// use makes l the default network.
func (n *Network) use(l *loaded) error {
	if c := n.compile(l).compiled; c != nil {
		if err := c.Prepare(); err != nil {
			return fmt.Errorf("prepare the default network: %w", err)
		}
	}
	n.builtinConf.Store(l)
	return nil
}

// compiled returns l's plugins when all of them are used from this process: no program of
// their names counts, or none is installed at this moment.
func (n *Network) compiled(l *loaded) *builtin.Network {
	if l.compiled == nil {
		return nil
	}
	e := n.exec
	if l.here {
		e = n.ownExec
	}
	for _, p := range l.list.Plugins {
		for _, name := range []string{p.Network.Type, p.Network.IPAM.Type} {
			if name == "" {
				continue
			}
			if path, err := e.FindInPath(name, e.paths); err != nil || !strings.HasPrefix(path, builtinPrefix) {
				return nil
			}
		}
	}
	return l.compiled
}

// recorded returns the configuration of a record, which most often is the present one.
func (n *Network) recorded(rec *record) (*loaded, error) {
	if l, err := n.current(); err == nil && l.here == rec.Builtin && bytes.Equal(l.list.Bytes, rec.Conf) {
		return l, nil
	}
	list, err := libcni.NetworkConfFromBytes(rec.Conf)
	if err != nil {
		return nil, fmt.Errorf("decode network configuration of %s: %w", rec.Pod.ID, err)
	}
	return n.compile(&loaded{list: list, source: "the record of " + rec.Pod.ID, here: rec.Builtin}), nil
}

// pluginCall is what built-in plugins are told of a pod.
func pluginCall(rt *libcni.RuntimeConf) builtin.Call {
	var args []string
	for _, kv := range rt.Args {
		args = append(args, kv[0]+"="+kv[1])
	}
	return builtin.Call{ContainerID: rt.ContainerID, NetNS: rt.NetNS, IfName: rt.IfName, Args: strings.Join(args, ";")}
}

func hostPorts(p Pod) (out []builtin.HostPort) {
	for _, m := range p.PortMappings {
		if m.HostPort != 0 {
			out = append(out, builtin.HostPort{Host: m.HostIP, HostPort: int(m.HostPort), ContainerPort: int(m.ContainerPort), Protocol: string(m.Protocol)})
		}
	}
	return out
}

// results is the directory in which libcni keeps the results of attachments. What was
// attached without libcni is not in it until libcni needs it.
type results struct{ dir string }

func (r results) file(network, id string) string {
	return filepath.Join(r.dir, network+"-"+id+"-"+IfName)
}

func (r results) have(network, id string) bool {
	_, err := os.Lstat(r.file(network, id))
	return err == nil
}

// ensure writes the result of rec for libcni, in its own format, unless it is there.
func (r results) ensure(list *libcni.NetworkConfigList, rt *libcni.RuntimeConf, rec *record) error {
	if rec.Attachment == nil || r.have(list.Name, rec.Pod.ID) {
		return nil
	}
	b, err := json.Marshal(map[string]any{
		"kind": libcni.CNICacheV1, "containerId": rt.ContainerID, "ifName": rt.IfName, "networkName": list.Name, "netns": rt.NetNS,
		"cniArgs": rt.Args, "capabilityArgs": rt.CapabilityArgs, "config": []byte(rec.Conf), "result": rec.Attachment.Result,
	})
	if err != nil {
		return fmt.Errorf("encode result of network %s: %w", list.Name, err)
	}
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return fmt.Errorf("make directory of results: %w", err)
	}
	return replaceFile(r.dir, filepath.Base(r.file(list.Name, rec.Pod.ID)), b)
}

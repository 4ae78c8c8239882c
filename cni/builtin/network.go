package builtin

import (
	"context"
	"encoding/json"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/cri-runtime/cri-runtime/cni/hostlocal"
	"github.com/cri-runtime/cri-runtime/cni/nat"
)

// A Network is a list of plugins that was read once: a bridge with addresses of
// host-local, and perhaps host ports behind it. It gives what its plugins give when they
// run one by one, without the texts between them.
type Network struct {
	plugins *Plugins
	version string
	bridge  *bridgeConf
	pool    *hostlocal.Pool
	ports   bool // there is a portmap that wants to know of ports
}

// Compile reads a list of plugins. It returns nil for all but the most usual shape: such
// lists, and those with a mistake in them, are run plugin by plugin.
func (p *Plugins) Compile(name, version string, plugins [][]byte) *Network {
	n := &Network{plugins: p, version: version}
	for i, conf := range plugins {
		var m map[string]json.RawMessage
		if json.Unmarshal(conf, &m) != nil {
			return nil
		}
		m["name"], _ = json.Marshal(name)
		m["cniVersion"], _ = json.Marshal(version)
		full, err := json.Marshal(m)
		if err != nil || !n.compile(i, full) {
			return nil
		}
	}
	if n.bridge == nil {
		return nil
	}
	return n
}

// compile reads plugin number i, and says whether it is of the usual shape.
func (n *Network) compile(i int, conf []byte) bool {
	var common types.PluginConf
	if json.Unmarshal(conf, &common) != nil {
		return false
	}
	switch {
	case i == 0 && common.Type == "bridge" && common.IPAM.Type == "host-local":
		b, err := readBridge(Call{Command: "ADD", Conf: conf})
		if err != nil || len(b.Capabilities) > 0 {
			return false
		}
		pool, err := hostlocal.Open(conf)
		if err != nil {
			return false
		}
		b.manager, n.bridge, n.pool = &addressPool{pool}, b, pool
		return true
	case i == 1 && common.Type == "portmap":
		if _, _, err := readPorts(Call{Conf: conf}); err != nil {
			return false
		}
		n.ports = common.Capabilities["portMappings"]
		return true
	}
	return false
}

// addressPool is host-local as it was read.
type addressPool struct{ pool *hostlocal.Pool }

func (a *addressPool) add(ctx context.Context, c Call) (*types100.Result, error) {
	return a.pool.Add(ctx, hostlocal.Request{ContainerID: c.ContainerID, IfName: c.IfName, Args: c.Args})
}

func (a *addressPool) del(_ context.Context, c Call) error {
	return a.pool.Del(hostlocal.Request{ContainerID: c.ContainerID, IfName: c.IfName}, c.ips)
}

// Prepare makes what the network keeps on disk without pods.
func (n *Network) Prepare() error { return n.pool.Make() }

// A HostPort is a port of the node that leads to one of the pod. An invalid host address
// stands for all of them.
type HostPort struct {
	Host                    netip.Addr
	HostPort, ContainerPort int
	Protocol                string
}

// Attach gives a pod its network and brings its lo up. The Conf of the call is not
// looked at. After a failure Detach takes back what there is.
func (n *Network) Attach(ctx context.Context, c Call, ports []HostPort) (types.Result, error) {
	res, err := n.plugins.bridgeAdd(ctx, c, n.bridge)
	if err != nil {
		return nil, &StepError{"bridge", err}
	}
	if n.ports && len(ports) > 0 {
		if err := n.open(c, ports, res); err != nil {
			return nil, &StepError{"portmap", err}
		}
	}
	return res.GetAsVersion(n.version)
}

func (n *Network) open(c Call, ports []HostPort, res *types100.Result) error {
	var entries []portEntry
	for _, p := range ports {
		e := portEntry{HostPort: p.HostPort, ContainerPort: p.ContainerPort, Protocol: p.Protocol}
		if p.Host.IsValid() {
			e.HostIP = p.Host.String()
		}
		entries = append(entries, e)
	}
	rules, err := rulesFor(entries, res)
	if err != nil {
		return err
	}
	return n.plugins.openPorts(c.ContainerID, rules, res)
}

// Detach takes back what Attach made, whatever there is of it. The addresses are those
// that the pod got, as far as known; withPorts says that Attach was given ports.
func (n *Network) Detach(ctx context.Context, c Call, ips []netip.Addr, withPorts bool) error {
	if n.ports && withPorts {
		if err := n.plugins.nat.RemovePorts(c.ContainerID); err != nil {
			return &StepError{"portmap", err}
		}
	}
	c.ips = ips
	if err := n.plugins.bridgeDel(ctx, c, n.bridge); err != nil {
		return &StepError{"bridge", err}
	}
	return nil
}

// A StepError says which plugin of a Network failed.
type StepError struct {
	Plugin string
	Err    error
}

func (e *StepError) Error() string { return "plugin " + e.Plugin + ": " + e.Err.Error() }

// Unwrap gives the cause.
func (e *StepError) Unwrap() error { return e.Err }

// openPorts leads the node's ports to the pod.
func (p *Plugins) openPorts(id string, ports []nat.Port, res *types100.Result) error {
	if len(ports) == 0 {
		return nil
	}
	if err := p.localnet(res); err != nil {
		return err
	}
	return p.nat.AddPorts(id, ports, podSubnets(res))
}

// Package builtin is the bridge, host-local, portmap and loopback CNI plugins in this
// process: the same configuration in, the same result out, without executing anything.
//
// It refuses options that it does not implement, naming them, rather than ignoring
// them. Addresses are kept by package hostlocal, rules by package nat; other address
// managers are executed. Host ports and masquerading use nftables.
//
// The node's network namespace is the one in which New was called. No goroutine
// outlives a call; threads that entered a pod's namespace and could not return end.
// In the kernel it leaves the bridge and the nftables table, for the pods to come.
package builtin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/cni/hostlocal"
	"github.com/cri-runtime/cri-runtime/cni/nat"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/nl"
)

// A Call is one run of a plugin.
type Call struct {
	Command     string // ADD, DEL, CHECK, GC, STATUS or VERSION
	Type        string
	ContainerID string
	NetNS       string
	IfName      string
	Args        string
	Conf        []byte

	ips []netip.Addr // that the pod has, where known
}

// A Delegate runs another plugin for this one with the same call: bridge asks its
// address manager.
type Delegate func(ctx context.Context, plugin string, c Call) ([]byte, error)

// Plugins are the built-in ones. Methods may be called concurrently.
type Plugins struct {
	host     *nl.Conn        // what every pod needs
	links    *netlink.Handle // what is rare
	nat      *nat.Table
	delegate Delegate
	ipv6     bool // the kernel has it

	mu      sync.Mutex     // guards bridges
	bridges map[string]int // the index that a name had when it was found to be a bridge
}

// Has reports whether a plugin type is built in.
func Has(plugin string) bool {
	switch plugin {
	case "bridge", "host-local", "portmap", "loopback":
		return true
	}
	return false
}

// New opens sockets in the network namespace of the calling thread.
func New(d Delegate) (*Plugins, error) {
	host, err := nl.Open(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open route socket: %w", err), host.Close())
	}
	_, err = os.Stat("/proc/sys/net/ipv6")
	return &Plugins{host: host, links: h, nat: nat.Open(), delegate: d, ipv6: err == nil, bridges: map[string]int{}}, nil
}

// Close closes the sockets.
func (p *Plugins) Close() error {
	p.links.Close()
	return errors.Join(p.host.Close(), p.nat.Close())
}

// Run does what the plugin of the call would do and returns what it would print.
func (p *Plugins) Run(ctx context.Context, c Call) ([]byte, error) {
	if c.Command == "VERSION" {
		return json.Marshal(version.All)
	}
	res, err := p.run(ctx, c)
	if err != nil || res == nil {
		return nil, err
	}
	var conf struct {
		CNIVersion string `json:"cniVersion"`
	}
	if err := json.Unmarshal(c.Conf, &conf); err != nil {
		return nil, fmt.Errorf("decode network configuration: %w", err)
	}
	out, err := res.GetAsVersion(conf.CNIVersion)
	if err != nil {
		return nil, fmt.Errorf("convert result: %w", err)
	}
	return json.Marshal(out)
}

func (p *Plugins) run(ctx context.Context, c Call) (types.Result, error) {
	switch c.Type {
	case "bridge":
		return p.bridge(ctx, c)
	case "host-local":
		return hostLocal(ctx, c)
	case "portmap":
		return p.portmap(c)
	case "loopback":
		return p.loopback(c)
	}
	return nil, fmt.Errorf("plugin type %q is not built in: %w", c.Type, errdef.ErrInvalid)
}

func unknown(c Call) error {
	return fmt.Errorf("unknown CNI_COMMAND: %s: %w", c.Command, errdef.ErrInvalid)
}

func hostLocal(ctx context.Context, c Call) (types.Result, error) {
	r := hostlocal.Request{ContainerID: c.ContainerID, IfName: c.IfName, Args: c.Args, Conf: c.Conf}
	switch c.Command {
	case "ADD":
		res, err := hostlocal.Add(ctx, r)
		if err != nil {
			return nil, err
		}
		return res, nil
	case "DEL":
		return nil, hostlocal.Del(ctx, r)
	case "CHECK":
		return nil, hostlocal.Check(ctx, r)
	case "GC":
		return nil, hostlocal.GC(ctx, r)
	case "STATUS":
		return nil, hostlocal.Status(ctx, r)
	}
	return nil, unknown(c)
}

func (p *Plugins) loopback(c Call) (types.Result, error) {
	switch c.Command {
	case "ADD":
		return p.loopbackAdd(c)
	case "CHECK":
		return nil, Loopback(c.NetNS)
	case "DEL", "GC", "STATUS": // lo goes with its namespace
		return nil, nil
	}
	return nil, unknown(c)
}

func (p *Plugins) loopbackAdd(c Call) (types.Result, error) {
	if err := Loopback(c.NetNS); err != nil {
		return nil, err
	}
	prev, err := prevResult(c.Conf)
	if err != nil || prev != nil {
		return prev, err
	}
	return &types100.Result{CNIVersion: types100.ImplementedSpecVersion,
		Interfaces: []*types100.Interface{{Name: "lo", Mac: "00:00:00:00:00:00", Sandbox: c.NetNS}},
		IPs: []*types100.IPConfig{{Interface: new(0), Address: mustNet("127.0.0.1/8")},
			{Interface: new(0), Address: mustNet("::1/128")}}}, nil
}

// prevResult reads the previous plugin's result, nil when there is none.
func prevResult(conf []byte) (*types100.Result, error) {
	var c types.PluginConf
	if err := json.Unmarshal(conf, &c); err != nil {
		return nil, fmt.Errorf("decode network configuration: %w: %w", err, errdef.ErrInvalid)
	}
	if c.RawPrevResult == nil {
		return nil, nil //nolint:nilnil // documented
	}
	if err := version.ParsePrevResult(&c); err != nil {
		return nil, fmt.Errorf("decode previous result: %w", err)
	}
	res, err := types100.NewResultFromResult(c.PrevResult)
	if err != nil {
		return nil, fmt.Errorf("convert previous result: %w", err)
	}
	return res, nil
}

// ForwardDrops names chains of others that drop what is forwarded to pods.
func (p *Plugins) ForwardDrops() ([]string, error) { return p.nat.ForwardDrops() }

// RemoveRules deletes the nftables table unless a pod has a host port in it.
func (p *Plugins) RemoveRules() (bool, error) { return p.nat.Remove() }

// RemoveBridge deletes a bridge that no port uses. Ports that are down are links of
// detached pods, which the kernel has not deleted yet.
func (p *Plugins) RemoveBridge(name string) error {
	l, err := p.links.LinkByName(name)
	if isLinkNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look up bridge %s: %w", name, err)
	}
	if l.Type() != "bridge" {
		return fmt.Errorf("%s is a %s, not a bridge: %w", name, l.Type(), errdef.ErrInvalid)
	}
	links, err := p.links.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	for _, o := range links {
		if a := o.Attrs(); a.MasterIndex == l.Attrs().Index && a.Flags&net.FlagUp != 0 {
			return fmt.Errorf("bridge %s has port %s in use: %w", name, a.Name, errdef.ErrPhase)
		}
	}
	if err := p.links.LinkDel(l); err != nil && !isLinkNotFound(err) {
		return fmt.Errorf("delete bridge %s: %w", name, err)
	}
	return nil
}

func isLinkNotFound(err error) bool {
	var nf netlink.LinkNotFoundError
	return errors.As(err, &nf) || errors.Is(err, unix.ENODEV)
}

// unsupportedKeys names the options of conf that are set and not implemented.
func unsupportedKeys(conf []byte, keys ...string) error {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(conf, &m); err != nil {
		return fmt.Errorf("decode network configuration: %w: %w", err, errdef.ErrInvalid)
	}
	var found []string
	for _, k := range keys {
		switch v := string(m[k]); v {
		case "", "null", "false", "0", `""`, "[]", "{}":
		default:
			found = append(found, k)
		}
	}
	if len(found) == 0 {
		return nil
	}
	return fmt.Errorf("option %s is not supported by the built-in plugin, install the plugin's binary: %w",
		strings.Join(found, ", "), errdef.ErrInvalid)
}

package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/containernetworking/cni/pkg/utils"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// IfName is the name of a pod's interface. The kubelet's and cAdvisor's network
// statistics look for it.
const IfName = "eth0"

// A Protocol of a port mapping. The zero value is invalid.
type Protocol string

// The protocols that Kubernetes knows.
const (
	TCP  Protocol = "tcp"
	UDP  Protocol = "udp"
	SCTP Protocol = "sctp"
)

// A PortMapping leads a port of the node to a port of the pod.
type PortMapping struct {
	HostIP        netip.Addr `json:"hostIP"` // zero: all addresses of the node
	HostPort      int32      `json:"hostPort"`
	ContainerPort int32      `json:"containerPort"`
	Protocol      Protocol   `json:"protocol"`
}

// DNS is what plugins with the dns capability are told.
type DNS struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// Bandwidth limits in bits per second; zero is no limit.
type Bandwidth struct {
	Ingress uint64 `json:"ingress,omitempty"`
	Egress  uint64 `json:"egress,omitempty"`
}

// A Pod is what the network must know of a pod sandbox.
type Pod struct {
	ID           string            `json:"id"`
	Namespace    string            `json:"namespace"`
	Name         string            `json:"name"`
	UID          string            `json:"uid"`
	NetNS        string            `json:"netns"` // path; empty when it is gone
	PortMappings []PortMapping     `json:"portMappings,omitempty"`
	CgroupPath   string            `json:"cgroupPath,omitempty"`
	DNS          DNS               `json:"dns,omitzero"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	// Bandwidth overrides the kubernetes.io/*-bandwidth annotations when set.
	Bandwidth Bandwidth `json:"bandwidth,omitzero"`
}

// An Interface is one that the plugins reported.
type Interface struct {
	Name string `json:"name"`
	MAC  string `json:"mac,omitempty"`
	MTU  int    `json:"mtu,omitempty"`
	// Sandbox is the path of the namespace it is in, empty for the node's own.
	Sandbox string `json:"sandbox,omitempty"`
}

// An Attachment is what a pod got.
type Attachment struct {
	Network       string       `json:"network"`
	IPs           []netip.Addr `json:"ips"` // in CNI order, the first is the primary one
	Interfaces    []Interface  `json:"interfaces,omitempty"`
	HostInterface string       `json:"hostInterface,omitempty"` // the node's end of the pod's link, when there is one
	MAC           string       `json:"mac,omitempty"`           // of eth0
	DNS           DNS          `json:"dns,omitzero"`            // as the plugins reported it
	// Result is the plugins' result as it came, for verbose status.
	Result json.RawMessage `json:"result,omitempty"`
}

// validate finds what can never work, naming the field.
func (p *Pod) validate() error {
	if err := utils.ValidateContainerID(p.ID); err != nil {
		return fmt.Errorf("pod: id %q: %s: %w", p.ID, err.Error(), errdef.ErrInvalid)
	}
	var errs []error
	for field, v := range map[string]string{"namespace": p.Namespace, "name": p.Name, "uid": p.UID} {
		// They become CNI_ARGS, a list with these separators: a name must not be
		// able to add an argument such as IP=.
		if strings.ContainsAny(v, ";=\x00\n") {
			errs = append(errs, fmt.Errorf("pod: %s %q: %w", field, v, errdef.ErrInvalid))
		}
	}
	for i, m := range p.PortMappings {
		if m.HostPort < 0 || m.HostPort > 65535 || m.ContainerPort < 0 || m.ContainerPort > 65535 {
			errs = append(errs, fmt.Errorf("port mapping %d: port out of range: %w", i, errdef.ErrInvalid))
		}
		switch m.Protocol {
		case TCP, UDP, SCTP:
		default:
			errs = append(errs, fmt.Errorf("port mapping %d: protocol %q: %w", i, m.Protocol, errdef.ErrInvalid))
		}
	}
	return errors.Join(errs...)
}

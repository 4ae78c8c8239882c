package cri

import (
	"net/netip"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/sandbox"
)

func encodePodMetadata(m sandbox.Metadata) *pb.PodSandboxMetadata {
	return &pb.PodSandboxMetadata{Name: m.Name, Namespace: m.Namespace, Uid: m.UID, Attempt: m.Attempt}
}

// encodePod makes the item of a list. Labels and annotations go out as they came in.
func encodePod(p *sandbox.PodView) *pb.PodSandbox {
	return &pb.PodSandbox{
		Id:             string(p.ID),
		Metadata:       encodePodMetadata(p.Config.Metadata),
		State:          pb.PodSandboxState(p.State),
		CreatedAt:      nanos(p.CreatedAt),
		Labels:         p.Config.Labels,
		Annotations:    p.Config.Annotations,
		RuntimeHandler: p.Config.Handler,
	}
}

// encodePodAttributes makes what goes with a pod's statistics.
func encodePodAttributes(p *sandbox.PodView) *pb.PodSandboxAttributes {
	return &pb.PodSandboxAttributes{
		Id:          string(p.ID),
		Metadata:    encodePodMetadata(p.Config.Metadata),
		Labels:      p.Config.Labels,
		Annotations: p.Config.Annotations,
	}
}

// encodePodStatus makes the status. The kubelet makes a new pod when a pod with its own
// network has no IP here, and checks the network mode against the pod's.
func encodePodStatus(p *sandbox.PodView) *pb.PodSandboxStatus {
	n := p.Config.Security.Namespaces
	return &pb.PodSandboxStatus{
		Id:             string(p.ID),
		Metadata:       encodePodMetadata(p.Config.Metadata),
		State:          pb.PodSandboxState(p.State),
		CreatedAt:      nanos(p.CreatedAt),
		Network:        encodeIPs(p.IPs),
		Linux:          &pb.LinuxPodSandboxStatus{Namespaces: &pb.Namespace{Options: encodeNamespaces(n)}},
		Labels:         p.Config.Labels,
		Annotations:    p.Config.Annotations,
		RuntimeHandler: p.Config.Handler,
	}
}

func encodeIPs(ips []netip.Addr) *pb.PodSandboxNetworkStatus {
	var out pb.PodSandboxNetworkStatus
	for i, ip := range ips {
		if i == 0 {
			out.Ip = ip.String()
			continue
		}
		out.AdditionalIps = append(out.AdditionalIps, &pb.PodIP{Ip: ip.String()})
	}
	return &out
}

func encodeNamespaces(n sandbox.Namespaces) *pb.NamespaceOption {
	out := &pb.NamespaceOption{
		Network:  pb.NamespaceMode(n.Network),
		Pid:      pb.NamespaceMode(n.PID),
		Ipc:      pb.NamespaceMode(n.IPC),
		TargetId: string(n.TargetID),
	}
	if n.User != nil {
		out.UsernsOptions = &pb.UserNamespace{
			Mode: pb.NamespaceMode_POD, Uids: encodeIDMaps(n.User.UIDs), Gids: encodeIDMaps(n.User.GIDs),
		}
	}
	return out
}

func encodeIDMaps(ms []sandbox.IDMap) []*pb.IDMapping {
	if len(ms) == 0 {
		return nil
	}
	return convert(ms, func(m sandbox.IDMap) *pb.IDMapping {
		return &pb.IDMapping{HostId: m.Host, ContainerId: m.Container, Length: m.Length}
	})
}

func encodeEvent(e sandbox.Event) *pb.ContainerEventResponse {
	return &pb.ContainerEventResponse{
		ContainerId:        string(e.Container),
		ContainerEventType: pb.ContainerEventType(e.Kind),
		CreatedAt:          nanos(e.At),
		PodSandboxStatus:   partsOfPod(e.Pod).status,
		ContainersStatuses: convert(e.Containers, containerStatus),
	}
}

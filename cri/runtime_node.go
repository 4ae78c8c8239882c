package cri

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"strings"

	"google.golang.org/grpc"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/sandbox"
)

const (
	// runtimeName becomes the scheme of every container id in Kubernetes' API, so it
	// never changes.
	runtimeName = "cri-runtime"
	apiVersion  = "v1"
	// kubeletVersion is what the field "version" of the answer has always held.
	kubeletVersion = "0.1.0"
)

func (s *runtimeService) Version(context.Context, *pb.VersionRequest) (*pb.VersionResponse, error) {
	return &pb.VersionResponse{
		Version: kubeletVersion, RuntimeName: runtimeName,
		RuntimeVersion: s.deps.Version, RuntimeApiVersion: apiVersion,
	}, nil
}

func (s *runtimeService) Status(ctx context.Context, r *pb.StatusRequest) (*pb.StatusResponse, error) {
	st := s.deps.Runtime.Status(ctx, r.GetVerbose())
	condition := func(name string, c sandbox.Condition) *pb.RuntimeCondition {
		return &pb.RuntimeCondition{Type: name, Status: c.OK, Reason: c.Reason, Message: c.Message}
	}
	out := &pb.StatusResponse{
		Status: &pb.RuntimeStatus{Conditions: []*pb.RuntimeCondition{
			condition(pb.RuntimeReady, st.Runtime), condition(pb.NetworkReady, st.Network),
		}},
		RuntimeHandlers: convert(st.Handlers, func(h sandbox.Handler) *pb.RuntimeHandler {
			return &pb.RuntimeHandler{Name: h.Name, Features: &pb.RuntimeHandlerFeatures{
				RecursiveReadOnlyMounts: h.RecursiveReadOnly, UserNamespaces: h.UserNamespaces,
			}}
		}),
		Features: &pb.RuntimeFeatures{
			SupplementalGroupsPolicy:  st.SupplementalGroupsPolicy,
			UserNamespacesHostNetwork: st.UserNamespacesHostNetwork,
			MountOptions:              st.MountOptions,
		},
	}
	if !r.GetVerbose() {
		return out, nil
	}
	var err error
	if out.Info, err = encodeNodeInfo(st.Info, s.deps.StateDir); err != nil {
		return nil, err
	}
	out.Info, err = addInfo(out.Info, "pulls", s.deps.Pulls.Pulls())
	return out, err
}

// encodeNodeInfo adds a key "config" in the manner of containerd: tools, critest among
// them, look for "stateDir" there to find the filesystem that containers live on.
func encodeNodeInfo(info map[string]any, stateDir string) (map[string]string, error) {
	config, _ := info["config"].(map[string]any)
	config = maps.Clone(config)
	if config == nil {
		config = map[string]any{}
	}
	config["stateDir"] = stateDir
	text, err := json.Marshal(config)
	if err != nil {
		return nil, fmt.Errorf("encode configuration: %w", err)
	}
	out, err := encodeInfo(info)
	if err != nil {
		return nil, err
	}
	out["config"] = string(text)
	return out, nil
}

// RuntimeConfig always names the driver: the zero value would say systemd.
func (s *runtimeService) RuntimeConfig(context.Context, *pb.RuntimeConfigRequest) (*pb.RuntimeConfigResponse, error) {
	driver := pb.CgroupDriver_SYSTEMD
	if s.deps.Runtime.CgroupDriver() == sandbox.DriverCgroupfs {
		driver = pb.CgroupDriver_CGROUPFS
	}
	return &pb.RuntimeConfigResponse{Linux: &pb.LinuxRuntimeConfiguration{CgroupDriver: driver}}, nil
}

func (s *runtimeService) UpdateRuntimeConfig(ctx context.Context, r *pb.UpdateRuntimeConfigRequest) (*pb.UpdateRuntimeConfigResponse, error) {
	cidrs, err := decodeCIDRs(r.GetRuntimeConfig().GetNetworkConfig().GetPodCidr())
	if err != nil {
		return nil, err
	}
	return &pb.UpdateRuntimeConfigResponse{}, s.deps.Runtime.UpdateRuntimeConfig(ctx, cidrs)
}

// decodeCIDRs reads a comma-separated list: a dual-stack node has two. It may be empty.
func decodeCIDRs(list string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for s := range strings.SplitSeq(list, ",") {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, field("runtime_config.network_config.pod_cidr").refuse("%q is not a network such as 10.1.0.0/24", s)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

// GetContainerEvents sends until the client or the daemon goes. A client that is too
// slow is told so: it has missed something and must list again.
func (s *runtimeService) GetContainerEvents(_ *pb.GetEventsRequest, out grpc.ServerStreamingServer[pb.ContainerEventResponse]) error {
	events, end := s.deps.Runtime.Subscribe()
	defer end()
	for {
		select {
		case e, ok := <-events:
			if !ok {
				return fmt.Errorf("events were missed, list again: %w", errdef.ErrRetry)
			}
			if err := out.Send(encodeEvent(e)); err != nil {
				return err
			}
		case <-out.Context().Done():
			return out.Context().Err()
		case <-s.stop:
			return fmt.Errorf("the runtime is stopping: %w", errdef.ErrRetry)
		}
	}
}

package cri

import (
	"google.golang.org/protobuf/proto"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/sandbox"
)

// podParts are the parts of answers that say the same for as long as a pod's view is
// there, each encoded once. A kubelet asks for them every second.
type podParts struct {
	item       *pb.PodSandbox
	status     *pb.PodSandboxStatus
	attributes *pb.PodSandboxAttributes
}

// partsOfPod makes them when they are asked for first.
func partsOfPod(p *sandbox.PodView) *podParts {
	if parts, ok := p.Memo.Load().(*podParts); ok {
		return parts
	}
	parts := &podParts{frozen(encodePod(p)), frozen(encodePodStatus(p)), frozen(encodePodAttributes(p))}
	p.Memo.Store(parts)
	return parts
}

func podItem(p *sandbox.PodView) *pb.PodSandbox { return partsOfPod(p).item }

// containerParts are the same of a container's view.
type containerParts struct {
	item       *pb.Container
	status     *pb.ContainerStatus
	attributes *pb.ContainerAttributes
}

func partsOfContainer(c *sandbox.ContainerView) *containerParts {
	if parts, ok := c.Memo.Load().(*containerParts); ok {
		return parts
	}
	parts := &containerParts{frozen(encodeContainer(c)), frozen(encodeContainerStatus(c)), frozen(encodeContainerAttributes(c))}
	c.Memo.Store(parts)
	return parts
}

func containerItem(c *sandbox.ContainerView) *pb.Container { return partsOfContainer(c).item }

func containerStatus(c *sandbox.ContainerView) *pb.ContainerStatus { return partsOfContainer(c).status }

// frozen gives a message that is sent as m is, but costs a copy only: it holds m's encoding
// in the place of fields that it does not know, and these are written as they are. Its own
// fields are empty, so that it is of use to the encoder alone.
func frozen[M proto.Message](m M) M {
	body, err := proto.Marshal(m)
	if err != nil {
		return m // it is refused, with this error, when it is sent
	}
	out := m.ProtoReflect().New()
	out.SetUnknown(body)
	return out.Interface().(M) //nolint:forcetypeassert // the type of m
}

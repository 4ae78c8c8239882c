package cri

import (
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/cri/stream"
)

// runtimeService answers the calls of CRI's RuntimeService. Every call has its method
// here; the embedded type only satisfies gRPC's promise of forward compatibility.
type runtimeService struct {
	pb.UnimplementedRuntimeServiceServer
	deps     Deps
	sessions *stream.Server
	stop     <-chan struct{} // closed when the daemon ends
}

// imageService answers the calls of CRI's ImageService, likewise.
type imageService struct {
	pb.UnimplementedImageServiceServer
	deps Deps
}

package cri

import (
	"context"
	"fmt"
	"net"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/cri/stream"
)

// maxRequest is the size of the largest request taken: the kubelet's own limit for
// replies is 16 MiB, and a container's configuration must come back in one.
const maxRequest = 16<<20 + 64<<10

// defaultGrace is how long calls under way may take when the daemon ends.
const defaultGrace = 5 * time.Second

const (
	// window is how many bytes a client may send ahead: more than any usual request has.
	window = 1 << 20
	// workers is how many calls a kubelet makes at a time as a rule.
	workers = 4
)

// Server serves CRI on a listener.
type Server struct{ deps Deps }

// New makes a Server. Nothing runs until Serve.
func New(d Deps) *Server {
	if d.StreamAddr == "" {
		d.StreamAddr = "127.0.0.1:0"
	}
	if d.StopGrace == 0 {
		d.StopGrace = defaultGrace
	}
	return &Server{deps: d}
}

// Serve answers calls on l, which it closes, until ctx ends. Then it takes no new
// calls, cuts streams and exec sessions, gives the rest StopGrace and cuts them too.
// It returns nil after an end that was asked for.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	sessions, err := stream.Listen(ctx, s.deps.StreamAddr, s.deps.Runtime)
	if err != nil {
		_ = l.Close()
		return fmt.Errorf("serve streams: %w", err)
	}
	log := klog.FromContext(ctx)
	guard := newInterceptor(&s.deps, log, &pb.RuntimeService_ServiceDesc, &pb.ImageService_ServiceDesc)
	srv := grpc.NewServer(
		grpc.MaxRecvMsgSize(maxRequest),
		// Windows of a fixed size: to find one by itself, the server would send a ping for
		// nearly each request and wait for the answer, on a socket that has no latency.
		grpc.InitialWindowSize(window), grpc.InitialConnWindowSize(window),
		// Goroutines that stay keep the stacks that they have grown. Calls that find none
		// of them free get one of their own.
		grpc.NumStreamWorkers(workers),
		grpc.UnaryInterceptor(guard.unary),
		grpc.StreamInterceptor(guard.stream),
	)
	pb.RegisterRuntimeServiceServer(srv, &runtimeService{deps: s.deps, sessions: sessions, stop: ctx.Done()})
	pb.RegisterImageServiceServer(srv, &imageService{deps: s.deps})
	log.V(2).Info("serving CRI", "address", l.Addr().String(), "streams", sessions.Addr())

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return srv.Serve(l) })
	g.Go(func() error { return sessions.Serve(ctx) })
	g.Go(func() error {
		<-ctx.Done()
		all := make(chan struct{})
		go func() { srv.GracefulStop(); close(all) }() // ends with the last call, or with the process
		select {
		case <-all:
		case <-time.After(s.deps.StopGrace):
			// What goes on nevertheless is cut off by whoever does it: see sandbox.Service.Close.
			srv.Stop()
		}
		return nil
	})
	return g.Wait()
}

package cri

import (
	"context"
	"fmt"
	"path"
	"runtime/debug"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"
)

// interceptor is around every call: it gives it a logger, maps its error, logs its end
// once, and keeps a panic from ending the runtime of a whole node.
type interceptor struct {
	log     klog.Logger
	parent  func(ctx context.Context, header func(name string) []string) context.Context // nil: none
	methods map[string]method                                                            // by full name
}

// method is what calls of one method have in common. It is made ahead: a kubelet asks
// hundreds of times a second.
type method struct {
	name string
	log  klog.Logger
	ends int // level at which ends without an error are logged
}

func newMethod(log klog.Logger, full string) method {
	name := path.Base(full)
	return method{name, log.WithValues("method", name), levelOf(name)}
}

// newInterceptor makes one for the methods of the services.
func newInterceptor(d *Deps, log klog.Logger, services ...*grpc.ServiceDesc) interceptor {
	i := interceptor{log, d.Parent, map[string]method{}}
	for _, s := range services {
		for _, m := range s.Methods {
			full := "/" + s.ServiceName + "/" + m.MethodName
			i.methods[full] = newMethod(log, full)
		}
		for _, m := range s.Streams {
			full := "/" + s.ServiceName + "/" + m.StreamName
			i.methods[full] = newMethod(log, full)
		}
	}
	return i
}

func (i interceptor) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	m := i.methods[info.FullMethod]
	defer m.finish(time.Now(), &err)
	if i.parent != nil {
		md, _ := metadata.FromIncomingContext(ctx)
		ctx = i.parent(ctx, md.Get)
	}
	return next(klog.NewContext(ctx, m.log), req)
}

func (i interceptor) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	m := i.methods[info.FullMethod]
	defer m.finish(time.Now(), &err)
	return next(srv, loggedStream{ss, m.log})
}

// finish must be deferred itself: recover works only there. Requests and replies are
// never logged, they hold credentials and environments.
func (m method) finish(start time.Time, err *error) {
	if p := recover(); p != nil {
		m.log.Error(fmt.Errorf("panic: %v", p), "handler panicked", "stack", string(debug.Stack()))
		*err = status.Errorf(codes.Internal, "%s: internal defect, see the log of cri-runtime: %v", m.name, p)
	}
	if *err == nil {
		if log := m.log.V(m.ends); log.Enabled() {
			log.Info("call done", "took", time.Since(start))
		}
		return
	}
	*err = toStatus(*err)
	s, _ := status.FromError(*err)
	v := 0
	if c := s.Code(); c == codes.NotFound || c == codes.Canceled || c == codes.Unimplemented {
		v = 2 // everyday: polls of what is gone, kubelets that leave, feature probes
	}
	m.log.V(v).Info("call failed", "code", s.Code().String(), "err", s.Message(), "took", time.Since(start))
}

// levelOf keeps what a kubelet asks every second out of the way.
func levelOf(method string) int {
	for _, s := range []string{"List", "Stream", "Status", "Stats", "Version", "Info", "Config"} {
		if strings.Contains(method, s) {
			return 4
		}
	}
	return 2
}

// loggedStream carries the logger in the stream's context.
type loggedStream struct {
	grpc.ServerStream
	log klog.Logger
}

// Context adds the call's logger.
func (s loggedStream) Context() context.Context {
	return klog.NewContext(s.ServerStream.Context(), s.log)
}

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/namespace"
)

// dialLimit bounds one connection attempt to a port of a pod, in its own network.
const dialLimit = 10 * time.Second

// PortForward connects stream to a port of the pod's loopback, IPv4 first, until one
// side ends. It closes neither; what it starts ends with it or with stream.
func (s *Service) PortForward(ctx context.Context, id ID, port int32, stream io.ReadWriteCloser) error {
	p, err := s.pods.get(id)
	if err != nil {
		return err
	}
	r := p.record()
	if r.Phase != PodRunning {
		return fmt.Errorf("forward port %d of pod %s, which is %v: %w", port, p.id, r.Phase, errdef.ErrPhase)
	}
	if port <= 0 || port > 65535 {
		return fmt.Errorf("forward port %d of pod %s: %w", port, p.id, errdef.ErrInvalid)
	}
	conn, err := dialPod(ctx, r, port)
	if err != nil {
		return fmt.Errorf("forward port %d of pod %s: %w", port, p.id, err)
	}
	defer func() { _ = conn.Close() }()
	return relay(ctx, conn, stream)
}

func dialPod(ctx context.Context, r *podRecord, port int32) (*net.TCPConn, error) {
	var conn net.Conn
	dial := func() error {
		var errs []error
		for _, host := range []string{"127.0.0.1", "::1"} {
			d := net.Dialer{Timeout: dialLimit, FallbackDelay: -1}
			c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
			if err == nil {
				conn = c
				return nil
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	}
	if r.onHostNetwork() {
		if err := dial(); err != nil {
			return nil, err
		}
		return conn.(*net.TCPConn), nil
	}
	// A literal address needs no resolver and no second goroutine, so that the socket
	// is made by the thread that is in the pod's network.
	if err := namespace.Do(r.Namespaces[namespace.Net], namespace.Net, dial); err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// relay copies both ways. The end of one direction is passed on; when the pod's side
// has ended, or ctx, all is over.
func relay(ctx context.Context, conn *net.TCPConn, stream io.ReadWriteCloser) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	var out sync.WaitGroup
	out.Go(func() {
		io.Copy(stream, conn) //nolint:errcheck // a broken connection is how forwarding ends
	})
	feedConn(conn, stream)
	out.Wait()
	return nil
}

// feedConn copies the client's bytes; the goroutine ends with the client's stream,
// which its server closes after the session.
func feedConn(conn *net.TCPConn, stream io.Reader) {
	go func() {
		io.Copy(conn, stream) //nolint:errcheck // as above
		_ = conn.CloseWrite()
	}()
}

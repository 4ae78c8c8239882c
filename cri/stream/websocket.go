package stream

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"

	"golang.org/x/net/websocket"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/klog/v2"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	utilexec "k8s.io/utils/exec"
)

// serveV5 speaks v5.channel.k8s.io, which kubectl and crictl ask for and the library's
// servers do not offer (k8s.io/cri-streaming v0.37.0, remotecommand/websocket.go): v4
// with a message that closes one channel, so that the end of stdin can be told.
func (s *session) serveV5(w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	log := klog.FromContext(ctx)
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{
		remotecommand.StreamProtocolV5Name: {Binary: true, Channels: s.channels()},
	})
	conn.SetIdleTimeout(idleTimeout)
	_, ch, err := conn.Open(w, r)
	if err != nil {
		log.V(2).Info("session refused", "err", err)
		return
	}
	defer func() { _ = conn.Close() }()
	// An empty message tells the client that it is connected.
	hello := remotecommand.StreamErr
	switch {
	case s.req.Stdout:
		hello = remotecommand.StreamStdOut
	case s.req.Stderr:
		hello = remotecommand.StreamStdErr
	}
	if _, err := ch[hello].Write(nil); err != nil {
		return
	}
	sizes := make(chan remotecommand.TerminalSize)
	if !s.workers.enter() {
		return
	}
	go func() { // ends with the channel, which conn.Close closes, or with ctx
		defer s.workers.leave()
		defer close(sizes)
		for d := json.NewDecoder(ch[remotecommand.StreamResize]); ; {
			var size remotecommand.TerminalSize
			if d.Decode(&size) != nil {
				return
			}
			select {
			case sizes <- size:
			case <-ctx.Done():
				return
			}
		}
	}()
	err = s.run(ctx, s.pick(ctx, ch[remotecommand.StreamStdIn], ch[remotecommand.StreamStdOut], ch[remotecommand.StreamStdErr], sizes))
	if err := json.NewEncoder(ch[remotecommand.StreamErr]).Encode(statusOf(err)); err != nil {
		log.V(4).Info("client left before its status", "err", err)
	}
}

// channels says which direction each channel of v5 has.
func (s *session) channels() []wsstream.ChannelType {
	c := make([]wsstream.ChannelType, remotecommand.StreamResize+1)
	if s.req.Stdin {
		c[remotecommand.StreamStdIn] = wsstream.ReadChannel
	}
	if s.req.Stdout {
		c[remotecommand.StreamStdOut] = wsstream.WriteChannel
	}
	if s.req.Stderr {
		c[remotecommand.StreamStdErr] = wsstream.WriteChannel
	}
	c[remotecommand.StreamErr] = wsstream.WriteChannel
	c[remotecommand.StreamResize] = wsstream.ReadChannel
	return c
}

// exitStatus is the part of Kubernetes' metav1.Status that ends a session.
type exitStatus struct {
	Status  string       `json:"status"`
	Message string       `json:"message,omitempty"`
	Reason  string       `json:"reason,omitempty"`
	Details *exitDetails `json:"details,omitempty"`
	Code    int          `json:"code,omitempty"`
}

type exitDetails struct {
	Causes []exitCause `json:"causes"`
}

type exitCause struct {
	Type    string `json:"reason"`
	Message string `json:"message"`
}

func statusOf(err error) exitStatus {
	if err == nil {
		return exitStatus{Status: "Success"}
	}
	if e, ok := errors.AsType[utilexec.CodeExitError](err); ok {
		return exitStatus{
			Status:  "Failure",
			Reason:  remotecommand.NonZeroExitCodeReason,
			Message: "command terminated with " + e.Error(),
			Details: &exitDetails{[]exitCause{{remotecommand.ExitCodeCauseType, strconv.Itoa(e.Code)}}},
		}
	}
	return exitStatus{Status: "Failure", Reason: "InternalError", Message: err.Error(), Code: http.StatusInternalServerError}
}

// serveTunnel takes a WebSocket whose binary messages are a SPDY connection, as kubectl
// and crictl do for port forwarding since 1.30, and serves that connection.
func (s *session) serveTunnel(w http.ResponseWriter, r *http.Request) {
	websocket.Server{
		Handshake: func(c *websocket.Config, r *http.Request) error {
			for _, p := range c.Protocol {
				if p == portforward.WebsocketsSPDYTunnelingPortForwardV1 {
					c.Protocol = []string{p}
					if c.Origin == nil { // x/net's RemoteAddr needs one, and not every client sends it
						c.Origin = &url.URL{Scheme: "http", Host: r.RemoteAddr}
					}
					return nil
				}
			}
			return websocket.ErrBadWebSocketProtocol
		},
		Handler: func(ws *websocket.Conn) { //nolint:contextcheck // the context is r's
			ws.PayloadType = websocket.BinaryFrame
			inner := r.Clone(r.Context())
			inner.Header = http.Header{}
			inner.Header.Set(httpstream.HeaderConnection, httpstream.HeaderUpgrade)
			inner.Header.Set(httpstream.HeaderUpgrade, spdy.HeaderSpdy31)
			inner.Header.Set(httpstream.HeaderProtocolVersion, portforward.ProtocolV1Name)
			s.servePorts(&tunnelled{conn: ws, header: http.Header{}}, inner)
		},
	}.ServeHTTP(w, r)
}

// tunnelled plays the HTTP connection that the SPDY library takes over. What would be
// said in HTTP is dropped: the client has had its answer from the WebSocket.
type tunnelled struct {
	conn   net.Conn
	header http.Header
}

func (t *tunnelled) Header() http.Header         { return t.header }
func (t *tunnelled) Write(b []byte) (int, error) { return len(b), nil }
func (t *tunnelled) WriteHeader(int)             {}

// Hijack hands out the tunnel.
func (t *tunnelled) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return t.conn, bufio.NewReadWriter(bufio.NewReader(t.conn), bufio.NewWriter(io.Discard)), nil
}

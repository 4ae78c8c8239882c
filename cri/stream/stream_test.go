package stream

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/websocket"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/sandbox"
)

// fake does what its commands say, with real streams.
type fake struct{ running atomic.Int32 }

func (f *fake) Exec(ctx context.Context, r sandbox.ExecRequest) (int32, error) {
	f.running.Add(1)
	defer f.running.Add(-1)
	switch r.Cmd[0] {
	case "cat": // input to both outputs until the input ends
		if _, err := io.Copy(r.Stdout, r.Stdin); err != nil {
			return 0, err
		}
		if r.Stderr != nil {
			_, _ = io.WriteString(r.Stderr, "done")
		}
		return 7, nil
	case "nothing": // says which streams it has
		_, _ = fmt.Fprintf(r.Stdout, "in %t err %t resize %t", r.Stdin != nil, r.Stderr != nil, r.Resize != nil)
		return 0, nil
	case "size": // the first terminal size
		s := <-r.Resize
		_, _ = fmt.Fprintf(r.Stdout, "%dx%d", s.Width, s.Height)
		return 0, nil
	case "sum":
		h := fnv.New64()
		_, _ = io.Copy(h, r.Stdin)
		_, _ = fmt.Fprintf(r.Stdout, "%x", h.Sum64())
		return 0, nil
	case "fail":
		return 0, errors.New("no such program")
	default: // sleeps
		_, _ = io.WriteString(r.Stdout, "up")
		<-ctx.Done()
		return 0, ctx.Err()
	}
}

func (f *fake) Attach(ctx context.Context, r sandbox.AttachRequest) error {
	f.running.Add(1)
	defer f.running.Add(-1)
	_, err := io.Copy(r.Stdout, r.Stdin)
	return err
}

// PortForward answers like a server that echoes, for port 80 only.
func (f *fake) PortForward(ctx context.Context, pod sandbox.ID, port int32, stream io.ReadWriteCloser) error {
	f.running.Add(1)
	defer f.running.Add(-1)
	if port != 80 {
		return fmt.Errorf("dial port %d of %s: refused", port, pod)
	}
	stop := context.AfterFunc(ctx, func() { _ = stream.Close() })
	defer stop()
	buf := make([]byte, 32)
	n, err := stream.Read(buf)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(stream, "echo %s", buf[:n])
	return err
}

// start serves until the test ends, and then looks for what is left running.
func start(t *testing.T) (*Server, *fake, func()) {
	t.Helper()
	before := runtime.NumGoroutine()
	f := &fake{}
	s, err := Listen(t.Context(), "127.0.0.1:0", f)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	stopped := false
	stop := func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Serve does not return")
		}
		if n := f.running.Load(); n != 0 {
			t.Errorf("%d sessions run after Serve", n)
		}
	}
	t.Cleanup(func() {
		stop()
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
		settle(t, "goroutines", func() bool { return runtime.NumGoroutine() <= before })
	})
	return s, f, stop
}

// settle waits for what ends on its own, and shows all goroutines when it does not.
func settle(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 1000 {
		if ok() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	buf := make([]byte, 1<<16)
	t.Errorf("%s are left:\n%s", what, buf[:runtime.Stack(buf, true)])
}

func (s *Server) mustURL(t *testing.T, r Request) string {
	t.Helper()
	u, err := s.URL(r)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// A client is one exec or attach session, whatever the protocol.
type client interface {
	send(data string)   // to stdin
	closeStdin()        // ends it
	resize(w, h uint16) // sends a terminal size
	recv(k kind) string // the next that came of this kind
	hangUp()            // breaks the connection
}

type kind string

// spdyClient uses the library's own client.
type spdyClient struct {
	t       *testing.T
	conn    httpstream.Connection
	streams map[string]httpstream.Stream
	in      map[kind]chan string
}

func dialSPDY(t *testing.T, url string, r Request) client {
	t.Helper()
	rt, err := spdy.NewRoundTripper(nil)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set(httpstream.HeaderProtocolVersion, "v4.channel.k8s.io")
	resp, err := rt.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := rt.NewConnection(resp)
	if err != nil {
		t.Fatal(err)
	}
	c := &spdyClient{t, conn, map[string]httpstream.Stream{}, map[kind]chan string{}}
	for _, x := range []struct {
		name string
		want bool
	}{{"error", true}, {"stdin", r.Stdin}, {"stdout", r.Stdout}, {"stderr", r.Stderr && !r.TTY}, {"resize", r.TTY}} {
		if !x.want {
			continue
		}
		st, err := conn.CreateStream(http.Header{"Streamtype": {x.name}})
		if err != nil {
			t.Fatal(err)
		}
		c.streams[x.name] = st
		c.in[kind(x.name)] = make(chan string, 100)
		go c.read(c.in[kind(x.name)], st)
	}
	return c
}

func (c *spdyClient) read(to chan string, st io.Reader) {
	for {
		buf := make([]byte, 4096)
		n, err := st.Read(buf)
		if n > 0 {
			to <- string(buf[:n])
		}
		if err != nil {
			return
		}
	}
}

func (c *spdyClient) send(data string) { _, _ = io.WriteString(c.streams["stdin"], data) }
func (c *spdyClient) closeStdin()      { _ = c.streams["stdin"].Close() }
func (c *spdyClient) resize(w, h uint16) {
	_ = json.NewEncoder(c.streams["resize"]).Encode(sandbox.TerminalSize{Width: w, Height: h})
}
func (c *spdyClient) hangUp() { _ = c.conn.Close() }
func (c *spdyClient) recv(k kind) string {
	select {
	case m := <-c.in[k]:
		return m
	case <-time.After(10 * time.Second):
		return "nothing within 10 s"
	}
}

// wsClient speaks channel.k8s.io of some version.
type wsClient struct {
	t  *testing.T
	ws *websocket.Conn
	v5 bool
}

func dialWS(t *testing.T, url, protocol string) *wsClient {
	t.Helper()
	config, err := websocket.NewConfig(strings.Replace(url, "http://", "ws://", 1), "http://localhost")
	if err != nil {
		t.Fatal(err)
	}
	config.Protocol = []string{protocol}
	ws, err := config.DialContext(t.Context())
	if err != nil {
		t.Fatalf("dial %s: %v", protocol, err)
	}
	_ = ws.SetDeadline(time.Now().Add(10 * time.Second))
	return &wsClient{t, ws, strings.HasPrefix(protocol, "v5")}
}

func (c *wsClient) frame(b ...byte)  { _ = websocket.Message.Send(c.ws, b) }
func (c *wsClient) send(data string) { c.frame(append([]byte{0}, data...)...) }
func (c *wsClient) closeStdin()      { c.frame(255, 0) }
func (c *wsClient) resize(w, h uint16) {
	text, _ := json.Marshal(sandbox.TerminalSize{Width: w, Height: h})
	c.frame(append([]byte{4}, text...)...)
}
func (c *wsClient) hangUp() { _ = c.ws.Close() }
func (c *wsClient) recv(k kind) string {
	for {
		var b []byte
		if err := websocket.Message.Receive(c.ws, &b); err != nil {
			return err.Error()
		}
		if len(b) == 1 { // says hello
			continue
		}
		if got := []kind{"stdin", "stdout", "stderr", "error"}[b[0]]; got != k {
			return string(got) + " came"
		}
		return string(b[1:])
	}
}

var dialers = map[string]func(*testing.T, string, Request) client{
	"spdy":         dialSPDY,
	"websocket v4": func(t *testing.T, u string, _ Request) client { return dialWS(t, u, "v4.channel.k8s.io") },
	"websocket v5": func(t *testing.T, u string, _ Request) client { return dialWS(t, u, "v5.channel.k8s.io") },
}

func wantMessage(t *testing.T, c client, k kind, data string) {
	t.Helper()
	if got := c.recv(k); !strings.Contains(got, data) {
		t.Errorf("%s: got %q, want %q", k, got, data)
	}
}

func TestExec(t *testing.T) {
	for name, dial := range dialers {
		t.Run(name, func(t *testing.T) {
			s, f, _ := start(t)
			open := func(r Request) client {
				r.Kind, r.ID = Exec, "c"
				return dial(t, s.mustURL(t, r), r)
			}
			if name != "websocket v4" { // which cannot tell the end of stdin
				c := open(Request{Cmd: []string{"cat"}, Stdin: true, Stdout: true, Stderr: true})
				c.send("hello")
				wantMessage(t, c, "stdout", "hello")
				c.closeStdin()
				wantMessage(t, c, "stderr", "done")
				status := c.recv("error")
				var st exitStatus
				if err := json.Unmarshal([]byte(status), &st); err != nil || st.Status != "Failure" || st.Reason != "NonZeroExitCode" ||
					st.Details == nil || st.Details.Causes[0] != (exitCause{"ExitCode", "7"}) {
					t.Errorf("status: %s, %v", status, err)
				}
				c.hangUp()
			}
			c := open(Request{Cmd: []string{"nothing"}, Stdout: true})
			wantMessage(t, c, "stdout", "in false err false resize false")
			wantMessage(t, c, "error", "Success")
			c.hangUp()

			c = open(Request{Cmd: []string{"size"}, Stdin: true, Stdout: true, TTY: true})
			c.resize(80, 25)
			wantMessage(t, c, "stdout", "80x25")
			wantMessage(t, c, "error", "Success")
			c.hangUp()

			c = open(Request{Cmd: []string{"fail"}, Stdout: true})
			wantMessage(t, c, "error", "no such program")
			c.hangUp()

			// A client that breaks off ends its process, with all that hangs on it.
			for _, r := range []Request{{Stdout: true}, {Stdin: true, Stdout: true, TTY: true}} {
				r.Cmd = []string{"sleep"}
				c = open(r)
				wantMessage(t, c, "stdout", "up")
				c.hangUp()
				settle(t, "sessions", func() bool { return f.running.Load() == 0 })
			}
		})
	}
}

// TestUnreadInput holds that a client is missed although its process does not read what
// it sent: the library above is stuck with that data and reads no further.
func TestUnreadInput(t *testing.T) {
	for name, dial := range dialers {
		t.Run(name, func(t *testing.T) {
			s, f, _ := start(t)
			s.linger = 50 * time.Millisecond
			r := Request{Kind: Exec, ID: "c", Cmd: []string{"sleep"}, Stdin: true, Stdout: true}
			c := dial(t, s.mustURL(t, r), r)
			wantMessage(t, c, "stdout", "up")
			for range 20 {
				c.send(strings.Repeat("x", 1000))
			}
			c.hangUp()
			settle(t, "sessions", func() bool { return f.running.Load() == 0 })
		})
	}
}

// TestMuchInput sends more than is read ahead, in pieces that do not fit its ring.
func TestMuchInput(t *testing.T) {
	for name, dial := range dialers {
		if name == "websocket v4" { // cannot end its input
			continue
		}
		t.Run(name, func(t *testing.T) {
			s, _, _ := start(t)
			r := Request{Kind: Exec, ID: "c", Cmd: []string{"sum"}, Stdin: true, Stdout: true}
			c := dial(t, s.mustURL(t, r), r)
			h := fnv.New64()
			for i := range 300 {
				data := strings.Repeat(strconv.Itoa(i), 977)
				_, _ = io.WriteString(h, data)
				c.send(data)
			}
			c.closeStdin()
			wantMessage(t, c, "stdout", fmt.Sprintf("%x", h.Sum64()))
			c.hangUp()
		})
	}
}

func TestAttach(t *testing.T) {
	for name, dial := range dialers {
		t.Run(name, func(t *testing.T) {
			s, f, _ := start(t)
			r := Request{Kind: Attach, ID: "c", Stdin: true, Stdout: true, Stderr: true}
			c := dial(t, s.mustURL(t, r), r)
			c.send("hello")
			wantMessage(t, c, "stdout", "hello")
			c.hangUp()
			settle(t, "sessions", func() bool { return f.running.Load() == 0 })
		})
	}
}

// TestServeEnds holds that sessions do not outlive the server.
func TestServeEnds(t *testing.T) {
	for name, dial := range dialers {
		t.Run(name, func(t *testing.T) {
			s, _, stop := start(t)
			r := Request{Kind: Exec, ID: "c", Cmd: []string{"sleep"}, Stdin: true, Stdout: true, TTY: true}
			c := dial(t, s.mustURL(t, r), r)
			wantMessage(t, c, "stdout", "up")
			stop()
			c.hangUp()
		})
	}
}

// forwardSPDY opens one connection to a port on a SPDY connection.
func forwardSPDY(t *testing.T, conn httpstream.Connection, port string) (data, errs httpstream.Stream) {
	t.Helper()
	h := http.Header{"Port": {port}, "Requestid": {port}, "Streamtype": {"error"}}
	errs, err := conn.CreateStream(h)
	if err != nil {
		t.Fatal(err)
	}
	h = h.Clone()
	h.Set("streamType", "data")
	if data, err = conn.CreateStream(h); err != nil {
		t.Fatal(err)
	}
	return data, errs
}

func checkForward(t *testing.T, conn httpstream.Connection) {
	t.Helper()
	data, errs := forwardSPDY(t, conn, "80")
	if _, err := io.WriteString(data, "hi"); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(data); err != nil || string(got) != "echo hi" {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := io.ReadAll(errs); err != nil || len(got) != 0 {
		t.Errorf("error stream: %q, %v", got, err)
	}
	_, errs = forwardSPDY(t, conn, "81")
	if got, _ := io.ReadAll(errs); !strings.Contains(string(got), "dial port 81 of p: refused") {
		t.Errorf("error of a closed port: %q", got)
	}
	// The connection ends in the middle of one.
	forwardSPDY(t, conn, "80")
	_ = conn.Close()
}

func TestPortForwardSPDY(t *testing.T) {
	s, f, _ := start(t)
	rt, err := spdy.NewRoundTripper(nil)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.mustURL(t, Request{Kind: PortForward, ID: "p"}), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set(httpstream.HeaderProtocolVersion, "portforward.k8s.io")
	resp, err := rt.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := rt.NewConnection(resp)
	if err != nil {
		t.Fatal(err)
	}
	checkForward(t, conn)
	settle(t, "sessions", func() bool { return f.running.Load() == 0 })
}

// TestPortForwardTunnel speaks SPDY inside a WebSocket, as kubectl and crictl do.
func TestPortForwardTunnel(t *testing.T) {
	s, f, _ := start(t)
	c := dialWS(t, s.mustURL(t, Request{Kind: PortForward, ID: "p"}), "SPDY/3.1+portforward.k8s.io")
	c.ws.PayloadType = websocket.BinaryFrame
	conn, err := spdy.NewClientConnection(c.ws)
	if err != nil {
		t.Fatal(err)
	}
	checkForward(t, conn)
	settle(t, "sessions", func() bool { return f.running.Load() == 0 })
}

// TestPortForwardV4 is the older WebSocket protocol: two channels a port, each of which
// begins with the port's number.
func TestPortForwardV4(t *testing.T) {
	s, f, _ := start(t)
	c := dialWS(t, s.mustURL(t, Request{Kind: PortForward, ID: "p", Ports: []int32{80}}), "v4.channel.k8s.io")
	var got []byte
	for range 2 {
		if err := websocket.Message.Receive(c.ws, &got); err != nil || binary.LittleEndian.Uint16(got[1:]) != 80 {
			t.Errorf("port: %v, %v", got, err)
		}
	}
	c.frame(0, 'h', 'i')
	if err := websocket.Message.Receive(c.ws, &got); err != nil || string(got) != "\x00echo hi" {
		t.Errorf("got %q, %v", got, err)
	}
	c.hangUp()
	settle(t, "sessions", func() bool { return f.running.Load() == 0 })
}

func TestTokens(t *testing.T) {
	s, _, _ := start(t)
	get := func(url string) int {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	u := s.mustURL(t, Request{Kind: Exec, ID: "c", Cmd: []string{"nothing"}, Stdout: true})
	if got := get(strings.Replace(u, "/exec/", "/attach/", 1)); got != http.StatusNotFound {
		t.Errorf("token of another kind: got %d", got)
	}
	if got := get(u); got != http.StatusBadRequest {
		t.Errorf("plain request: got %d, want 400", got)
	}
	if got := get(u); got != http.StatusNotFound {
		t.Errorf("second use: got %d, want 404", got)
	}
	if got := get("http://" + s.Addr() + "/exec/guess"); got != http.StatusNotFound {
		t.Errorf("unknown token: got %d, want 404", got)
	}
}

func TestTokensExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tk tokens
		old, err := tk.add(Request{Kind: Exec})
		if err != nil {
			t.Fatal(err)
		}
		for range maxTokens - 1 {
			if _, err := tk.add(Request{Kind: Exec}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := tk.add(Request{Kind: Exec}); !errors.Is(err, errdef.ErrExhausted) {
			t.Errorf("too many: got %v", err)
		}
		time.Sleep(tokenLife)
		if _, ok := tk.take(Exec, old); ok {
			t.Error("an expired token was good")
		}
		time.Sleep(time.Nanosecond)
		if _, err := tk.add(Request{Kind: Exec}); err != nil {
			t.Errorf("after expiry: %v", err)
		}
		if n := len(tk.pending); n != 1 {
			t.Errorf("%d tokens are kept", n)
		}
	})
}

func TestLoopbackOnly(t *testing.T) {
	for _, addr := range []string{"0.0.0.0:0", ":0", "localhost:0", "10.0.0.1:0", "[::]:0", ""} {
		if _, err := Listen(t.Context(), addr, &fake{}); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("%q: got %v, want ErrInvalid", addr, err)
		}
	}
	s, err := Listen(t.Context(), "127.0.0.1:0", &fake{})
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(s.Addr())
	if err != nil || port == "0" {
		t.Errorf("address %s, %v", s.Addr(), err)
	}
	_ = s.listener.Close()
}

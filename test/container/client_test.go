package container

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// session is a client's end of an exec or attach.
type session interface {
	send(t *testing.T, data string)
	endInput(t *testing.T)
	resize(t *testing.T, width, height uint16)
	// output is what has come until the server ended the session; both streams together.
	output(t *testing.T) string
	hangUp()
}

// wants are the streams that a client asks for; standard output always.
type wants struct{ stdin, tty bool }

var dialers = map[string]func(t *testing.T, url string, w wants) session{"SPDY": dialSPDY, "WebSocket": dialWebSocket}

type spdySession struct {
	conn           httpstream.Connection
	stdin, resizer httpstream.Stream
	wait           sync.WaitGroup
	mu             sync.Mutex // guards out
	out            strings.Builder
}

func dialSPDY(t *testing.T, url string, w wants) session {
	t.Helper()
	transport, err := spdy.NewRoundTripper(nil)
	if err != nil {
		t.Fatal(err)
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set(httpstream.HeaderProtocolVersion, "v4.channel.k8s.io")
	reply, err := transport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	s := &spdySession{}
	if s.conn, err = transport.NewConnection(reply); err != nil {
		t.Fatal(err)
	}
	stream := func(kind string) httpstream.Stream {
		st, err := s.conn.CreateStream(http.Header{"Streamtype": {kind}})
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	stream("error")
	if w.stdin {
		s.stdin = stream("stdin")
	}
	outputs := []string{"stdout", "stderr"}
	if w.tty {
		outputs = outputs[:1]
	}
	for _, kind := range outputs {
		from := stream(kind)
		s.wait.Go(func() { _, _ = io.Copy(s, from) })
	}
	if w.tty {
		s.resizer = stream("resize")
	}
	return s
}

// Write collects output.
func (s *spdySession) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.Write(b)
}

func (s *spdySession) send(t *testing.T, data string) {
	t.Helper()
	if _, err := io.WriteString(s.stdin, data); err != nil {
		t.Fatal(err)
	}
}

func (s *spdySession) endInput(t *testing.T) {
	t.Helper()
	if err := s.stdin.Close(); err != nil {
		t.Fatal(err)
	}
}

func (s *spdySession) resize(t *testing.T, width, height uint16) {
	t.Helper()
	if err := json.NewEncoder(s.resizer).Encode(map[string]uint16{"Width": width, "Height": height}); err != nil {
		t.Fatal(err)
	}
}

func (s *spdySession) output(t *testing.T) string {
	t.Helper()
	done := make(chan struct{})
	var wait sync.WaitGroup
	wait.Go(func() {
		s.wait.Wait()
		close(done)
	})
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Error("the session does not end")
	}
	s.hangUp()
	wait.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.String()
}

func (s *spdySession) hangUp() { _ = s.conn.Close() }

// socketSession speaks version 5 of the WebSocket protocol, whose input can end.
type socketSession struct{ ws *websocket.Conn }

func dialWebSocket(t *testing.T, url string, _ wants) session {
	t.Helper()
	config, err := websocket.NewConfig(strings.Replace(url, "http://", "ws://", 1), "http://localhost")
	if err != nil {
		t.Fatal(err)
	}
	config.Protocol = []string{"v5.channel.k8s.io"}
	ws, err := config.DialContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := ws.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return &socketSession{ws}
}

func (s *socketSession) frame(t *testing.T, b ...byte) {
	t.Helper()
	if err := websocket.Message.Send(s.ws, b); err != nil {
		t.Fatal(err)
	}
}

func (s *socketSession) send(t *testing.T, data string) { s.frame(t, append([]byte{0}, data...)...) }
func (s *socketSession) endInput(t *testing.T)          { s.frame(t, 255, 0) }

func (s *socketSession) resize(t *testing.T, width, height uint16) {
	t.Helper()
	body, err := json.Marshal(map[string]uint16{"Width": width, "Height": height})
	if err != nil {
		t.Fatal(err)
	}
	s.frame(t, append([]byte{4}, body...)...)
}

func (s *socketSession) output(t *testing.T) string {
	t.Helper()
	var out strings.Builder
	for {
		var b []byte
		err := websocket.Message.Receive(s.ws, &b)
		if errors.Is(err, io.EOF) {
			s.hangUp()
			return out.String()
		}
		if err != nil {
			t.Errorf("the session does not end: %v", err)
			return out.String()
		}
		if len(b) > 0 && (b[0] == 1 || b[0] == 2) {
			out.Write(b[1:])
		}
	}
}

func (s *socketSession) hangUp() { _ = s.ws.Close() }

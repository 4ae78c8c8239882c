package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
)

// The kubelet signs its own certificate.
var (
	anySigner      = &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}
	insecureClient = &http.Client{Transport: &http.Transport{TLSClientConfig: anySigner, DisableKeepAlives: true}}
)

func readAll(r *http.Response) (string, error) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 4<<20))
	return string(body), err
}

// The channels of Kubernetes' WebSocket protocol, version 4: the first byte of a message.
const (
	channelStdin = iota
	channelStdout
	channelStderr
	channelError
)

// dialKubelet opens a WebSocket to the kubelet's API, as kubectl does through the API server.
func dialKubelet(ctx context.Context, path string, query url.Values) (*websocket.Conn, error) {
	config, err := websocket.NewConfig("wss://127.0.0.1:10250"+path+"?"+query.Encode(), "https://127.0.0.1")
	if err != nil {
		return nil, err
	}
	config.Protocol, config.TlsConfig = []string{"v4.channel.k8s.io"}, anySigner
	ws, err := config.DialContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return ws, ws.SetDeadline(time.Now().Add(20 * time.Second))
}

// receive collects what comes on each channel, until the end or until enough says so.
func receive(ws *websocket.Conn, enough func(map[byte]string) bool) (map[byte]string, error) {
	got := map[byte]string{}
	for {
		var message []byte
		if err := websocket.Message.Receive(ws, &message); errors.Is(err, io.EOF) {
			return got, nil
		} else if err != nil {
			return got, err
		}
		if len(message) > 0 {
			got[message[0]] += string(message[1:])
		}
		if enough(got) {
			return got, nil
		}
	}
}

func (k *kubelet) testExec(t *testing.T) {
	ws, err := dialKubelet(t.Context(), "/exec/default/web-"+nodeName+"/main", url.Values{
		"command": {"sh", "-c", "read word; echo got $word; echo complaint >&2; exit 4"}, "input": {"1"}, "output": {"1"}, "error": {"1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	if err := websocket.Message.Send(ws, append([]byte{channelStdin}, "hello\n"...)); err != nil {
		t.Fatal(err)
	}
	got, err := receive(ws, func(got map[byte]string) bool { return got[channelError] != "" })
	if err != nil {
		t.Error(err)
	}
	if got[channelStdout] != "got hello\n" || got[channelStderr] != "complaint\n" || !strings.Contains(got[channelError], `"message":"4"`) {
		t.Errorf("got %q, want its two lines and exit code 4", got)
	}
}

func (k *kubelet) testForward(t *testing.T) {
	ws, err := dialKubelet(t.Context(), "/portForward/default/web-"+nodeName, url.Values{"port": {"8080"}})
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	if err := websocket.Message.Send(ws, append([]byte{0}, "GET / HTTP/1.0\r\n\r\n"...)); err != nil {
		t.Fatal(err)
	}
	got, err := receive(ws, func(got map[byte]string) bool { return strings.HasSuffix(got[0], "from the host\n") })
	if err != nil {
		t.Error(err)
	}
	number := []byte{8080 & 0xff, 8080 >> 8} // each channel begins with it
	if !bytes.HasPrefix([]byte(got[0]), number) || !bytes.HasPrefix([]byte(got[1]), number) || !strings.Contains(got[0], " 200 OK\r\n") {
		t.Errorf("got %q, want the port number and the page", got)
	}
}

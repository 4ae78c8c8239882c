package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Whoever may open the socket is root on the node.
func TestSocketIsNotForEverybody(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "cri.sock")
	for range 2 { // the second finds what a killed daemon left
		l, err := listen(t.Context(), path, 0o660)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		st, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := st.Mode(), os.ModeSocket|0o660; got != want {
			t.Errorf("mode: got %v, want %v", got, want)
		}
	}
}

// Sockets are opened before anything is made, so a start that cannot have them leaves none.
func TestSocketsAllOrNone(t *testing.T) {
	taken, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	dir := t.TempDir()
	c := config{State: dir, Listen: filepath.Join(dir, "cri.sock"), MetricsAddress: taken.Addr().String()}
	if s, err := openSockets(t.Context(), c); err == nil || !strings.Contains(err.Error(), "--metrics-address") {
		t.Errorf("got %v, %v, want an error that names the option", s, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

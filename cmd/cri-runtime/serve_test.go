package main

import (
	"os"
	"path/filepath"
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

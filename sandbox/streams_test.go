package sandbox

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"
)

// A command has ended, a stray of its holds the pipe open, and the copier was not
// scheduled before the deadline: what was written must come all the same.
func TestOutputOfLateCopier(t *testing.T) {
	for name, size := range map[string]int{"nothing": 0, "a line": 5, "a full pipe": 64 << 10} {
		t.Run(name, func(t *testing.T) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			defer w.Close()
			want := strings.Repeat("x", size)
			if _, err := w.WriteString(want); err != nil {
				t.Fatal(err)
			}
			if err := r.SetReadDeadline(time.Now().Add(-time.Second)); err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			copyOut(&got, r)
			copyRest(&got, r)
			if got.String() != want {
				t.Errorf("got %d bytes, want %d", got.Len(), len(want))
			}
		})
	}
}

func TestRestOfGoneClient(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := w.WriteString("x"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	copyRest(nil, r)
	copyRest(nil, r) // at its end
}

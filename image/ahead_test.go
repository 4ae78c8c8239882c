package image

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"
)

func TestReadAhead(t *testing.T) {
	data := make([]byte, 3*chunkAhead*chunkSize+17)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(data)
	broken := errors.New("broken")
	for name, r := range map[string]io.Reader{
		"whole": bytes.NewReader(data), "half": iotest.HalfReader(bytes.NewReader(data)), "data with the error": iotest.DataErrReader(bytes.NewReader(data)),
	} {
		a := readAhead(r)
		got, err := io.ReadAll(a)
		a.Close()
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	a := readAhead(io.MultiReader(bytes.NewReader(data[:chunkSize+5]), iotest.ErrReader(broken)))
	got, err := io.ReadAll(a)
	if !errors.Is(err, broken) || len(got) != chunkSize+5 {
		t.Errorf("after %d bytes: %v", len(got), err)
	}
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, broken) {
		t.Errorf("once more: %v", err)
	}
	a.Close()
}

// A stage above that gives up early ends the stage below.
func TestReadAheadClosedEarly(t *testing.T) {
	var read int
	a := readAhead(readerFunc(func(p []byte) (int, error) { read += len(p); return len(p), nil }))
	if _, err := io.ReadFull(a, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	a.Close()
	if at := read; at > (chunkAhead+1)*chunkSize {
		t.Errorf("%d bytes were read ahead", at)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func BenchmarkReadAhead(b *testing.B) {
	b.SetBytes(64 << 20)
	for b.Loop() {
		a := readAhead(io.LimitReader(readerFunc(func(p []byte) (int, error) { return len(p), nil }), 64<<20))
		if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, a, make([]byte, 256<<10)); err != nil {
			b.Fatal(err)
		}
		a.Close()
	}
}

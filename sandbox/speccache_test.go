package sandbox

import (
	"errors"
	"fmt"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestSpecCache(t *testing.T) {
	var c specCache
	reads := map[ID]int{}
	fail := errors.New("no such file")
	get := func(id ID) *specs.Spec {
		t.Helper()
		s, err := c.get(id, func(id ID) (*specs.Spec, error) {
			reads[id]++
			return &specs.Spec{Hostname: string(id)}, nil
		})
		if err != nil || s.Hostname != string(id) {
			t.Fatalf("spec of %s: got %+v, %v", id, s, err)
		}
		return s
	}
	if _, err := c.get("a", func(ID) (*specs.Spec, error) { return nil, fail }); !errors.Is(err, fail) {
		t.Errorf("a spec that cannot be read: got %v, want %v", err, fail)
	}
	first := get("a")
	for i := range specsKept { // "a" stays, being used all the time, and the oldest other goes
		get(ID(fmt.Sprint(i)))
		if get("a") != first {
			t.Fatalf("after %d others: a was read again", i+1)
		}
	}
	get("0")
	if reads["a"] != 1 || reads["0"] != 2 || reads["1"] != 1 {
		t.Errorf("reads: got %v, want one of a and 1, two of 0", reads)
	}
	if len(c.kept) != specsKept {
		t.Errorf("kept: got %d, want %d", len(c.kept), specsKept)
	}
}

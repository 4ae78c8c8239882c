package sandbox

import (
	"errors"
	"fmt"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestExecTargets(t *testing.T) {
	var c execTargets
	reads := map[ID]int{}
	fail := errors.New("no such file")
	get := func(id ID) *execTarget {
		t.Helper()
		got, err := c.get(id, func() (*execTarget, error) {
			reads[id]++
			return &execTarget{spec: &specs.Spec{Hostname: string(id)}}, nil
		})
		if err != nil || got.spec.Hostname != string(id) {
			t.Fatalf("target %s: got %+v, %v", id, got, err)
		}
		return got
	}
	if _, err := c.get("a", func() (*execTarget, error) { return nil, fail }); !errors.Is(err, fail) {
		t.Errorf("a target that cannot be found out about: got %v, want %v", err, fail)
	}
	first := get("a")
	for i := range targetsKept { // "a" stays, being used all the time, and the oldest other goes
		get(ID(fmt.Sprint(i)))
		if get("a") != first {
			t.Fatalf("after %d others: a was read again", i+1)
		}
	}
	get("0")
	if reads["a"] != 1 || reads["0"] != 2 || reads["1"] != 1 {
		t.Errorf("reads: got %v, want one of a and 1, two of 0", reads)
	}
	if len(c.kept) != targetsKept {
		t.Errorf("kept: got %d, want %d", len(c.kept), targetsKept)
	}
}

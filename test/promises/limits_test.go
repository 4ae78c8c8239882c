package promises

import "testing"

// limits hold, for each figure, the most that it may be. docs/promises.md names those that
// are promises; all have about a fifth of head-room above what was true when they were set.
var limits = map[string]int{}

// check prints a figure, and fails t when it is above its limit.
func check(t *testing.T, name string, got int) {
	t.Helper()
	limit, ok := limits[name]
	if !ok {
		t.Logf("%-60s %6d   (no limit yet)", name, got)
		return
	}
	t.Logf("%-60s %6d   at most %d", name, got, limit)
	if got > limit {
		t.Errorf("%s: got %d, at most %d were promised", name, got, limit)
	}
}

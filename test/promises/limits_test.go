package promises

import (
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// The limits are those of the table in this section of docs/promises.md, which is their home.
const (
	document = "../../docs/promises.md"
	section  = "## Counts\n"
)

var limits = sync.OnceValues(readLimits)

var row = regexp.MustCompile(`(?m)^\| ([^|]+) \| (\d[\d,]*) \|`)

func readLimits() (map[string]int, error) {
	body, err := os.ReadFile(document)
	if err != nil {
		return nil, err
	}
	_, rest, _ := strings.Cut(string(body), section)
	table, _, _ := strings.Cut(rest, "\n## ")
	found := map[string]int{}
	for _, m := range row.FindAllStringSubmatch(table, -1) {
		n, err := strconv.Atoi(strings.ReplaceAll(m[2], ",", ""))
		if err != nil {
			return nil, err
		}
		found[m[1]] = n
	}
	return found, nil
}

// check prints a figure, and fails t when it is above its limit or has none.
func check(t *testing.T, name string, got int) {
	t.Helper()
	all, err := limits()
	if err != nil {
		t.Fatal(err)
	}
	limit, ok := all[name]
	t.Logf("%-62s %7d   at most %d", name, got, limit)
	switch {
	case !ok:
		t.Errorf("%s has no limit in %s", name, document)
	case got > limit:
		t.Errorf("%s: got %d, at most %d were promised", name, got, limit)
	}
}

// TestLimitsAreChecked: the document promises nothing that no test here looks at.
func TestLimitsAreChecked(t *testing.T) {
	all, err := limits()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) == 0 {
		t.Fatalf("no limits in %s", document)
	}
	var source strings.Builder
	for _, file := range []string{"life_test.go", "full_test.go"} {
		body, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		source.Write(body)
	}
	for name := range all {
		if !strings.Contains(source.String(), `check(t, "`+name+`"`) {
			t.Errorf("%q is in %s and checked nowhere", name, document)
		}
	}
}

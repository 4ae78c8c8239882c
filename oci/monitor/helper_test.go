package monitor

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// lines prints numbered lines: how many, how long, how many in one write, and how
// long to wait after each write. It ends with code 9 if a write fails.
func lines(args []string) {
	var v [4]int
	for i := range v {
		v[i], _ = strconv.Atoi(args[i])
	}
	count, width, batch, pause := v[0], v[1], v[2], time.Duration(v[3])*time.Microsecond
	var b []byte
	for i := range count {
		b = fmt.Appendf(b, "%09d ", i)
		for range width - 11 {
			b = append(b, 'a'+byte(i%26))
		}
		b = append(b, '\n')
		if (i+1)%batch != 0 && i+1 < count {
			continue
		}
		for len(b) > 0 {
			n, err := unix.Write(1, b)
			if err != nil {
				os.Exit(9)
			}
			b = b[n:]
		}
		b = b[:0]
		if pause > 0 {
			time.Sleep(pause)
		}
	}
	os.Exit(0)
}

// checkLines fails unless the logs hold each numbered line once, whole, in order.
func checkLines(t *testing.T, count, width int, logs ...string) {
	t.Helper()
	next := 0
	for _, log := range logs {
		for l := range strings.Lines(log) {
			_, rest, _ := strings.Cut(l, " ")
			content, ok := strings.CutPrefix(rest, "stdout F ")
			want := fmt.Sprintf("%09d ", next) + strings.Repeat(string(rune('a'+next%26)), width-11) + "\n"
			if !ok || content != want {
				t.Fatalf("line %d of %d: got %.120q, want %.60q", next, count, l, want)
			}
			next++
		}
	}
	if next != count {
		t.Fatalf("lines: got %d, want %d", next, count)
	}
}

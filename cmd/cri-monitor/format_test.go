package main

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestStamp(t *testing.T) {
	var s stamp
	for _, at := range []time.Time{
		time.Unix(0, 1), time.Date(2024, 2, 29, 23, 59, 59, 999999999, time.UTC),
		time.Date(2024, 3, 1, 0, 0, 0, 0, time.UTC), time.Date(2100, 2, 28, 12, 0, 0, 5, time.UTC),
		time.Date(1999, 12, 31, 23, 59, 59, 0, time.UTC), time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC),
	} {
		s.set(at.UnixNano())
		if want := at.UTC().Format("2006-01-02T15:04:05.000000000Z"); string(s.text[:]) != want {
			t.Errorf("got %s, want %s", s.text[:], want)
		}
	}
	for range 10000 {
		at := time.Unix(rand.Int64N(4e9), rand.Int64N(1e9)).UTC()
		s.set(at.UnixNano())
		if got, err := time.Parse(time.RFC3339Nano, string(s.text[:])); err != nil || !got.Equal(at) {
			t.Fatalf("got %v, %v, want %v", got, err, at)
		}
	}
}

// reference is the rule, said once more and slowly: lines end with a newline or
// with the stream; above maxLine bytes they are cut.
func reference(in string) string {
	var out strings.Builder
	for in != "" {
		line, rest, ended := strings.Cut(in, "\n")
		for len(line) > maxLine {
			out.WriteString("P " + line[:maxLine] + "\n")
			line = line[maxLine:]
		}
		switch {
		case ended:
			out.WriteString("F " + line + "\n")
		case line != "":
			out.WriteString("P " + line + "\n")
		}
		in = rest
	}
	return out.String()
}

// split sends in through lines in the given pieces, as pump does.
func split(in []byte, cuts []int, room int) string {
	var all, part []byte
	var s stamp
	s.set(1)
	f := &format{out: make([]byte, 0, room)}
	f.prefix.set(&s, "stdout")
	feed := func(b []byte, final bool) {
		for {
			f.out = f.out[:0]
			used, full := f.lines(part, b, final)
			if len(f.out) > 0 {
				part = nil
			}
			all = append(all, f.out...)
			b = b[used:]
			if !full {
				part = append(part, b...)
				return
			}
		}
	}
	for _, n := range cuts {
		n = min(n, len(in))
		feed(in[:n], false)
		in = in[n:]
	}
	feed(in, false)
	feed(nil, true)
	return strings.ReplaceAll(string(all), string(s.text[:])+" stdout ", "")
}

func FuzzLines(f *testing.F) {
	long := bytes.Repeat([]byte("x"), maxLine)
	f.Add([]byte("one\ntwo"), uint64(1))
	f.Add(slices.Concat(long, []byte("\n"), long, []byte("y\n"), long, long), uint64(2))
	f.Add(bytes.Repeat([]byte("\n"), 10000), uint64(3))
	f.Fuzz(func(t *testing.T, in []byte, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 1))
		var cuts []int
		for range r.IntN(20) {
			cuts = append(cuts, r.IntN(40000))
		}
		got := split(in, cuts, maxLine+100+r.IntN(5000))
		if want := reference(string(in)); got != want {
			t.Errorf("in pieces of %v:\ngot  %.300q\nwant %.300q", cuts, got, want)
		}
	})
}

func BenchmarkLines(b *testing.B) {
	in := bytes.Repeat(append(bytes.Repeat([]byte("x"), 99), '\n'), 655)
	var s stamp
	f := &format{out: make([]byte, 0, outSize)}
	f.prefix.set(&s, "stdout")
	b.SetBytes(int64(len(in)))
	for b.Loop() {
		f.out = f.out[:0]
		f.lines(nil, in, false)
	}
}

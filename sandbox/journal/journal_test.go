package journal

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

func TestDamagedRecordCostsItselfOnly(t *testing.T) {
	dir := t.TempDir()
	j, err := Open(dir, 3)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b", "c"} {
		if err := j.Write(name, map[string]string{"name": name}); err != nil {
			t.Fatal(err)
		}
	}
	flip(t, filepath.Join(dir, "b.json"))
	if err := os.WriteFile(filepath.Join(dir, "d.json.new"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	records, damaged, err := j.Load()
	if err != nil {
		t.Fatal(err)
	}
	if len(records) != 2 || len(damaged) != 1 {
		t.Fatalf("got %d records and damage %v, want 2 and one", len(records), damaged)
	}
	if got := string(records[1].Body); got != `{"name":"c"}` || records[1].Version != 3 {
		t.Errorf("got %s version %d", got, records[1].Version)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	if want := 3; len(left) != want { // a, c, b.json.bad
		t.Errorf("files left: %v, want %d", left, want)
	}
}

func TestRewriteAndRemove(t *testing.T) {
	j, err := Open(t.TempDir(), 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []int{1, 2} {
		if err := j.Write("x", v); err != nil {
			t.Fatal(err)
		}
	}
	records, _, err := j.Load()
	if err != nil || len(records) != 1 || string(records[0].Body) != "2" {
		t.Fatalf("got %v, %v, want one record 2", records, err)
	}
	for range 2 { // the second finds nothing and is content
		if err := j.Remove("x"); err != nil {
			t.Fatal(err)
		}
	}
	if records, _, _ := j.Load(); len(records) != 0 {
		t.Errorf("got %v after Remove, want none", records)
	}
}

func flip(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)-2] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestChanges(t *testing.T) {
	dir := t.TempDir()
	j, err := Open(dir, 2)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Append("x", 0); err == nil {
		t.Error("a change of nothing: got no error")
	}
	if err := j.Write("x", 1); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "x.json")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []string{"two", "three"} {
		if err := j.Append("x", v); err != nil {
			t.Fatal(err)
		}
	}
	two, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// The writer may be killed within each byte of the second change.
	begin := len(two) - len("\n+01234567 \"three\"")
	for end := begin; end <= len(two); end++ {
		if err := os.WriteFile(path, two[:end], 0o600); err != nil {
			t.Fatal(err)
		}
		if err := j.Append("x", "four"); err != nil {
			t.Fatal(err)
		}
		want := `["two" "four"]`
		if end == len(two) {
			want = `["two" "three" "four"]`
		}
		records, damaged, err := j.Load()
		if err != nil || len(damaged) > 0 || len(records) != 1 {
			t.Fatalf("cut off at %d: got %v, %v, %v", end, records, damaged, err)
		}
		if r := records[0]; string(r.Body) != "1" || fmt.Sprintf("%s", r.Changes) != want {
			t.Errorf("cut off at %d: got %s and %s, want 1 and %s", end, r.Body, r.Changes, want)
		}
	}
	if err := j.Write("x", 1); err != nil {
		t.Fatal(err)
	}
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, whole) {
		t.Errorf("written anew: got %q, %v, want %q", now, err, whole)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte("cri-runtime 1 83dcefb7\n1\n+f6d16ed4 \"two\""))
	f.Add([]byte("cri-runtime 1 83dcefb7\n1"))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "x")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := read(path)
		if err == nil && !bytes.Contains(data, r.Body) {
			t.Errorf("read %q out of %q", r.Body, data)
		}
	})
}

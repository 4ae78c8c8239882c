package journal

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
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

// What an earlier version took for damage is taken back, unless it is damage or there is
// a newer record of that name.
func TestMovedAsideIsTakenBack(t *testing.T) {
	dir := t.TempDir()
	j, err := Open(dir, 2)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"whole", "damaged", "other", "later"} {
		if err := j.Write(name, name); err != nil {
			t.Fatal(err)
		}
		if err := j.Append(name, "change of "+name); err != nil {
			t.Fatal(err)
		}
	}
	path := func(name string) string { return filepath.Join(dir, name) }
	damaged := bytes.Replace(content(t, path("damaged.json")), []byte(`"damaged"`), []byte(`"damages"`), 1)
	later := bytes.Replace(content(t, path("later.json")), []byte(" 2 "), []byte(" 3 "), 1)
	for name, text := range map[string][]byte{"damaged": damaged, "later": later, "whole": content(t, path("whole.json")), "other": content(t, path("other.json"))} {
		if err := os.WriteFile(path(name+".json.bad"), text, 0o600); err != nil {
			t.Fatal(err)
		}
		if name == "other" {
			continue // it has a record as well
		}
		if err := os.Remove(path(name + ".json")); err != nil {
			t.Fatal(err)
		}
	}
	for _, first := range []bool{true, false} {
		records, errs, err := j.Load()
		if err != nil || len(errs) > 0 || len(records) != 2 {
			t.Fatalf("got %v, %v, %v, want two records", records, errs, err)
		}
		if r := records[0]; r.Name != "other" || r.TakenBack {
			t.Errorf("got %+v, want the record that was not moved", r)
		}
		if r := records[1]; r.Name != "whole" || r.TakenBack != first || string(r.Body) != `"whole"` || fmt.Sprintf("%s", r.Changes) != `["change of whole"]` {
			t.Errorf("got %+v, want what was moved aside, taken back: %v", r, first)
		}
		left, err := filepath.Glob(path("*"))
		if want := []string{path("damaged.json.bad"), path("later.json.bad"), path("other.json"), path("other.json.bad"), path("whole.json")}; err != nil || !slices.Equal(left, want) {
			t.Errorf("left: got %q, %v, want %q", left, err, want)
		}
	}
}

// A format of later is refused as what it is, and stays where it is.
func TestLaterVersionIsNoDamage(t *testing.T) {
	for _, text := range []string{
		"cri-runtime 3 00000000\n{}",             // of a checksum that is made otherwise
		"cri-runtime 3 sha256:e3b0c442 zstd\n()", // of another header
		"cri-runtime 3\n",
	} {
		dir := t.TempDir()
		j, err := Open(dir, 2)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "x.json")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		records, damaged, err := j.Load()
		if err != nil || len(damaged) > 0 || len(records) != 1 || records[0].Version != 3 || records[0].Body != nil {
			t.Errorf("%q: got %v, %v, %v, want a record of version 3", text, records, damaged, err)
		}
		if now := content(t, path); string(now) != text {
			t.Errorf("%q: the file is %q now", text, now)
		}
	}
}

func content(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func FuzzRead(f *testing.F) {
	f.Add([]byte("cri-runtime 1 83dcefb7\n1\n+f6d16ed4 \"two\""))
	f.Add([]byte("cri-runtime 1 83dcefb7\n1"))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "x")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := read(path, 1)
		if err == nil && !bytes.Contains(data, r.Body) {
			t.Errorf("read %q out of %q", r.Body, data)
		}
	})
}

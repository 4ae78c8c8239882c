package journal

import (
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

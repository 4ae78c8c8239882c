package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const recordVersion = 1

// A record is what is needed to take an attachment back. It is written before the
// first plugin runs, without Attachment, and again when the last one answered.
// It is not synced: what a power cut loses belonged to pods that it ended, and the GC
// verb and address files name them as well.
type record struct {
	Version    int             `json:"version"`
	Pod        Pod             `json:"pod"`
	Boot       string          `json:"boot"` // of the kernel that knew the namespace
	Conf       json.RawMessage `json:"conf"`
	Builtin    bool            `json:"builtin,omitempty"` // of the default network
	Attachment *Attachment     `json:"attachment,omitempty"`
}

var errCorrupt = errors.New("corrupt record")

// records is a directory with one file per pod.
type records struct{ dir string }

func (r records) write(rec *record) error {
	rec.Version = recordVersion
	b, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("encode network record of %s: %w", rec.Pod.ID, err)
	}
	return replaceFile(r.dir, rec.Pod.ID+".json", b)
}

// read returns nil when there is no record.
func (r records) read(id string) (*record, error) {
	b, err := os.ReadFile(filepath.Join(r.dir, id+".json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // documented
	}
	if err != nil {
		return nil, fmt.Errorf("read network record: %w", err)
	}
	rec := &record{}
	if err := json.Unmarshal(b, rec); err != nil || rec.Version != recordVersion || rec.Pod.ID != id {
		return nil, fmt.Errorf("network record of %s: %w", id, errCorrupt)
	}
	return rec, nil
}

func (r records) remove(id string) error {
	if err := os.Remove(filepath.Join(r.dir, id+".json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove network record: %w", err)
	}
	return nil
}

// ids lists the pods that have a record.
func (r records) ids() ([]string, error) {
	entries, err := os.ReadDir(r.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list network records: %w", err)
	}
	var ids []string
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), ".json"); ok {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// replaceFile writes a file as a whole or not at all. Callers write one name from one
// place at a time.
func replaceFile(dir, name string, b []byte) error {
	tmp := filepath.Join(dir, "."+name+".new")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
		return fmt.Errorf("replace %s: %w", name, err)
	}
	return nil
}

package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/linux/file"
)

const recordVersion = 1

const temp = ".new" // ends the name of a file that is to be renamed; a dot begins it

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

// records are directories with one file per pod. Pods of the default network have
// theirs where a reboot ends them, and so are their addresses: it ends those pods as well, and
// nobody else knows of them.
type records struct{ lasting, boot string }

// dirs are the directories, the likelier one first.
func (r records) dirs() []string {
	if r.boot == r.lasting {
		return []string{r.boot}
	}
	return []string{r.boot, r.lasting}
}

func (r records) dir(rec *record) string {
	if rec.Builtin {
		return r.boot
	}
	return r.lasting
}

// clean removes what a write that was killed has left. Nobody may be writing.
func (r records) clean() error {
	for _, dir := range r.dirs() {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return fmt.Errorf("list network records: %w", err)
		}
		for _, e := range entries {
			if !strings.HasPrefix(e.Name(), ".") || !strings.HasSuffix(e.Name(), ".json"+temp) {
				continue
			}
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return fmt.Errorf("remove half-written network record: %w", err)
			}
		}
	}
	return nil
}

func (r records) write(rec *record) error {
	rec.Version = recordVersion
	b, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("encode network record of %s: %w", rec.Pod.ID, err)
	}
	return replaceFile(r.dir(rec), rec.Pod.ID+".json", b)
}

// read returns nil when there is no record.
func (r records) read(id string) (*record, error) {
	for _, dir := range r.dirs() {
		b, err := os.ReadFile(filepath.Join(dir, id+".json"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
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
	return nil, nil //nolint:nilnil // documented
}

func (r records) remove(id string) error {
	for _, dir := range r.dirs() {
		if err := os.Remove(filepath.Join(dir, id+".json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove network record: %w", err)
		}
	}
	return nil
}

// ids lists the pods that have a record.
func (r records) ids() (ids []string, err error) {
	for _, dir := range r.dirs() {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("list network records: %w", err)
		}
		for _, e := range entries {
			if id, ok := strings.CutSuffix(e.Name(), ".json"); ok {
				ids = append(ids, id)
			}
		}
	}
	return ids, nil
}

// replaceFile writes a file as a whole or not at all. Callers write one name from one
// place at a time.
func replaceFile(dir, name string, b []byte) error {
	tmp := filepath.Join(dir, "."+name+temp)
	if err := file.Write(tmp, b, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	// Not os.Rename, which looks at the target first.
	if err := unix.Rename(tmp, filepath.Join(dir, name)); err != nil {
		return fmt.Errorf("replace %s: %w", name, err)
	}
	return nil
}

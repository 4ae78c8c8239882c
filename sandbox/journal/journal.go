// Package journal keeps one record per object, so that a daemon killed at any line
// finds every object again.
//
// A record is one file: a version, the object as JSON, and a checksum, written to a
// temporary name and renamed over the old one. On tmpfs, where it lives, that costs a
// few microseconds and survives kill -9 but not a reboot: what must survive a reboot
// belongs to the owner of the image or network state. A corrupt record costs that
// object only. The package starts no goroutine and refuses to interpret records.
package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

const (
	magic  = "cri-runtime"
	suffix = ".json"
	temp   = ".new"
)

// A Journal is one directory of records of one kind. Writers of different names may
// run at once; one name has one writer.
type Journal struct {
	dir     string
	version int
}

// Open makes dir, mode 0700, if it is missing. version is written into each record.
func Open(dir string, version int) (*Journal, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	return &Journal{dir: dir, version: version}, nil
}

// A Record is one object as it was written.
type Record struct {
	Name    string
	Version int
	Body    json.RawMessage
}

// Write replaces the record of name. When it returns nil, a reader sees the new body
// whole, also after the writer was killed.
func (j *Journal) Write(name string, object any) error {
	body, err := json.Marshal(object)
	if err != nil {
		return fmt.Errorf("encode record %s: %w", name, err)
	}
	head := fmt.Sprintf("%s %d %08x\n", magic, j.version, crc32.ChecksumIEEE(body))
	path := j.path(name)
	if err := os.WriteFile(path+temp, append([]byte(head), body...), 0o600); err != nil {
		// On a full file system half a record would hold the space that others need.
		return errors.Join(fmt.Errorf("write record %s: %w", name, err), ignoreMissing(os.Remove(path+temp)))
	}
	if err := os.Rename(path+temp, path); err != nil {
		return fmt.Errorf("commit record %s: %w", name, err)
	}
	return nil
}

// Remove deletes the record of name, if there is one.
func (j *Journal) Remove(name string) error {
	if err := os.Remove(j.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove record %s: %w", name, err)
	}
	return nil
}

// Load reads all records. Damaged ones are left out, moved aside as NAME.bad for a
// person to look at, and told in damaged; half-written temporary files are removed.
func (j *Journal) Load() (records []Record, damaged []error, err error) {
	entries, err := os.ReadDir(j.dir)
	if err != nil {
		return nil, nil, fmt.Errorf("load journal: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(j.dir, e.Name())
		if strings.HasSuffix(e.Name(), temp) {
			if err := os.Remove(path); err != nil {
				damaged = append(damaged, err)
			}
			continue
		}
		name, ok := strings.CutSuffix(e.Name(), suffix)
		if !ok {
			continue
		}
		r, err := read(path)
		if err != nil {
			damaged = append(damaged, fmt.Errorf("record %s: %w", name, err), os.Rename(path, path+".bad"))
			continue
		}
		r.Name = name
		records = append(records, r)
	}
	return records, compact(damaged), nil
}

func compact(errs []error) []error {
	out := errs[:0]
	for _, e := range errs {
		if e != nil {
			out = append(out, e)
		}
	}
	return out
}

func read(path string) (Record, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Record{}, err
	}
	head, body, ok := bytes.Cut(data, []byte{'\n'})
	if !ok {
		return Record{}, fmt.Errorf("no header: %w", errdef.ErrInvalid)
	}
	var word string
	var version int
	var sum uint32
	if n, err := fmt.Sscanf(string(head), "%s %d %x", &word, &version, &sum); n != 3 || err != nil || word != magic {
		return Record{}, fmt.Errorf("header %.40q: %w", head, errdef.ErrInvalid)
	}
	if got := crc32.ChecksumIEEE(body); got != sum {
		return Record{}, fmt.Errorf("checksum %08x, want %08x: %w", got, sum, errdef.ErrInvalid)
	}
	return Record{Version: version, Body: body}, nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (j *Journal) path(name string) string { return filepath.Join(j.dir, name+suffix) }

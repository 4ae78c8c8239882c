// Package journal keeps one record per object, so that a daemon killed at any line
// finds every object again.
//
// A record is one file: a header with a version and a checksum, then the object as JSON
// on one line. It is written to a temporary name and renamed over the old one. What
// changes often is appended as lines of their own, each with its checksum: a line that
// the writer's end cut off is no change. On tmpfs, where it lives, that costs a few
// microseconds and survives kill -9 but not a reboot: what must survive a reboot belongs
// to the owner of the image or network state. A corrupt record costs that object only.
// The package starts no goroutine and refuses to interpret records.
package journal

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/file"
)

const (
	magic  = "cri-runtime"
	suffix = ".json"
	temp   = ".new" // of a file that is to be renamed: see file.Replace
	bad    = ".bad" // of a damaged record that was moved aside
	change = '+'    // begins the line of a change
	// maxSize bounds what is read back. The CRI's messages, which are in it, have at most 16 MiB.
	maxSize = 64 << 20
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

// A Record is one object as it was written. One of a later version than the journal's
// has neither body nor changes: how those are written is that version's business.
type Record struct {
	Name      string
	Version   int
	Body      json.RawMessage
	Changes   []json.RawMessage // since then, in order
	TakenBack bool              // it was moved aside as damaged, and reads whole
}

// Write replaces the record of name. When it returns nil, a reader sees the new body
// whole and no changes, also after the writer was killed.
func (j *Journal) Write(name string, object any) error {
	body, err := json.Marshal(object)
	if err != nil {
		return fmt.Errorf("encode record %s: %w", name, err)
	}
	line := make([]byte, 0, len(body)+len(magic)+32)
	line = fmt.Appendf(line, "%s %d %08x\n", magic, j.version, crc32.ChecksumIEEE(body))
	if err := file.Replace(j.path(name), append(line, body...), 0o600); err != nil {
		return fmt.Errorf("write record %s: %w", name, err)
	}
	return nil
}

// Append adds a change to the record of name, which this version has written. When it
// returns nil, a reader sees it, also after the writer was killed; after an error it may.
func (j *Journal) Append(name string, object any) error {
	body, err := json.Marshal(object)
	if err != nil {
		return fmt.Errorf("encode change of record %s: %w", name, err)
	}
	// The line break comes first: what a full file system left of a change stays apart.
	line := make([]byte, 0, len(body)+16)
	line = fmt.Appendf(line, "\n%c%08x ", change, crc32.ChecksumIEEE(body))
	if err := file.Append(j.path(name), append(line, body...)); err != nil {
		return fmt.Errorf("write change of record %s: %w", name, err)
	}
	return nil
}

// Remove deletes the record of name, if there is one.
func (j *Journal) Remove(name string) error {
	if err := file.Remove(j.path(name)); err != nil {
		return fmt.Errorf("remove record %s: %w", name, err)
	}
	return nil
}

// Load reads all records. Damaged ones are left out, moved aside as NAME.json.bad for a
// person to look at, and told in damaged; half-written temporary files are removed.
// One that was moved aside and reads whole is taken back: an earlier version, to which
// changes in a record were damage, called it so, or a person has put it right.
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
		if name, ok := strings.CutSuffix(e.Name(), suffix+bad); ok {
			r, ok, err := j.takeBack(name)
			if err != nil {
				damaged = append(damaged, err)
			}
			if ok {
				records = append(records, r)
			}
			continue
		}
		name, ok := strings.CutSuffix(e.Name(), suffix)
		if !ok {
			continue
		}
		r, err := read(path, j.version)
		if err != nil {
			damaged = append(damaged, fmt.Errorf("record %s: %w", name, err), os.Rename(path, path+bad))
			continue
		}
		r.Name = name
		records = append(records, r)
	}
	return records, compact(damaged), nil
}

// takeBack gives a record that was moved aside its name again, if it reads whole and no
// other record has that name. One that is still damaged was told of when it was moved.
func (j *Journal) takeBack(name string) (Record, bool, error) {
	path := j.path(name)
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return Record{}, false, nil
	}
	r, err := read(path+bad, j.version)
	if err != nil || r.Version < 1 || r.Version > j.version {
		return Record{}, false, nil //nolint:nilerr // documented
	}
	if err := os.Rename(path+bad, path); err != nil {
		return Record{}, false, fmt.Errorf("take back record %s: %w", name, err)
	}
	r.Name, r.TakenBack = name, true
	return r, true, nil
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

// read looks at the version before all else. Of one later than known it says no more
// than that: a header or checksum of another kind there is no damage.
func read(path string, known int) (Record, error) {
	data, err := file.Read(path, maxSize)
	if err != nil {
		return Record{}, err
	}
	head, rest, ok := bytes.Cut(data, []byte{'\n'})
	if !ok {
		return Record{}, fmt.Errorf("no header: %w", errdef.ErrInvalid)
	}
	var word string
	var version int
	var sum uint32
	n, err := fmt.Sscanf(string(head), "%s %d %x", &word, &version, &sum)
	if n >= 2 && word == magic && version > known {
		return Record{Version: version}, nil
	}
	if n != 3 || err != nil || word != magic {
		return Record{}, fmt.Errorf("header %.40q: %w", head, errdef.ErrInvalid)
	}
	body, rest, _ := bytes.Cut(rest, []byte{'\n'})
	if got := crc32.ChecksumIEEE(body); got != sum {
		return Record{}, fmt.Errorf("checksum %08x, want %08x: %w", got, sum, errdef.ErrInvalid)
	}
	r := Record{Version: version, Body: body}
	for line := range bytes.SplitSeq(rest, []byte{'\n'}) {
		if c, ok := readChange(line); ok {
			r.Changes = append(r.Changes, c)
		}
	}
	return r, nil
}

// readChange takes a line apart. One that is not whole was never told to be written.
func readChange(line []byte) (json.RawMessage, bool) {
	if len(line) < 10 || line[0] != change || line[9] != ' ' {
		return nil, false
	}
	var sum [4]byte
	if _, err := hex.Decode(sum[:], line[1:9]); err != nil {
		return nil, false
	}
	body := line[10:]
	want := uint32(sum[0])<<24 | uint32(sum[1])<<16 | uint32(sum[2])<<8 | uint32(sum[3])
	return body, crc32.ChecksumIEEE(body) == want
}

func (j *Journal) path(name string) string { return filepath.Join(j.dir, name+suffix) }

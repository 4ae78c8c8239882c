package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// maxDepth bounds nesting; a policy has six levels, a payload three.
const maxDepth = 32

// decode reads one JSON document into maps, slices and scalars. encoding/json alone takes
// the last of several equal keys, ignores the case of names and what it does not know:
// each a way for two readers to understand a document differently.
func decode(data []byte) (any, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	v, err := tree(dec, "", 0)
	if err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("something follows the document: %w", errdef.ErrInvalid)
	}
	return v, nil
}

func tree(dec *json.Decoder, path string, depth int) (any, error) {
	t, err := dec.Token()
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("decode: %w: %w", err, errdef.ErrInvalid)
	}
	if depth > maxDepth {
		return nil, fmt.Errorf("%s: nested more than %d deep: %w", path, maxDepth, errdef.ErrInvalid)
	}
	switch t {
	case json.Delim('{'):
		return members(dec, path, depth)
	case json.Delim('['):
		list := []any{}
		for dec.More() {
			v, err := tree(dec, fmt.Sprintf("%s[%d]", path, len(list)), depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		return list, closing(dec)
	}
	return t, nil
}

func members(dec *json.Decoder, path string, depth int) (any, error) {
	m := map[string]any{}
	for dec.More() {
		t, err := dec.Token()
		key, ok := t.(string)
		if err != nil || !ok {
			return nil, fmt.Errorf("decode: %w: %w", err, errdef.ErrInvalid)
		}
		at := join(path, key)
		if _, twice := m[key]; twice {
			return nil, fmt.Errorf("%s: is there twice: %w", at, errdef.ErrInvalid)
		}
		if m[key], err = tree(dec, at, depth+1); err != nil {
			return nil, err
		}
	}
	return m, closing(dec)
}

func closing(dec *json.Decoder) error {
	if _, err := dec.Token(); err != nil {
		return fmt.Errorf("decode: %w: %w", err, errdef.ErrInvalid)
	}
	return nil
}

// join writes the way to a member as people do: names bare, everything else quoted.
func join(path, key string) string {
	for _, c := range key {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '-' {
			return fmt.Sprintf("%s[%.300q]", path, key)
		}
	}
	if path == "" || key == "" {
		return path + key
	}
	return path + "." + key
}

// fields are the members of one object. Each one that is read is ticked off; what is
// left at the end is unknown.
type fields struct {
	path string
	m    map[string]any
	errs []error
}

// object wants v to be an object.
func object(path string, v any) *fields {
	f := &fields{path: path}
	m, ok := v.(map[string]any)
	if !ok {
		f.wrong(path, "want an object")
		return f
	}
	f.m = maps.Clone(m)
	return f
}

func (f *fields) wrong(path, why string) {
	if path == "" {
		path = "the document"
	}
	f.errs = append(f.errs, fmt.Errorf("%s: %s: %w", path, why, errdef.ErrInvalid))
}

func (f *fields) at(name string) string { return join(f.path, name) }

// take gives a member and ticks it off.
func (f *fields) take(name string) (any, bool) {
	v, ok := f.m[name]
	delete(f.m, name)
	return v, ok
}

// text gives a member that is a string, not an empty one; "" when there is none.
func (f *fields) text(name string) string {
	v, ok := f.take(name)
	if !ok {
		return ""
	}
	s, ok := v.(string)
	if !ok || s == "" {
		f.wrong(f.at(name), "want a string that is not empty")
	}
	return s
}

// need is text that must be there.
func (f *fields) need(name string) string {
	if _, ok := f.m[name]; !ok && f.m != nil {
		f.wrong(f.at(name), "is missing")
	}
	return f.text(name)
}

// texts gives a member that is a list of strings.
func (f *fields) texts(name string) []string {
	v, ok := f.take(name)
	if !ok {
		return nil
	}
	list, ok := v.([]any)
	if !ok || len(list) == 0 {
		f.wrong(f.at(name), "want a list that is not empty")
	}
	var all []string
	for i, e := range list {
		s, ok := e.(string)
		if !ok || s == "" {
			f.wrong(fmt.Sprintf("%s[%d]", f.at(name), i), "want a string that is not empty")
		}
		all = append(all, s)
	}
	return all
}

// refuse names members that others know and we do not obey.
func (f *fields) refuse(why string, names ...string) {
	for _, name := range names {
		if _, ok := f.take(name); ok {
			f.wrong(f.at(name), why)
		}
	}
}

// done gives all that was wrong, unknown members included.
func (f *fields) done() error {
	for _, name := range slices.Sorted(maps.Keys(f.m)) {
		f.wrong(f.at(name), "is not known here")
	}
	return errors.Join(f.errs...)
}

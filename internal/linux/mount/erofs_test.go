package mount

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

// smallest is an index with an empty root directory, and with devices data files.
func smallest(devices uint16) []byte {
	img := make([]byte, 4096)
	const super, slot, root = 1024, 1024 + 128, 1024 + 256
	le := binary.LittleEndian
	le.PutUint32(img[super:], 0xE0F5E1E2) // magic
	img[super+12] = 12                    // block size 2^12
	le.PutUint16(img[super+14:], root/32) // node number of the root
	le.PutUint64(img[super+16:], 1)       // inodes
	le.PutUint32(img[super+36:], 1)       // blocks
	le.PutUint32(img[super+80:], 8)       // there is a device table
	le.PutUint16(img[super+86:], devices)
	le.PutUint16(img[super+88:], slot/128)
	le.PutUint16(img[root+4:], 0o40755)
	le.PutUint16(img[root+6:], 2)  // links
	le.PutUint32(img[root+20:], 1) // inode number
	return img
}

func TestEROFS(t *testing.T) {
	testkit.Need(t, testkit.Root, testkit.EROFS, testkit.Kernel(6, 12))
	testkit.Leaks(t)
	for name, c := range map[string]struct {
		img  []byte
		want string // in the error
	}{
		"index and data": {smallest(1), ""},
		"no data wanted": {smallest(0), "create erofs"},
		"no index":       {make([]byte, 4096), "create erofs"},
	} {
		t.Run(name, func(t *testing.T) {
			// The names are longer than an option of fsconfig may be.
			dir := filepath.Join(t.TempDir(), strings.Repeat("x", 200), strings.Repeat("y", 200))
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			index, data := open(t, dir+"/index", c.img), open(t, dir+"/data", nil)
			f, err := EROFS(index, data)
			if err == nil {
				defer f.Close()
			}
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "/index with data ")) {
				t.Fatalf("got %v, want an error with %q", err, c.want)
			}
			if err != nil {
				return
			}
			// It stays when the files are closed and gone.
			index.Close()
			data.Close()
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			root, err := OpenInRoot(f, ".", os.O_RDONLY)
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			if names, err := root.Readdirnames(-1); err != nil || len(names) != 0 {
				t.Errorf("root: got %q, %v, want nothing", names, err)
			}
		})
	}
}

func open(t *testing.T, name string, content []byte) *os.File {
	t.Helper()
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

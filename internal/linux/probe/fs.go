package probe

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/linux/mount"
)

// overlay makes a writable overlay of two layers.
func overlay(tmp string, way mount.Way, userns *os.File) error {
	dir, err := os.MkdirTemp(tmp, "overlay-")
	if err != nil {
		return err
	}
	for _, name := range []string{"a", "b", "upper", "work"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			return err
		}
	}
	f, err := mount.Overlay{
		Lower: []string{filepath.Join(dir, "a"), filepath.Join(dir, "b")},
		Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work"),
		IDMap: userns, Way: way,
		// Else the end of each one writes back the whole filesystem of the upper.
		Options: []string{"volatile"},
	}.Mount()
	if err != nil {
		return err
	}
	return f.Close()
}

func idmap(tmp string, userns *os.File) error {
	f, err := mount.Clone(tmp, false)
	if err != nil {
		return err
	}
	return errors.Join(mount.SetAttr(f, false, mount.Attr{IDMap: userns}), f.Close())
}

func recursiveReadOnly(tmp string) error {
	f, err := mount.Clone(tmp, true)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := mount.SetAttr(f, true, mount.Attr{ReadOnly: true}); err != nil {
		return err
	}
	g, err := mount.OpenInRoot(f, "x", os.O_CREATE|os.O_WRONLY)
	if err == nil {
		return errors.Join(errors.New("a read-only mount can be written to"), g.Close())
	}
	if !errors.Is(err, unix.EROFS) {
		return err
	}
	return nil
}

// erofs mounts the smallest image there is: one block with a superblock and an
// empty root directory.
func erofs(tmp string) error {
	img := make([]byte, 4096)
	const super, root = 1024, 1024 + 128
	le := binary.LittleEndian
	le.PutUint32(img[super:], 0xE0F5E1E2) // magic
	img[super+12] = 12                    // block size 2^12
	le.PutUint16(img[super+14:], root/32) // node number of the root
	le.PutUint64(img[super+16:], 1)       // inodes
	le.PutUint32(img[super+36:], 1)       // blocks
	le.PutUint16(img[root+4:], unix.S_IFDIR|0o755)
	le.PutUint16(img[root+6:], 2)  // links
	le.PutUint32(img[root+20:], 1) // inode number
	name := filepath.Join(tmp, "image.erofs")
	if err := os.WriteFile(name, img, 0o600); err != nil {
		return err
	}
	f, err := mount.New("erofs", name, nil, mount.Attr{ReadOnly: true})
	if err != nil {
		return err
	}
	return f.Close()
}

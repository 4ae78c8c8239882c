package snapshot

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// topDir is FS_TOPDIR_FL, chattr +T; x/sys has no name for it.
const topDir = 0x00020000

// spread asks ext4 to put each layer's tree into another part of the disk, as it does
// with the directories of a file system's root. Else a new layer lands where another was
// just deleted, and for each of its files the inode allocator walks past all inodes that
// were freed within the last minutes (recently_deleted in fs/ext4/ialloc.c). After the
// removal of an image, a pull of 20,000 files took 7 to 8 s, and 1.4 to 2.8 so. The same
// goes for writable layers: overlay makes and deletes seven inodes with each of them.
func spread(ctx context.Context, dir string) {
	f, err := os.Open(dir)
	if err == nil {
		defer f.Close()
		var flags uint32
		if flags, err = unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS); err == nil && flags&topDir == 0 {
			err = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(flags|topDir))
		}
	}
	if err != nil && !errors.Is(err, unix.ENOTTY) && !errors.Is(err, unix.EOPNOTSUPP) {
		// Other file systems know no such flag; nothing but speed depends on it.
		klog.FromContext(ctx).V(2).Info("Files are not spread over the disk", "directory", dir, "cause", err)
	}
}

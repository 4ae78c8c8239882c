// Package erofs writes EROFS images that describe a file tree whose data lie in another
// file: the uncompressed tar of a layer. The kernel mounts both together.
//
// It writes only: what the format cannot hold is refused, and no tree makes it write what
// the kernel would take for damaged. It mounts nothing, starts no goroutine and leaves
// nothing behind. Nothing in the kernel may be relied on to survive a malformed image,
// so one that comes from elsewhere is never to be mounted. Nor is an index without its data
// file: Linux 6.18 then reads the index in its place.
package erofs

// Node is one inode. A hard link is the same Node under several names.
type Node struct {
	Mode  uint32 // type and permission bits as in stat(2)
	UID   uint32
	GID   uint32
	Rdev  uint64 // of devices, as in stat(2); 0 in a character device is overlay's whiteout
	Sec   int64  // modification time
	Nsec  uint32
	Size  int64 // of regular files
	Xattr []Xattr

	Extents  []Extent         // of regular files, by Start; what none covers reads as zeros
	Target   string           // of symbolic links
	Children map[string]*Node // of directories
}

// Xattr is an extended attribute with its full name, such as security.capability.
type Xattr struct {
	Name  string
	Value []byte
}

// Extent says where a piece of a file lies in the data file. All but the length of a
// file's last extent are multiples of the block size.
type Extent struct {
	Start  int64 // within the file
	Offset int64 // within the data file
	Len    int64
}

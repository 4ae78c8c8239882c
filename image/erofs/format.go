package erofs

// The on-disk format, as fs/erofs/erofs_fs.h of Linux defines it. All numbers are little
// endian. Only what every kernel that mounts EROFS from files (6.12) reads is used.
const (
	superOffset = 1024 // of the superblock
	superSize   = 128
	superMagic  = 0xE0F5E1E2
	// The device table follows at once; its place is told in units of a slot.
	slotOffset = superOffset + superSize
	slotSize   = 128

	compatChecksum = 0x1 // of the superblock's block, CRC-32C
	compatMtime    = 0x2 // inodes hold modification times, not change times

	incompatChunked     = 0x4
	incompatDeviceTable = 0x8

	nodeUnit  = 32 // inodes lie at multiples of it, which are their numbers
	inodeSize = 64 // of the extended form, the one with times

	extended = 1 // bit 0 of i_format; the layout is in bits 1 to 3

	flatPlain  = 0 // blocks in a row
	flatInline = 2 // the same, but what remains of the last block follows the inode
	chunkBased = 4 // an array of equal chunks, each with its place

	chunkIndexes  = 0x20 // i_format of chunks: 8 byte indexes; below it log2 of blocks per chunk
	maxChunkShift = 0x1f
	chunkSize     = 8 // of an index
	nullBlock     = 0xFFFFFFFF

	xattrHeader   = 12
	xattrEntry    = 4
	maxXattrSize  = xattrHeader + (0xFFFF-1)*4 // i_xattr_icount has 16 bits
	maxXattrName  = 255                        // behind the prefix
	maxXattrValue = 0xFFFF
	maxXattrList  = 65536 // XATTR_LIST_MAX: listxattr gives up beyond it

	direntSize = 12
	maxName    = 255
	maxTarget  = 4095 // PATH_MAX without the zero

	// maxFile keeps the kernel's rounding up of sizes away from overflow.
	maxFile = 1 << 56
)

// prefixes of extended attributes, of which the format stores the index only.
var prefixes = []struct {
	index uint8
	name  string
	whole bool // it is the whole name
}{
	{1, "user.", false},
	{2, "system.posix_acl_access", true},
	{3, "system.posix_acl_default", true},
	{4, "trusted.", false},
	{6, "security.", false},
}

// fileType is the d_type that a directory has for a mode: FT_REG_FILE and so on.
func fileType(mode uint32) uint8 {
	switch mode & typeMask {
	case typeFile:
		return 1
	case typeDir:
		return 2
	case typeChar:
		return 3
	case typeBlock:
		return 4
	case typeFifo:
		return 5
	case typeSocket:
		return 6
	case typeLink:
		return 7
	}
	return 0
}

// The types of stat(2), the same on every architecture.
const (
	typeMask   = 0o170000
	typeSocket = 0o140000
	typeLink   = 0o120000
	typeFile   = 0o100000
	typeBlock  = 0o060000
	typeDir    = 0o040000
	typeChar   = 0o020000
	typeFifo   = 0o010000
)

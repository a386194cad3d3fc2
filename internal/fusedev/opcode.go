package fusedev

import "fmt"

// Opcode is an operation of the FUSE protocol (include/uapi/linux/fuse.h).
type Opcode uint32

// The operations that are told from the others somewhere.
const (
	OpLookup      Opcode = 1
	OpForget      Opcode = 2
	OpGetattr     Opcode = 3
	OpOpen        Opcode = 14
	OpRead        Opcode = 15
	OpWrite       Opcode = 16
	OpRelease     Opcode = 18
	OpFlush       Opcode = 25
	OpInit        Opcode = 26
	OpSetlk       Opcode = 32
	OpSetlkw      Opcode = 33
	OpInterrupt   Opcode = 36
	OpDestroy     Opcode = 38
	OpBatchForget Opcode = 42
)

var opNames = map[Opcode]string{
	OpLookup: "LOOKUP", OpForget: "FORGET", OpGetattr: "GETATTR", 4: "SETATTR",
	5: "READLINK", 6: "SYMLINK", 8: "MKNOD", 9: "MKDIR", 10: "UNLINK",
	11: "RMDIR", 12: "RENAME", 13: "LINK", OpOpen: "OPEN", OpRead: "READ",
	OpWrite: "WRITE", 17: "STATFS", OpRelease: "RELEASE", 20: "FSYNC",
	21: "SETXATTR", 22: "GETXATTR", 23: "LISTXATTR", 24: "REMOVEXATTR",
	OpFlush: "FLUSH", OpInit: "INIT", 27: "OPENDIR", 28: "READDIR",
	29: "RELEASEDIR", 30: "FSYNCDIR", 31: "GETLK", OpSetlk: "SETLK",
	OpSetlkw: "SETLKW", 34: "ACCESS", 35: "CREATE", OpInterrupt: "INTERRUPT",
	37: "BMAP", OpDestroy: "DESTROY", 39: "IOCTL", 40: "POLL",
	41: "NOTIFY_REPLY", OpBatchForget: "BATCH_FORGET", 43: "FALLOCATE",
	44: "READDIRPLUS", 45: "RENAME2", 46: "LSEEK", 47: "COPY_FILE_RANGE",
	48: "SETUPMAPPING", 49: "REMOVEMAPPING", 50: "SYNCFS", 51: "TMPFILE",
	52: "STATX", 53: "COPY_FILE_RANGE_64",
}

// String is the operation's name in the kernel's header, without FUSE_.
func (o Opcode) String() string {
	if s, ok := opNames[o]; ok {
		return s
	}
	return fmt.Sprintf("OPCODE_%d", uint32(o))
}

// nameOffset is, for the operations whose argument ends in a name, how many
// bytes stand between the header and the name.
var nameOffset = map[Opcode]int{
	OpLookup: 0,
	6:        0,  // SYMLINK: the new name, then where it points
	8:        16, // MKNOD: fuse_mknod_in
	9:        8,  // MKDIR: fuse_mkdir_in
	10:       0,  // UNLINK
	11:       0,  // RMDIR
	12:       8,  // RENAME: fuse_rename_in
	13:       8,  // LINK: fuse_link_in
	35:       16, // CREATE: fuse_create_in
	45:       16, // RENAME2: fuse_rename2_in
}

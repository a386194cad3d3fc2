package fusestate

// known are the FUSE_… flags of INIT whose effect the kernel keeps, and so
// those that a [Conn] may have.
const known = 1<<0 | // ASYNC_READ
	1<<1 | // POSIX_LOCKS
	1<<3 | // ATOMIC_O_TRUNC
	1<<4 | // EXPORT_SUPPORT
	1<<5 | // BIG_WRITES
	1<<6 | // DONT_MASK
	1<<10 | // FLOCK_LOCKS
	1<<12 | // AUTO_INVAL_DATA
	1<<13 | // DO_READDIRPLUS
	1<<14 | // READDIRPLUS_AUTO
	1<<15 | // ASYNC_DIO
	1<<16 | // WRITEBACK_CACHE
	1<<18 | // PARALLEL_DIROPS
	1<<19 | // HANDLE_KILLPRIV
	1<<20 | // POSIX_ACL
	1<<21 | // ABORT_ERROR
	1<<22 | // MAX_PAGES
	1<<23 | // CACHE_SYMLINKS
	1<<25 | // EXPLICIT_INVAL_DATA
	1<<27 | // SUBMOUNTS
	1<<28 | // HANDLE_KILLPRIV_V2
	1<<29 | // SETXATTR_EXT
	1<<32 | // SECURITY_CTX
	1<<33 | // HAS_INODE_DAX
	1<<34 | // CREATE_SUPP_GROUP
	1<<36 | // DIRECT_IO_ALLOW_MMAP
	1<<37 | // PASSTHROUGH
	1<<40 | // ALLOW_IDMAP
	1<<41 // OVER_IO_URING

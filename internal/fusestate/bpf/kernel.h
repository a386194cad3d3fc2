/*
 * What of the kernel's types the programs use, and nothing more. Members are
 * found by name in the running kernel's BTF when the programs are loaded
 * (CO-RE), so neither their order nor what is left out matters. A member that
 * some kernels lack is read only where EXISTS says so.
 */
#ifndef FUSESTATE_KERNEL_H
#define FUSESTATE_KERNEL_H

typedef signed char s8;
typedef unsigned char u8;
typedef unsigned short u16;
typedef int s32;
typedef unsigned int u32;
typedef long long s64;
typedef unsigned long long u64;

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
/* GLOBAL functions the verifier looks at once, whatever they are called with, and not
 * at each call. */
#define GLOBAL __attribute__((noinline))
#define KFUNC __attribute__((section(".ksyms")))
#define NULL ((void *)0)

/* include/uapi/linux/bpf.h */
#define BPF_MAP_TYPE_HASH 1
#define BPF_MAP_TYPE_PERCPU_ARRAY 6
#define BPF_ANY 0
#define BPF_F_NO_PREALLOC 1
static u64 (*bpf_get_current_pid_tgid)(void) = (void *)14;
static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*bpf_map_update_elem)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static long (*bpf_probe_read_kernel)(void *to, u32 size, const void *from) = (void *)113;
struct seq_file;
static long (*bpf_seq_write)(struct seq_file *m, const void *data, u32 len) = (void *)127;

/* enum bpf_field_info_kind, as clang and the loader agree on it. */
enum { FIELD_BYTE_OFFSET, FIELD_BYTE_SIZE, FIELD_EXISTS, FIELD_SIGNED, FIELD_LSHIFT_U64, FIELD_RSHIFT_U64 };

#define EXISTS(p, field) __builtin_preserve_field_info((p)->field, FIELD_EXISTS)
#define OFFSET(type, field) __builtin_preserve_field_info(((type *)0)->field, FIELD_BYTE_OFFSET)

/* READ reads a member through a pointer that the verifier knows nothing of. */
#define READ(to, p, field) \
	bpf_probe_read_kernel(&(to), sizeof(to), __builtin_preserve_access_index(&(p)->field))

/* GET is the same as a value. Pointers are read by it also where they could be
 * loaded: of each load of one through a pointer that it knows, the verifier
 * finds out whether it may be trusted, by names that it looks for in all types of
 * the kernel, one after the other (kernel/bpf/verifier.c, check_ptr_to_btf_access;
 * kernel/bpf/btf.c, btf_nested_type_is_trusted). That was most of the time that
 * loading took. */
#define GET(p, field) ({ \
	typeof((p)->field) v_ = 0; \
	READ(v_, p, field); \
	v_; })

/* BITS reads a bit field, or a whole unsigned member, 0 where there is none. */
#define BITS(p, field) ({ \
	u64 v_ = 0; \
	if (EXISTS(p, field)) { \
		const void *at_ = (const void *)(p) + __builtin_preserve_field_info((p)->field, FIELD_BYTE_OFFSET); \
		bpf_probe_read_kernel(&v_, __builtin_preserve_field_info((p)->field, FIELD_BYTE_SIZE), at_); \
		v_ <<= __builtin_preserve_field_info((p)->field, FIELD_LSHIFT_U64); \
		v_ >>= __builtin_preserve_field_info((p)->field, FIELD_RSHIFT_U64); \
	} \
	v_; })

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct list_head {
	struct list_head *next;
};

struct backing_dev_info {
	unsigned long ra_pages;
};

struct user_namespace;

struct super_block {
	u32 s_dev;
	unsigned long s_magic;
	unsigned long s_blocksize;
	unsigned long s_iflags;
	void *s_fs_info;
	struct backing_dev_info *s_bdi;
	u32 s_time_gran;
};

struct file_lock_context {
	struct list_head flc_flock, flc_posix, flc_lease;
};

struct xarray {
	u32 xa_flags;
};

struct address_space {
	struct xarray i_pages;
};

struct inode {
	u16 i_mode;
	u32 i_rdev;
	u32 i_generation;
	u32 i_nlink;
	unsigned long i_ino;
	s64 i_size;
	struct super_block *i_sb;
	struct file_lock_context *i_flctx;
	struct address_space i_data;
};

struct qstr {
	u64 hash_len;
};

struct hlist_bl_node {
	struct hlist_bl_node **pprev;
};

struct dentry {
	struct inode *d_inode;
	struct dentry *d_parent;
	struct qstr d_name;
	struct hlist_bl_node d_hash;
};

struct vfsmount {
	int mnt_flags;
};

struct mount {
	struct vfsmount mnt;
	int mnt_id;
};

struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
};

struct file {
	u32 f_mode;
	u32 f_flags;
	s64 f_pos;
	struct inode *f_inode;
	struct path f_path;
	void *private_data;
};

struct fs_struct {
	struct path root, pwd;
};

struct mm_struct {
	struct file *exe_file;
	int map_count;
};

struct fdtable {
	unsigned long *close_on_exec;
};

struct files_struct {
	struct fdtable *fdt;
};

struct task_struct {
	int pid, tgid;
	struct task_struct *group_leader;
	struct mm_struct *mm;
	struct fs_struct *fs;
	struct files_struct *files;
};

struct vm_area_struct {
	unsigned long vm_start, vm_end, vm_pgoff, vm_flags;
	struct file *vm_file;
};

/* fs/fuse/fuse_i.h. The pointers to these are never followed directly. */

struct fuse_conn;

struct fuse_mount {
	struct fuse_conn *fc;
	struct super_block *sb;
	struct list_head fc_entry;
};

struct rb_node;

struct rb_root {
	struct rb_node *rb_node;
};

struct fuse_inode {
	struct inode inode;
	u64 nodeid, nlookup, orig_ino;
	struct rb_root writepages;
};

struct fuse_file {
	u64 fh;
	u32 open_flags;
};

struct fuse_dev {
	struct fuse_conn *fc;
};

typedef struct { u32 val; } kuid_t;
typedef struct { u32 val; } kgid_t;
typedef struct { int counter; } atomic_t;

struct fuse_conn {
	kuid_t user_id;
	kgid_t group_id;
	u32 max_read, max_write, max_pages;
	u32 max_background, congestion_threshold;
	int initialized;
	u32 connected;
	unsigned conn_error:1;
	unsigned async_read:1, abort_err:1, atomic_o_trunc:1, export_support:1,
		writeback_cache:1, parallel_dirops:1, handle_killpriv:1,
		cache_symlinks:1, handle_killpriv_v2:1, setxattr_ext:1, big_writes:1,
		dont_mask:1, auto_inval_data:1, explicit_inval_data:1,
		do_readdirplus:1, readdirplus_auto:1, async_dio:1, posix_acl:1,
		default_permissions:1, allow_other:1, auto_submounts:1,
		init_security:1, create_supp_group:1, inode_dax:1,
		direct_io_allow_mmap:1, direct_io_relax:1, passthrough:1;
	unsigned no_lock:1, no_flock:1;
	unsigned no_open:1, no_opendir:1, no_fsync:1, no_fsyncdir:1, no_flush:1,
		no_setxattr:1, no_getxattr:1, no_listxattr:1, no_removexattr:1,
		no_access:1, no_create:1, no_interrupt:1, no_bmap:1, no_poll:1,
		no_fallocate:1, no_rename2:1, no_lseek:1, no_copy_file_range:1,
		no_copy_file_range_64:1, sync_fs:1, no_tmpfile:1, no_statx:1, no_link:1;
	unsigned use_pages_for_kvec_io:1;
	u32 io_uring;
	int max_stack_depth;
	atomic_t num_waiting;
	u32 minor;
	u32 dev;
	struct list_head mounts;
};

/* What an iterator's program is given: kernel/bpf/task_iter.c. */

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
};

struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	u32 fd;
	struct file *file;
};

struct bpf_iter__task_vma {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	struct vm_area_struct *vma;
};

#pragma clang attribute pop

/* kernel/bpf/task_iter.c, since 6.7. */
struct bpf_iter_task_vma {
	u64 __opaque[1];
} __attribute__((aligned(8)));

extern int bpf_iter_task_vma_new(struct bpf_iter_task_vma *it, struct task_struct *task, u64 addr) KFUNC;
extern struct vm_area_struct *bpf_iter_task_vma_next(struct bpf_iter_task_vma *it) KFUNC;
extern void bpf_iter_task_vma_destroy(struct bpf_iter_task_vma *it) KFUNC;

#endif

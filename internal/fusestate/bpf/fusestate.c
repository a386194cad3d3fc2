/*
 * Iterators over all tasks that write a record for each thing on a FUSE file
 * system: open files, open /dev/fuse, mappings, directories of tasks. Each
 * program looks first whether an object is on FUSE at all, since nearly none
 * is, and fills a record only then.
 *
 * The lay-out of the records is parsed in record.go.
 */
#include "kernel.h"

char its_license[] SEC("license") = "Dual MIT/GPL";

#define FUSE_SUPER_MAGIC 0x65735546 /* include/uapi/linux/magic.h */
#define FUSE_DEVICE (10 << 20 | 229) /* misc major, include/linux/miscdevice.h FUSE_MINOR */
#define FMODE_PATH 0x4000 /* include/linux/fs.h */
#define SB_I_NOIDMAP 0x2000 /* include/linux/fs.h */
#define S_IFMT 0170000
#define S_IFREG 0100000
#define S_IFDIR 0040000
#define S_IFCHR 0020000
#define S_IFSOCK 0140000
#define EBUSY 16

enum { FILE_RECORD = 1, DEVICE_RECORD, MAPPING_RECORD, PLACE_RECORD, BUSY_RECORD, MORE_RECORD };
enum { PLACE_CWD, PLACE_ROOT, PLACE_EXE };

struct node {
	u64 inode, conn;
	u64 nodeid, nlookup, ino, orig_ino;
	s64 size;
	u32 dev, generation, nlink, mode;
	u32 locked, unwritten;
};

struct open {
	u64 file;
	u64 fh;
	u64 name;
	s64 pos;
	u32 flags, mode, open_flags;
	s32 mount;
	u32 has_fh, pad;
};

struct file_record {
	u32 kind, len;
	s32 tid, tgid;
	u64 table;
	u32 fd, close_on_exec;
	struct node node;
	struct open open;
};

struct device_record {
	u32 kind, len;
	s32 tid, tgid;
	u64 table, file, conn;
	u32 fd, flags;
	u32 dev, pad;
};

struct mapping_record {
	u32 kind, len;
	s32 tid, tgid;
	u64 mm, start, end, pgoff, flags;
	struct node node;
	struct open open;
};

struct place_record {
	u32 kind, len;
	s32 tid, tgid;
	u64 holder; /* fs_struct or mm_struct */
	u64 name;
	u32 place;
	s32 mount;
	struct node node;
};

/* A task whose mappings could not be looked at, or not all. */
struct task_record {
	u32 kind, len;
	s32 tid, tgid;
	u64 mm, next;
	u32 seen, pad;
};

struct conn_value {
	u64 conn;
	u64 init_flags, unsupported;
	u64 waiting;
	u64 readahead_pages, blocksize;
	u32 dev, minor;
	u32 max_write, max_read, max_pages;
	u32 max_background, congestion_threshold;
	u32 time_gran;
	u32 max_stack_depth;
	u32 user_id, group_id;
	u32 connected, initialized, conn_error;
	u32 allow_other, default_permissions;
	u32 superblock, pad;
};

/* So that the types are in the object's BTF, for record_test.go. */
const struct file_record *file_record_ __attribute__((unused));
const struct device_record *device_record_ __attribute__((unused));
const struct mapping_record *mapping_record_ __attribute__((unused));
const struct place_record *place_record_ __attribute__((unused));
const struct task_record *task_record_ __attribute__((unused));

struct {
	int (*type)[BPF_MAP_TYPE_HASH];
	int (*max_entries)[4096];
	u64 *key;
	struct conn_value *value;
} conns SEC(".maps");

struct {
	int (*type)[BPF_MAP_TYPE_PERCPU_ARRAY];
	int (*max_entries)[1];
	u32 *key;
	struct conn_value *value;
} scratch SEC(".maps");

/* A mapping's record has no room on the stack of the programs that write it. */
struct {
	int (*type)[BPF_MAP_TYPE_PERCPU_ARRAY];
	int (*max_entries)[1];
	u32 *key;
	struct mapping_record *value;
} room SEC(".maps");

/* What else processes that the reader put there have open. */
struct others_value {
	u64 count, mix;
};

struct {
	int (*type)[BPF_MAP_TYPE_HASH];
	int (*max_entries)[65536];
	int (*map_flags)[BPF_F_NO_PREALLOC];
	u32 *key;
	struct others_value *value;
} others SEC(".maps");

/* The device of files that are no files (fs/anon_inodes.c). */
volatile u32 anonymous_device;

/* Set before a run: of which task, if not of all, and from which address, how
 * many mappings lying below that. */
volatile s32 only_tid;
volatile u64 from_address;
volatile u32 from_count;
/* Whether only the processes in others are looked at. */
volatile u32 only_others;
/* Whether files of the reader itself are passed over. */
volatile u32 not_own;
/* How many mappings of a task have been seen. */
volatile u32 seen;
/* How many records one task may still have in this call of the program: what
 * it writes must fit the 8 pages that a seq_file of an iterator has
 * (kernel/bpf/bpf_iter.c bpf_seq_read), or is thrown away. */
volatile u32 left;
#define RECORDS_OF_A_TASK 128

#define FLAG(bit, field) (BITS(fc, field) << (bit))

/* init_flags gives what process_init_reply (fs/fuse/inode.c) made of the
 * daemon's flags back as those flags. */
INLINE u64 init_flags(struct fuse_conn *fc)
{
	u64 flags = 0;

	flags |= FLAG(0, async_read);
	flags |= (BITS(fc, no_lock) ^ 1) << 1;
	flags |= FLAG(3, atomic_o_trunc);
	flags |= FLAG(4, export_support);
	flags |= FLAG(5, big_writes);
	flags |= FLAG(6, dont_mask);
	flags |= (BITS(fc, no_flock) ^ 1) << 10;
	flags |= FLAG(12, auto_inval_data);
	flags |= FLAG(13, do_readdirplus);
	flags |= FLAG(14, readdirplus_auto);
	flags |= FLAG(15, async_dio);
	flags |= FLAG(16, writeback_cache);
	flags |= FLAG(18, parallel_dirops);
	flags |= FLAG(19, handle_killpriv);
	flags |= FLAG(20, posix_acl);
	flags |= FLAG(21, abort_err);
	flags |= FLAG(23, cache_symlinks);
	flags |= FLAG(25, explicit_inval_data);
	flags |= FLAG(27, auto_submounts);
	flags |= FLAG(28, handle_killpriv_v2);
	flags |= FLAG(29, setxattr_ext);
	flags |= FLAG(32, init_security);
	flags |= FLAG(33, inode_dax);
	flags |= FLAG(34, create_supp_group);
	flags |= FLAG(36, direct_io_allow_mmap);
	flags |= FLAG(36, direct_io_relax); /* its name in 6.6 */
	flags |= FLAG(37, passthrough);
	if (BITS(fc, io_uring))
		flags |= 1ULL << 41;
	return flags;
}

/* unsupported has a bit per opcode that the daemon has answered with ENOSYS. */
INLINE u64 unsupported(struct fuse_conn *fc)
{
	u64 ops = 0;

	ops |= FLAG(13, no_link);
	ops |= FLAG(14, no_open);
	ops |= FLAG(20, no_fsync);
	ops |= FLAG(21, no_setxattr);
	ops |= FLAG(22, no_getxattr);
	ops |= FLAG(23, no_listxattr);
	ops |= FLAG(24, no_removexattr);
	ops |= FLAG(25, no_flush);
	ops |= FLAG(27, no_opendir);
	ops |= FLAG(30, no_fsyncdir);
	ops |= FLAG(34, no_access);
	ops |= FLAG(35, no_create);
	ops |= FLAG(36, no_interrupt);
	ops |= FLAG(37, no_bmap);
	ops |= FLAG(40, no_poll);
	ops |= FLAG(43, no_fallocate);
	ops |= FLAG(45, no_rename2);
	ops |= FLAG(46, no_lseek);
	ops |= FLAG(47, no_copy_file_range);
	ops |= FLAG(51, no_tmpfile);
	ops |= FLAG(52, no_statx);
	ops |= FLAG(53, no_copy_file_range_64);
	return ops;
}

/* superblock returns the first superblock of a connection: the others are
 * its submounts (FUSE_SUBMOUNTS). */
INLINE struct super_block *superblock(struct fuse_conn *fc)
{
	struct list_head *next = NULL;
	struct super_block *sb = NULL;
	struct fuse_mount *fm;

	READ(next, fc, mounts.next);
	if (!next || next == (void *)fc + OFFSET(struct fuse_conn, mounts))
		return NULL;
	fm = (void *)next - OFFSET(struct fuse_mount, fc_entry);
	READ(sb, fm, sb);
	return sb;
}

/* number is the address of an object, which the verifier takes for a pointer to it as
 * long as it sees where it is from; and a GLOBAL function can't be given such. */
INLINE u64 number(const void *object)
{
	u64 n = 0;

	bpf_probe_read_kernel(&n, sizeof(n), &object);
	return n;
}

/* note_conn puts a connection into the map, once a run. */
GLOBAL int note_conn(u64 address)
{
	struct fuse_conn *fc = (void *)address;
	struct backing_dev_info *bdi = NULL;
	struct super_block *sb;
	struct conn_value *v;
	unsigned long word = 0;
	int counter = 0;
	u32 zero = 0;

	if (!fc || bpf_map_lookup_elem(&conns, &address))
		return 0;
	v = bpf_map_lookup_elem(&scratch, &zero);
	if (!v)
		return 0;
	v->conn = address;
	v->init_flags = init_flags(fc);
	v->unsupported = unsupported(fc);
	v->dev = v->minor = v->max_write = v->max_read = v->max_pages = 0;
	READ(v->dev, fc, dev);
	READ(v->minor, fc, minor);
	READ(v->max_write, fc, max_write);
	READ(v->max_read, fc, max_read);
	if (EXISTS(fc, max_pages)) {
		READ(v->max_pages, fc, max_pages);
		v->init_flags |= 1 << 22; /* FUSE_MAX_PAGES */
	}
	READ(v->max_background, fc, max_background);
	READ(v->congestion_threshold, fc, congestion_threshold);
	v->max_stack_depth = 0;
	if (EXISTS(fc, max_stack_depth))
		READ(v->max_stack_depth, fc, max_stack_depth);
	READ(v->user_id, fc, user_id.val);
	READ(v->group_id, fc, group_id.val);
	READ(v->connected, fc, connected);
	READ(v->initialized, fc, initialized);
	v->conn_error = BITS(fc, conn_error);
	v->allow_other = BITS(fc, allow_other);
	v->default_permissions = BITS(fc, default_permissions);
	READ(counter, fc, num_waiting.counter);
	v->waiting = counter < 0 ? 0 : counter;

	v->readahead_pages = v->blocksize = 0;
	v->time_gran = v->superblock = 0;
	sb = superblock(fc);
	if (sb) {
		v->superblock = 1;
		READ(v->time_gran, sb, s_time_gran);
		READ(v->blocksize, sb, s_blocksize);
		READ(bdi, sb, s_bdi);
		READ(v->readahead_pages, bdi, ra_pages);
		/* FUSE_ALLOW_IDMAP and SB_I_NOIDMAP are as old as the member asked
		 * for: 6.12. */
		READ(word, sb, s_iflags);
		if (EXISTS(fc, use_pages_for_kvec_io) && !(word & SB_I_NOIDMAP))
			v->init_flags |= 1ULL << 40;
	}
	v->pad = 0;
	bpf_map_update_elem(&conns, &address, v, BPF_ANY);
	return 0;
}

INLINE int on_fuse(struct inode *inode)
{
	struct super_block *sb;

	if (!inode)
		return 0;
	sb = GET(inode, i_sb);
	return GET(sb, s_magic) == FUSE_SUPER_MAGIC;
}

/* is_locked says whether there are locks or leases (fs/locks.c). */
GLOBAL u32 is_locked(u64 address)
{
	struct inode *inode = (void *)address;
	struct list_head *flock = NULL, *posix = NULL, *lease = NULL;
	struct file_lock_context *all = NULL;
	void *at;

	READ(all, inode, i_flctx); /* a number to the verifier, to calculate with */
	if (!all)
		return 0;
	at = all;
	READ(flock, all, flc_flock.next);
	READ(posix, all, flc_posix.next);
	READ(lease, all, flc_lease.next);
	return (flock && flock != at + OFFSET(struct file_lock_context, flc_flock)) ||
		(posix && posix != at + OFFSET(struct file_lock_context, flc_posix)) ||
		(lease && lease != at + OFFSET(struct file_lock_context, flc_lease));
}

/* is_unwritten says whether there are pages that the daemon has not been sent, or
 * not answered for. The marks of the page cache are the upper bits of the flags of
 * its xarray (include/linux/xarray.h XA_FLAGS_MARK; where they begin differs, but
 * the flags proper lie below). Before 6.16 pages that are on their way had none:
 * writepages has those. */
INLINE u32 is_unwritten(struct inode *inode)
{
	struct fuse_inode *fi = (void *)inode;
	struct rb_node *under_way = NULL;
	u32 flags = GET(inode, i_data.i_pages.xa_flags);

	if (EXISTS(fi, writepages))
		READ(under_way, fi, writepages.rb_node);
	return flags >> 8 || under_way;
}

/* mix_name adds a directory entry to what stands for a path: which it is, its name,
 * and whether it has been removed. */
GLOBAL u64 mix_name(u64 mix, u64 address)
{
	struct dentry *dentry = (void *)address;
	u64 of = 0; /* one variable for all: stack is scarce where this is called */

	READ(of, dentry, d_name.hash_len);
	mix = (mix ^ address ^ of << 1) * 0x9e3779b97f4a7c15ULL;
	mix ^= mix >> 32;
	READ(of, dentry, d_hash.pprev);
	return mix ^ !of;
}

/* name_of stands for the path of a file within its file system, which is another one
 * when a directory on it or the file itself is renamed or removed; 0 if it is too
 * deep down. */
#define MAX_DEPTH 64
GLOBAL u64 name_of(u64 address)
{
	struct dentry *dentry = (void *)address;
	u64 mix = 0, parent;
	int i;

	for (i = 0; i < MAX_DEPTH; i++) {
		mix = mix_name(mix, (u64)dentry);
		parent = 0;
		READ(parent, dentry, d_parent);
		if (!parent || parent == (u64)dentry)
			return mix | 1;
		dentry = (void *)parent;
	}
	return 0;
}

INLINE void fill_node(struct node *n, struct inode *inode)
{
	struct fuse_inode *fi = (void *)inode;
	struct super_block *sb = GET(inode, i_sb);
	struct fuse_mount *fm = GET(sb, s_fs_info);
	u64 fc = 0;

	n->inode = (u64)inode;
	READ(fc, fm, fc);
	n->conn = fc;
	n->nodeid = n->nlookup = n->orig_ino = 0;
	READ(n->nodeid, fi, nodeid);
	READ(n->nlookup, fi, nlookup);
	READ(n->orig_ino, fi, orig_ino);
	n->ino = GET(inode, i_ino);
	n->size = GET(inode, i_size);
	n->dev = GET(sb, s_dev);
	n->generation = GET(inode, i_generation);
	n->nlink = GET(inode, i_nlink);
	n->mode = GET(inode, i_mode);
	n->locked = is_locked(number(inode));
	n->unwritten = is_unwritten(inode);
}

/* mount_id goes from the part of a struct mount that everybody sees to the
 * whole (fs/mount.h real_mount). */
INLINE s32 mount_id(struct vfsmount *mnt)
{
	struct mount *m;
	s32 id = 0;

	m = (void *)mnt - OFFSET(struct mount, mnt);
	READ(id, m, mnt_id);
	return id;
}

INLINE void fill_open(struct open *o, struct file *file, struct inode *inode)
{
	struct fuse_file *ff = GET(file, private_data);
	u32 type = GET(inode, i_mode) & S_IFMT;

	o->file = (u64)file;
	o->flags = GET(file, f_flags);
	o->mode = GET(file, f_mode);
	o->pos = GET(file, f_pos);
	o->mount = mount_id(GET(file, f_path.mnt));
	o->name = name_of(number(GET(file, f_path.dentry)));
	o->fh = 0;
	o->open_flags = 0;
	o->has_fh = 0;
	o->pad = 0;
	/* Files of other types have somebody else's private_data: a FIFO's pipe. */
	if (ff && !(o->mode & FMODE_PATH) && (type == S_IFREG || type == S_IFDIR)) {
		READ(o->fh, ff, fh);
		READ(o->open_flags, ff, open_flags);
		o->has_fh = 1;
	}
}

/* close_on_exec reads the descriptor's bit (include/linux/fdtable.h). */
GLOBAL u32 close_on_exec(u64 address, u32 fd)
{
	struct task_struct *task = (void *)address;
	struct files_struct *files = NULL;
	struct fdtable *table = NULL;
	unsigned long *bits = NULL;
	u64 word = 0;

	READ(files, task, files);
	READ(table, files, fdt);
	READ(bits, table, close_on_exec);
	bpf_probe_read_kernel(&word, sizeof(word), bits + fd / 64);
	return word >> (fd % 64) & 1;
}

INLINE void file_of_fuse(struct bpf_iter__task_file *ctx, struct task_struct *task, struct file *file, struct inode *inode)
{
	struct file_record r;

	r.kind = FILE_RECORD;
	r.len = sizeof(r);
	r.tid = task->pid;
	r.tgid = task->tgid;
	r.table = (u64)GET(task, files);
	r.fd = ctx->fd;
	r.close_on_exec = close_on_exec(number(task), ctx->fd);
	fill_node(&r.node, inode);
	fill_open(&r.open, file, inode);
	note_conn(r.node.conn);
	bpf_seq_write(ctx->meta->seq, &r, sizeof(r));
}

INLINE void device_of_fuse(struct bpf_iter__task_file *ctx, struct task_struct *task, struct file *file)
{
	struct fuse_dev *fud;
	struct device_record r;
	u64 fc = 0;
	u32 dev = 0;

	if (file->f_mode & FMODE_PATH)
		return;
	r.kind = DEVICE_RECORD;
	r.len = sizeof(r);
	r.tid = task->pid;
	r.tgid = task->tgid;
	r.table = (u64)GET(task, files);
	r.file = (u64)file;
	r.fd = ctx->fd;
	r.flags = file->f_flags;
	/* The lowest bit marks who asked for a synchronous INIT (fs/fuse/dev.c
	 * FUSE_DEV_SYNC_INIT); nothing else is there before the mount. */
	fud = (void *)((u64)GET(file, private_data) & ~1ULL);
	if (fud)
		READ(fc, fud, fc);
	r.conn = fc;
	if (fc) {
		struct fuse_conn *c = (void *)fc;
		READ(dev, c, dev);
		note_conn(fc);
	}
	r.dev = dev;
	r.pad = 0;
	bpf_seq_write(ctx->meta->seq, &r, sizeof(r));
}

/* other counts a file that may have to do with those on FUSE all the same:
 * sockets, epolls, io_urings and the like. */
INLINE void other(struct bpf_iter__task_file *ctx, struct task_struct *task, struct inode *inode)
{
	struct others_value *v;
	u32 tgid = task->tgid;
	struct super_block *sb = GET(inode, i_sb);
	u64 file = 0, table = 0;

	if ((GET(inode, i_mode) & S_IFMT) != S_IFSOCK && GET(sb, s_dev) != anonymous_device)
		return;
	v = bpf_map_lookup_elem(&others, &tgid);
	if (v) {
		v->count++;
		bpf_probe_read_kernel(&file, sizeof(file), &ctx->file);
		READ(table, task, files);
		v->mix += (file ^ (u64)ctx->fd << 32 ^ table >> 3) * 0x9e3779b97f4a7c15ULL;
	}
}

SEC("iter/task_file")
int fuse_files(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct inode *inode;

	if (!task || !file || (not_own && (u32)task->tgid == bpf_get_current_pid_tgid() >> 32))
		return 0;
	inode = GET(file, f_inode);
	if (!inode)
		return 0;
	if (on_fuse(inode))
		file_of_fuse(ctx, task, file, inode);
	else if (GET(inode, i_rdev) == FUSE_DEVICE && (GET(inode, i_mode) & S_IFMT) == S_IFCHR)
		device_of_fuse(ctx, task, file);
	else
		other(ctx, task, inode);
	return 0;
}

INLINE void place(struct seq_file *seq, struct task_struct *task, u32 which, void *holder, struct vfsmount *mnt, struct dentry *dentry, struct inode *inode)
{
	struct place_record r;

	r.kind = PLACE_RECORD;
	r.len = sizeof(r);
	r.tid = task->pid;
	r.tgid = task->tgid;
	r.holder = (u64)holder;
	r.name = name_of(number(dentry));
	r.place = which;
	r.mount = mount_id(mnt);
	fill_node(&r.node, inode);
	note_conn(r.node.conn);
	bpf_seq_write(seq, &r, sizeof(r));
}

SEC("iter/task")
int fuse_places(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task, *leader;
	struct fs_struct *fs;
	struct dentry *dentry;
	struct file *exe;
	struct mm_struct *mm;
	struct inode *inode;

	if (!task)
		return 0;
	leader = GET(task, group_leader);
	fs = GET(task, fs);
	/* What the leader shares is reported with the leader. */
	if (fs && (task == leader || fs != GET(leader, fs))) {
		dentry = GET(fs, pwd.dentry);
		inode = GET(dentry, d_inode);
		if (on_fuse(inode))
			place(ctx->meta->seq, task, PLACE_CWD, fs, GET(fs, pwd.mnt), dentry, inode);
		dentry = GET(fs, root.dentry);
		inode = GET(dentry, d_inode);
		if (on_fuse(inode))
			place(ctx->meta->seq, task, PLACE_ROOT, fs, GET(fs, root.mnt), dentry, inode);
	}
	mm = GET(task, mm);
	if (mm && (task == leader || mm != GET(leader, mm))) {
		exe = GET(mm, exe_file);
		if (exe) {
			inode = GET(exe, f_inode);
			if (on_fuse(inode))
				place(ctx->meta->seq, task, PLACE_EXE, mm, GET(exe, f_path.mnt), GET(exe, f_path.dentry), inode);
		}
	}
	return 0;
}

INLINE long mapping(struct seq_file *seq, struct task_struct *task, struct vm_area_struct *vma, struct file *file, struct inode *inode)
{
	struct mapping_record *r;
	u32 zero = 0;

	r = bpf_map_lookup_elem(&room, &zero);
	if (!r)
		return 0;
	r->kind = MAPPING_RECORD;
	r->len = sizeof(*r);
	r->tid = task->pid;
	r->tgid = task->tgid;
	r->mm = (u64)GET(task, mm);
	r->start = vma->vm_start;
	r->end = vma->vm_end;
	r->pgoff = vma->vm_pgoff;
	r->flags = vma->vm_flags;
	fill_node(&r->node, inode);
	fill_open(&r->open, file, inode);
	note_conn(r->node.conn);
	return bpf_seq_write(seq, r, sizeof(*r));
}

INLINE void about_task(struct seq_file *seq, struct task_struct *task, u32 kind, u64 next)
{
	struct task_record r;

	r.kind = kind;
	r.len = sizeof(r);
	r.tid = task->pid;
	r.tgid = task->tgid;
	r.mm = (u64)GET(task, mm);
	r.next = next;
	r.seen = seen;
	r.pad = 0;
	bpf_seq_write(seq, &r, sizeof(r));
}

/* Since 6.7: mmap_lock, or in newer kernels the lock of each mapping, is tried
 * only, so that this never waits for a task which holds it
 * (kernel/bpf/task_iter.c bpf_iter_task_vma_new, bpf_iter_task_vma_next). Where
 * mappings have locks, those that somebody holds are not shown: the count tells. */
SEC("iter/task")
int fuse_mappings(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task, *leader;
	struct bpf_iter_task_vma it;
	struct vm_area_struct *vma;
	struct mm_struct *mm;
	struct file *file;
	struct inode *inode;
	u64 more = 0;
	u32 tgid;
	int busy;

	if (!task)
		return 0;
	mm = GET(task, mm);
	if (!mm)
		return 0;
	if (only_tid) {
		if (task->pid != only_tid)
			return 0;
	} else {
		leader = GET(task, group_leader);
		if (task != leader && mm == GET(leader, mm))
			return 0;
		tgid = task->tgid;
		if (only_others && !bpf_map_lookup_elem(&others, &tgid))
			return 0;
	}
	left = RECORDS_OF_A_TASK;
	seen = from_count;
	busy = bpf_iter_task_vma_new(&it, task, from_address) == -EBUSY;
	while ((vma = bpf_iter_task_vma_next(&it))) {
		seen++;
		file = GET(vma, vm_file);
		if (!file)
			continue;
		inode = GET(file, f_inode);
		if (!on_fuse(inode))
			continue;
		if (!left) {
			more = vma->vm_start;
			seen--;
			break;
		}
		left--;
		mapping(ctx->meta->seq, task, vma, file, inode);
	}
	bpf_iter_task_vma_destroy(&it);
	if (more)
		about_task(ctx->meta->seq, task, MORE_RECORD, more);
	else if (busy || (int)seen < GET(mm, map_count))
		about_task(ctx->meta->seq, task, BUSY_RECORD, from_address);
	return 0;
}

/* Before 6.7: waits for mmap_lock. */
SEC("iter/task_vma")
int fuse_mappings_waiting(struct bpf_iter__task_vma *ctx)
{
	struct vm_area_struct *vma = ctx->vma;
	struct task_struct *task = ctx->task;
	struct inode *inode;
	struct file *file;
	u32 tgid;

	if (!task || !vma)
		return 0;
	file = GET(vma, vm_file);
	if (!file)
		return 0;
	inode = GET(file, f_inode);
	if (!on_fuse(inode))
		return 0;
	tgid = task->tgid;
	if (!only_others || bpf_map_lookup_elem(&others, &tgid))
		mapping(ctx->meta->seq, task, vma, file, inode);
	return 0;
}

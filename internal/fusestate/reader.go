package fusestate

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// Reader runs the iterators. The caller closes it.
type Reader struct {
	programs                *ebpf.Collection
	files, places, mappings *link.Iter
	conns, others           *ebpf.Map

	mu     sync.Mutex
	buf    []byte
	wanted []uint32 // what others has
}

// Load loads the programs into the kernel. It fails with [ErrNoBPF] where that
// can't be.
func Load() (*Reader, error) {
	if os.Getenv(noBPF) != "" {
		return nil, fmt.Errorf("%w: %s is set", ErrNoBPF, noBPF)
	}
	if err := checkPIDNamespace(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoBPF, err)
	}
	r, err := load(false)
	if errors.Is(err, ebpf.ErrNotSupported) {
		// Before 6.7 a task's mappings can't be walked without waiting: the
		// functions for it are missing.
		r, err = load(true)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoBPF, err)
	}
	return r, nil
}

// checkPIDNamespace makes sure that the numbers of processes that the programs
// tell mean the same to us: those of the first pid namespace, whose inode is
// include/uapi/linux/nsfs.h PID_NS_INIT_INO.
func checkPIDNamespace() error {
	const first = "pid:[4026531836]"
	own, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return fmt.Errorf("our pid namespace: %w", err)
	}
	if own != first {
		return fmt.Errorf("we are in a pid namespace of our own, %s", own)
	}
	return nil
}

// load is Load. waiting takes the program for mappings that older kernels
// need.
func load(waiting bool) (_ *Reader, err error) {
	spec, err := loadPrograms()
	if err != nil {
		return nil, fmt.Errorf("the programs: %w", err)
	}
	mappings := "fuse_mappings"
	if waiting {
		mappings = "fuse_mappings_waiting"
	}
	for _, name := range []string{"fuse_mappings", "fuse_mappings_waiting"} {
		if name != mappings {
			delete(spec.Programs, name)
		}
	}
	options, err := kernelTypes()
	if err != nil {
		return nil, err
	}
	// Before Linux 5.11 a map's memory counts as locked.
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("RLIMIT_MEMLOCK: %w", err)
	}
	r := &Reader{buf: make([]byte, 0, bufferSize)}
	if r.programs, err = ebpf.NewCollectionWithOptions(spec, *options); err != nil {
		return nil, fmt.Errorf("loading the programs: %w", err)
	}
	loaded := r
	defer func() {
		if err != nil {
			loaded.Close()
		}
	}()
	for _, i := range []struct {
		program string
		to      **link.Iter
	}{{"fuse_files", &r.files}, {"fuse_places", &r.places}, {mappings, &r.mappings}} {
		if *i.to, err = link.AttachIter(link.IterOptions{Program: r.programs.Programs[i.program]}); err != nil {
			return nil, fmt.Errorf("attaching %s: %w", i.program, err)
		}
	}
	r.conns, r.others = r.programs.Maps["conns"], r.programs.Maps["others"]
	dev, err := anonymousDevice()
	if err != nil {
		return nil, err
	}
	if err = r.programs.Variables["anonymous_device"].Set(dev); err != nil {
		return nil, fmt.Errorf("telling the program a device: %w", err)
	}
	return r, nil
}

// kernelTypes are options by which the programs find the kernel's types with as
// little work as can be: the types of the kernel itself take long to read, those
// of all its modules longer.
func kernelTypes() (*ebpf.CollectionOptions, error) {
	o := new(ebpf.CollectionOptions)
	with, err := os.ReadDir("/sys/kernel/btf")
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("the kernel's type information: %w", err)
	case err == nil && len(with) == 1:
		return o, nil // no modules: the library reads one set, once
	}
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return nil, fmt.Errorf("the kernel's type information (CONFIG_DEBUG_INFO_BTF): %w", err)
	}
	o.Programs.KernelTypes = kernel
	// Types of the fuse module, where it is one.
	module, err := btf.LoadKernelModuleSpec("fuse")
	switch {
	case err == nil:
		o.Programs.ExtraRelocationTargets = []*btf.Spec{module}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("the fuse module's type information: %w", err)
	}
	return o, nil
}

// Close unloads the programs.
func (r *Reader) Close() {
	for _, i := range []*link.Iter{r.files, r.places, r.mappings} {
		if i != nil {
			i.Close()
		}
	}
	r.programs.Close()
}

// Read looks at the whole machine. Of the processes pids it tells the Others
// too, if parts has Files, and the mappings, if it has MappingsOf.
func (r *Reader) Read(parts Parts, pids ...int) (*State, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.forgetConns(); err != nil {
		return nil, err
	}
	if err := r.wantOthers(pids); err != nil {
		return nil, fmt.Errorf("telling the program of %d processes: %w", len(pids), err)
	}
	var own uint32
	if parts&NotOwn != 0 {
		own = 1
	}
	if err := r.programs.Variables["not_own"].Set(own); err != nil {
		return nil, fmt.Errorf("telling the program whom to leave out: %w", err)
	}
	s := &State{}
	for _, i := range []struct {
		part Parts
		iter *link.Iter
		what string
	}{{Files, r.files, "open files"}, {Places, r.places, "directories of tasks"}} {
		if parts&i.part == 0 {
			continue
		}
		if _, err := r.run(i.iter, s); err != nil {
			return nil, fmt.Errorf("reading %s on FUSE: %w", i.what, err)
		}
	}
	if parts&(Mappings|MappingsOf) != 0 {
		var only uint32
		if parts&Mappings == 0 {
			only = 1
		}
		if err := r.programs.Variables["only_others"].Set(only); err != nil {
			return nil, fmt.Errorf("telling the program whom to look at: %w", err)
		}
		if err := r.readMappings(s); err != nil {
			return nil, fmt.Errorf("reading mappings of files on FUSE: %w", err)
		}
	}
	if err := r.readConns(s); err != nil {
		return nil, err
	}
	if parts&Files != 0 && len(pids) > 0 {
		if err := r.readOthers(s); err != nil {
			return nil, fmt.Errorf("reading what else %d processes have open: %w", len(pids), err)
		}
	}
	return s, nil
}

// attempts is how often a task is looked at that changes its mappings just
// then. That takes microseconds, unless it waits for a file system.
const attempts = 20

// readMappings reads the mappings of all tasks, then again of those that had
// too many for once or were busy.
func (r *Reader) readMappings(s *State) error {
	again, err := r.runMappings(s, resume{})
	if err != nil {
		return err
	}
	if len(again) == 0 {
		return nil
	}
	partly := map[Task]bool{}
	for _, t := range again {
		partly[t.task] = true
	}
	s.Mappings = slices.DeleteFunc(s.Mappings, func(m Mapping) bool { return partly[m.Task] })
	for _, t := range again {
		if err := r.readTask(s, t.task); err != nil {
			return err
		}
	}
	return nil
}

// readTask reads the mappings of one task. If it stays busy, those are kept
// that were seen last.
func (r *Reader) readTask(s *State, t Task) error {
	before := len(s.Mappings)
	for range attempts {
		s.Mappings = s.Mappings[:before]
		at := resume{task: t}
		for !at.busy {
			again, err := r.runMappings(s, at)
			if err != nil {
				return err
			}
			if len(again) == 0 {
				return nil // also if the task is gone
			}
			at = again[0]
		}
	}
	s.Busy = append(s.Busy, t.PID)
	return nil
}

// runMappings reads the mappings of at's task, or those of all tasks if it
// names none.
func (r *Reader) runMappings(s *State, at resume) ([]resume, error) {
	for _, v := range []struct {
		variable string
		value    any
	}{{"only_tid", int32(at.task.TID)}, {"from_address", at.from}, {"from_count", at.seen}} {
		if err := r.programs.Variables[v.variable].Set(v.value); err != nil {
			return nil, fmt.Errorf("telling the program %s: %w", v.variable, err)
		}
	}
	return r.run(r.mappings, s)
}

// bufferSize is what the kernel has ready in one read(2) (kernel/bpf/bpf_iter.c
// bpf_iter_prepare…: 8 pages).
const bufferSize = 32 << 10

// run runs an iterator to its end and adds its records to s.
func (r *Reader) run(i *link.Iter, s *State) ([]resume, error) {
	f, err := i.Open()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r.buf = r.buf[:0]
	for {
		if cap(r.buf)-len(r.buf) < bufferSize {
			r.buf = append(make([]byte, 0, 2*cap(r.buf)), r.buf...)
		}
		n, err := f.Read(r.buf[len(r.buf):cap(r.buf)])
		switch {
		case errors.Is(err, io.EOF):
			return s.parse(r.buf)
		// EAGAIN is after a million of objects without a record
		// (kernel/bpf/bpf_iter.c bpf_seq_read, MAX_ITER_OBJECTS).
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		case err != nil:
			return nil, err
		}
		r.buf = r.buf[:len(r.buf)+max(n, 0)]
	}
}

// forgetConns empties the map, so that each run looks at the connections anew.
func (r *Reader) forgetConns() error {
	var keys []uint64
	var key uint64
	var value programsConnValue
	entries := r.conns.Iterate()
	for entries.Next(&key, &value) {
		keys = append(keys, key)
	}
	for _, key := range keys {
		if err := r.conns.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("emptying the map of connections: %w", err)
		}
	}
	return nil
}

// readConns fetches the connections that the records name.
func (r *Reader) readConns(s *State) error {
	known := map[uint64]bool{0: true}
	fetch := func(address uint64) error {
		if known[address] {
			return nil
		}
		known[address] = true
		var value programsConnValue
		if err := r.conns.Lookup(address, &value); err != nil {
			return fmt.Errorf("reading a connection (of more than %d?): %w", r.conns.MaxEntries(), err)
		}
		s.Conns = append(s.Conns, conn(&value))
		return nil
	}
	for i := range s.Files {
		if err := fetch(s.Files[i].Node.Conn); err != nil {
			return err
		}
	}
	for i := range s.Devices {
		if err := fetch(s.Devices[i].Conn); err != nil {
			return err
		}
	}
	for i := range s.Mappings {
		if err := fetch(s.Mappings[i].Node.Conn); err != nil {
			return err
		}
	}
	for i := range s.Places {
		if err := fetch(s.Places[i].Node.Conn); err != nil {
			return err
		}
	}
	return nil
}

// wantOthers makes the program count the others of pids only, from nothing.
func (r *Reader) wantOthers(pids []int) error {
	if len(r.wanted) > 0 {
		if _, err := r.others.BatchDelete(r.wanted, nil); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
	}
	r.wanted = nil
	if len(pids) == 0 {
		return nil
	}
	wanted := make([]uint32, len(pids))
	for i, pid := range pids {
		wanted[i] = uint32(pid)
	}
	r.wanted = wanted
	_, err := r.others.BatchUpdate(wanted, make([]programsOthersValue, len(wanted)), nil)
	return err
}

func (r *Reader) readOthers(s *State) error {
	s.Others = make(map[int]Others, len(r.wanted))
	keys := make([]uint32, len(r.wanted))
	values := make([]programsOthersValue, len(r.wanted))
	var at ebpf.MapBatchCursor
	for {
		n, err := r.others.BatchLookup(&at, keys, values, nil)
		for i := range n {
			s.Others[int(keys[i])] = Others{values[i].Count, values[i].Mix}
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil // that was all
		}
		if err != nil {
			return err
		}
	}
}

// anonymousDevice is the kernel's dev_t of the file system of files that are
// none (fs/anon_inodes.c), which an eventfd is on.
func anonymousDevice() (uint32, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return 0, fmt.Errorf("eventfd: %w", err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, fmt.Errorf("stat of an eventfd: %w", err)
	}
	return unix.Major(st.Dev)<<20 | unix.Minor(st.Dev), nil
}

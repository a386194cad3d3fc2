package swap

import (
	"bytes"
	"encoding/binary"
	"math"
	"os"
	"slices"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"spfs/internal/ptrace"
)

// program is the batch of one job, together with what must be sent to it.
//
// Up to the verdict every step has an undo, and a step that fails unwinds
// those before it; after the verdict come only calls on descriptors and
// addresses that are there already.
type program struct {
	*ptrace.Program

	pair     ptrace.Ref   // [2]int32: the channel's ends, the swapper's first
	paired   ptrace.Ref   // uint32: 0 until the pair is there
	ready    ptrace.Ref   // uint32: 0 until all that can fail has been done
	messages []message    // in the order they are received
	moved    []movedRange // where the new mappings were made

	early   map[*Description]ptrace.Ref // received before the verdict: their numbers
	relocks bool                        // locks are taken after the verdict

	asked []asked // about the old descriptions

	undos   []undo
	decided bool         // what follows comes after the verdict
	open    []ptrace.Ref // descriptors to close when going forward
	exe     *exchange    // nil if the program stays
	late    []func()     // what is done before that, once the verdict is known
	dot     ptrace.Ref   // "."
	parked  ptrace.Ref   // uint64: the address of the word that the process's other threads wait for; 0 if they don't
	room    int
}

// message is one message of descriptions: those that are there when it is sent.
type message []**os.File

// movedRange is a mapping and the call that made its replacement.
type movedRange struct {
	mapping *Mapping
	made    *ptrace.Call
}

// undo is a step's way back, and the label to unwind from once it was taken.
type undo struct {
	label ptrace.Label
	emit  func()
}

// Offsets in struct msghdr and struct cmsghdr, and the room for a
// descriptor's number before it is known: closing -1 does nothing.
const (
	msghdrSize    = int(unsafe.Sizeof(unix.Msghdr{}))
	msghdrIov     = int(unsafe.Offsetof(unix.Msghdr{}.Iov))
	msghdrIovlen  = int(unsafe.Offsetof(unix.Msghdr{}.Iovlen))
	msghdrControl = int(unsafe.Offsetof(unix.Msghdr{}.Control))
	msghdrCtllen  = int(unsafe.Offsetof(unix.Msghdr{}.Controllen))
	iovecSize     = int(unsafe.Sizeof(unix.Iovec{}))
	iovecLen      = int(unsafe.Offsetof(unix.Iovec{}.Len))
)

var noFD = []byte{0xff, 0xff, 0xff, 0xff}

// newProgram writes the batch for j. room is how many further descriptors the
// table has numbers for; the batch never holds more at a time.
func newProgram(j *job, v *verdict, room int) *program {
	p := &program{Program: ptrace.NewProgram(), room: room}
	p.dot = p.String(".")
	p.parked = p.Zero(8)
	out := p.Label()
	p.FailTo(out)

	// The socket pair, as the beginning of a struct pollfd for our end.
	p.pair = p.Data(binary.NativeEndian.AppendUint32(bytes.Repeat(noFD, 2), unix.POLLIN)) // events, then revents
	p.Syscall(unix.SYS_SOCKETPAIR, ptrace.Const(unix.AF_UNIX),
		ptrace.Const(unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC), ptrace.Const(0), p.pair).Name("socketpair")
	theirs, ours := p.pair, p.pair.Add(4)
	p.did(func() { p.closeFD(ours); p.closeFD(theirs) })
	// The numbers are written before the descriptors are installed
	// (net/socket.c __sys_socketpair), so a word of its own says that they
	// are.
	p.paired = p.tell()
	p.awaitSwapper(ours)

	// The verdict comes first; the message says the number of our end, which
	// ppoll needs in its struct pollfd.
	pollfd := p.Data(binary.NativeEndian.AppendUint32(bytes.Clone(noFD), unix.POLLRDHUP)) // events, then revents
	word := p.receive(pollfd, message{&v.file})[0]
	p.closeFD(theirs)

	if j.space != nil {
		p.mapNew(j.space, room)
		if j.space.Exe != nil {
			p.tryExe(j.space.Exe)
		}
	}
	if j.context != nil {
		p.changeDirectories(j)
	}
	if j.table != nil {
		p.receiveEarly(j.table)
		p.takeLocks(j.table)
		p.tryRegistrations(j.table)
		p.moveWatches(j.table, j.spare)
		p.askSignals(j.table)
	}

	// Ready; wait for the swapper to hang up; look at the verdict.
	p.ready = p.tell()
	p.Syscall(unix.SYS_PPOLL, pollfd, ptrace.Const(1), ptrace.Const(0), ptrace.Const(0), ptrace.Const(8)).Ignore() // whatever ends the wait
	said := p.Zero(4)
	p.Syscall(unix.SYS_PREAD64, word.Int32(), said, ptrace.Const(4), ptrace.Const(0)).Name("reading the verdict")
	forward := p.Label()
	p.BranchEqual(said, verdictForward, forward)
	p.unwind()
	p.Goto(out)

	p.Bind(forward)
	p.FailTo(out)
	p.open = append(p.open, word)
	for _, late := range p.late {
		late()
	}
	for _, fd := range p.open {
		p.closeFD(fd)
	}
	for _, m := range p.moved {
		length := ptrace.Const(m.mapping.End - m.mapping.Start)
		p.Syscall(unix.SYS_MREMAP, m.made, length, length,
			ptrace.Const(unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED), ptrace.Const(m.mapping.Start)).
			Name("mremap over " + m.mapping.Path)
	}
	if j.table != nil {
		p.replaceFDs(j.table, room)
		p.replaceEarly(j.table)
		p.renewLeases()
	}
	if p.exe != nil {
		p.exchangeExe()
	}
	p.closeFD(ours)
	p.Bind(out)
	none := p.Label()
	p.BranchEqual(p.parked, 0, none)
	p.wake(p.parked.Uint64(), math.MaxInt32).Ignore()
	p.Bind(none)
	return p
}

// letGo makes the program, at its end, let threads go that wait for a word at that
// address: what else is in its page makes that one whose low 32 bits are not 0.
func (p *program) letGo(word uint64) { p.Put64(p.parked, word) }

// orphanTime is how long a batch waits for the swapper's first message. While
// the process itself holds both ends of the pair, the swapper's death does not
// show there.
const orphanTime = 5 * time.Second

// awaitSwapper waits until there is something to receive. It is ppoll, because
// a time limit of it leaves nothing behind in the thread (see ptrace.Program).
func (p *program) awaitSwapper(pollfd ptrace.Ref) {
	limit := p.Data(binary.NativeEndian.AppendUint64(binary.NativeEndian.AppendUint64(nil,
		uint64(orphanTime/time.Second)), uint64(orphanTime%time.Second)))
	n := p.Syscall(unix.SYS_PPOLL, pollfd, ptrace.Const(1), limit, ptrace.Const(0), ptrace.Const(8)).
		Name("waiting for the swapper")
	late, came := p.Label(), p.Label()
	p.BranchResult(n, 0, late)
	p.Goto(came)
	p.Bind(late)
	// As in receive: what must fail takes the way back.
	p.Syscall(unix.SYS_CLOSE, ptrace.Int(-1)).Name("waiting for the swapper: nothing came")
	p.Bind(came)
}

// include/uapi/linux/futex.h.
const (
	futexWakeOp = 5       // FUTEX_WAKE_OP
	futexStore1 = 1 << 12 // FUTEX_OP(FUTEX_OP_SET, 1, FUTEX_OP_CMP_EQ, 0)
)

// tell stores 1 in a new word and wakes who waits for that.
func (p *program) tell() ptrace.Ref {
	word := p.Zero(4)
	p.wake(word, 1).Name("futex")
	return word
}

// wake stores 1 in a word and wakes up to n that wait for that: FUTEX_WAKE_OP
// (kernel/futex/waitwake.c) does both.
func (p *program) wake(word ptrace.Arg, n int) *ptrace.Call {
	return p.Syscall(unix.SYS_FUTEX, word, ptrace.Const(futexWakeOp), ptrace.Int(n), ptrace.Const(0),
		word, ptrace.Const(futexStore1))
}

// did notes how to undo what the program has just done. From here on a failure
// unwinds it too.
func (p *program) did(emit func()) {
	if p.decided {
		return
	}
	l := p.Label()
	p.undos = append(p.undos, undo{l, emit})
	p.FailTo(l)
}

// unwind writes the undos, the last first. Each failing step jumps in at its
// own; who falls in from above takes all. From here on nothing is undone.
func (p *program) unwind() {
	for i := len(p.undos) - 1; i >= 0; i-- {
		p.Bind(p.undos[i].label)
		p.undos[i].emit()
	}
	p.undos, p.decided = nil, true
}

// closeFD closes the descriptor whose number is at r.
func (p *program) closeFD(r ptrace.Ref) {
	p.Syscall(unix.SYS_CLOSE, r.Int32()).Ignore()
}

// receive takes one message from the channel, and returns where the numbers of
// its descriptors are. The payload goes to into.
func (p *program) receive(into ptrace.Ref, files message) []ptrace.Ref {
	p.messages = append(p.messages, files)
	n := len(files)

	control := make([]byte, unix.CmsgSpace(4*n))
	for i := range n {
		copy(control[unix.CmsgLen(0)+4*i:], noFD)
	}
	ctl := p.Data(control)
	iovec := make([]byte, iovecSize)
	binary.NativeEndian.PutUint64(iovec[iovecLen:], 4)
	iov := p.Data(iovec)
	p.PutAddress(iov, into)
	header := make([]byte, msghdrSize)
	binary.NativeEndian.PutUint64(header[msghdrIovlen:], 1)
	binary.NativeEndian.PutUint64(header[msghdrCtllen:], uint64(len(control)))
	hdr := p.Data(header)
	p.PutAddress(hdr.Add(msghdrIov), iov)
	p.PutAddress(hdr.Add(msghdrControl), ctl)

	p.Syscall(unix.SYS_RECVMSG, p.pair.Add(4).Int32(), hdr, ptrace.Const(unix.MSG_CMSG_CLOEXEC)).Name("recvmsg")
	fds := make([]ptrace.Ref, n)
	for i := range fds {
		fds[i] = ctl.Add(unix.CmsgLen(0) + 4*i)
	}
	p.did(func() {
		for _, fd := range fds {
			p.closeFD(fd)
		}
	})
	// Fewer than sent (a full table, MSG_CTRUNC) or none (the swapper died)
	// shows in cmsg_len. Then a call that must fail (EBADF) takes the way back,
	// since a branch would take it without reporting why.
	whole := p.Label()
	p.BranchEqual(ctl, uint32(unix.CmsgLen(4*n)), whole)
	p.Syscall(unix.SYS_CLOSE, ptrace.Int(-1)).Name("recvmsg of " + strconv.Itoa(n) + " descriptors: too few arrived")
	p.Bind(whole)
	return fds
}

// mapNew maps the new files beside the old mappings.
func (p *program) mapNew(s *AddressSpace, room int) {
	var files message
	index := map[*os.File]int{}
	for _, m := range s.Mappings {
		if _, known := index[m.Replacement]; !known {
			index[m.Replacement] = len(files)
			files = append(files, &m.Replacement)
		}
	}
	room = max(1, min(room-1, maxRights)) // the verdict stays open
	for first := 0; first < len(files); first += room {
		part := files[first:min(first+room, len(files))]
		fds := p.receive(p.Zero(4), part)
		for _, m := range s.Mappings {
			i := index[m.Replacement] - first
			if i < 0 || i >= len(part) {
				continue
			}
			p.unlockOld(s, m)
			length := ptrace.Const(m.End - m.Start)
			made := p.Syscall(unix.SYS_MMAP, ptrace.Const(0), length, ptrace.Int(m.Prot), ptrace.Int(m.mmapFlags()),
				fds[i].Int32(), ptrace.Const(m.Offset)).Name("mmap of " + m.Path)
			p.did(func() { p.Syscall(unix.SYS_MUNMAP, made, length).Ignore() })
			p.tellState(s, m, made)
			p.moved = append(p.moved, movedRange{m, made})
		}
		for _, fd := range fds {
			p.closeFD(fd)
		}
	}
}

// changeDirectories moves root and working directory. What j holds open of
// the old ones is the way back.
func (p *program) changeDirectories(j *job) {
	root, cwd := &j.oldRoot, &j.oldCwd
	if d := j.context.Root; d != nil {
		root = &d.Replacement
	}
	if d := j.context.Cwd; d != nil {
		cwd = &d.Replacement
	}
	fds := p.receive(p.Zero(4), message{root, cwd, &j.oldRoot, &j.oldCwd})
	p.open = append(p.open, fds...)
	if j.noWayBack {
		p.tryDirectories(j, fds[0], fds[1])
		return
	}
	if j.context.Root != nil {
		p.did(func() {
			p.fchdir(fds[2]).Ignore()
			p.Syscall(unix.SYS_CHROOT, p.dot).Ignore()
			p.fchdir(fds[3]).Ignore()
		})
		p.fchdir(fds[0]).Name("fchdir to the new root")
		p.Syscall(unix.SYS_CHROOT, p.dot).Name("chroot")
	} else {
		p.did(func() { p.fchdir(fds[3]).Ignore() })
	}
	p.fchdir(fds[1]).Name("fchdir")
}

func (p *program) fchdir(fd ptrace.Ref) *ptrace.Call {
	return p.Syscall(unix.SYS_FCHDIR, fd.Int32())
}

// replaceFDs puts the new descriptions over the old descriptors, at most room
// at a time; but not those that are there already.
func (p *program) replaceFDs(t *FDTable, room int) {
	room = max(1, min(room-len(p.early), maxRights))
	var late []FD
	for _, fd := range t.FDs {
		if _, is := p.early[fd.Description]; !is {
			late = append(late, fd)
		}
	}
	payload := p.Zero(4)
	for part := range slices.Chunk(late, room) {
		files := make(message, len(part))
		for i, fd := range part {
			files[i] = &fd.Description.Replacement
		}
		fds := p.receive(payload, files)
		for i, fd := range part {
			p.dup3(fds[i], fd)
			p.closeFD(fds[i])
		}
	}
}

// dup3 puts the descriptor whose number is at from over fd.
func (p *program) dup3(from ptrace.Ref, fd FD) {
	flags := 0
	if fd.CloseOnExec {
		flags = unix.O_CLOEXEC
	}
	p.Syscall(unix.SYS_DUP3, from.Int32(), ptrace.Int(fd.Num), ptrace.Int(flags)).
		Name("dup3 over descriptor " + strconv.Itoa(fd.Num))
}

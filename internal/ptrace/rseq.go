package ptrace

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

// rseqConfig is struct ptrace_rseq_configuration.
type rseqConfig struct {
	pointer   uint64
	size      uint32
	signature uint32
	flags     uint32
	_         uint32
}

// leaveRestartable moves a thread that was stopped inside of a restartable
// sequence to the sequence's abort handler, as the kernel does with any that
// was preempted there (kernel/rseq.c, rseq_ip_fixup). The kernel would not do
// it itself: it sees the thread leave the kernel somewhere else, takes the
// sequence for finished, and forgets it.
func (th *Thread) leaveRestartable() error {
	if _, in := interrupted(&th.regs); in {
		return nil // no system calls are made in a sequence
	}
	var conf rseqConfig
	err := request(getRseqConfig, th.TID, unsafe.Sizeof(conf), unsafe.Pointer(&conf))
	if err == unix.EIO || err == nil && conf.pointer == 0 {
		return nil // before Linux 5.13, or none registered
	}
	if err != nil {
		return th.failed("read the rseq configuration of", err)
	}
	// struct rseq: cpu_id_start, cpu_id, then the address of a struct rseq_cs:
	// version, flags, start_ip, post_commit_offset, abort_ip.
	const pointerOffset = 8
	var area [8]byte
	le := binary.LittleEndian
	if err := th.p.readMem(conf.pointer+pointerOffset, area[:]); err != nil {
		return err
	}
	at := le.Uint64(area[:])
	if at == 0 {
		return nil
	}
	var cs [32]byte
	if err := th.p.readMem(at, cs[:]); err != nil {
		return nil // the kernel will send it the SIGSEGV it deserves
	}
	start, length, abort := le.Uint64(cs[8:]), le.Uint64(cs[16:]), le.Uint64(cs[24:])
	if programCounter(&th.regs)-start >= length {
		return nil
	}
	r := th.regs
	setProgramCounter(&r, abort)
	if err := th.writeRegs(&r); err != nil {
		return err
	}
	th.regs = r
	return th.p.writeMem(conf.pointer+pointerOffset, make([]byte, 8))
}

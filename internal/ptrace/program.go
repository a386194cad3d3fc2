package ptrace

import (
	"encoding/binary"
	"fmt"
	"unsafe"
)

// Program is a table of system calls that one thread of a process works
// through by itself. It is built once and may then be run many times, in many
// processes, but by one goroutine at a time while it is built.
//
// Calls run in the order they were added, with every signal blocked. One that
// fails ends the program, unless [Call.OnError], [Call.Ignore] or
// [Program.FailTo] say otherwise.
//
// A program must not block for long, and must not be ended by timeouts of its
// own: nanosleep, poll and futex with a timeout would make the kernel forget
// when the call that the thread was interrupted in ends.
type Program struct {
	data  []byte
	lines []line
	calls []int // index in lines of every call
	names []string
	bound []int // line of every label but end, -1 if not bound yet; see Bind
	fail  Label // where failing calls go unless they say otherwise

	pointers []pointer
}

// line is an entry of the table before its addresses are known.
type line struct {
	op    uint32
	value uint32
	label Label // target
	nr    word
	args  [6]word
}

// word is a 64-bit value of the table.
type word struct {
	kind wordKind
	n    uint64
}

type wordKind uint8

const (
	constant wordKind = iota
	inData            // n is an offset in the data
	inResult          // n is a line: the address of its result
	inArg             // n is a line * 8 + argument: the address of it
)

// Label is a place in a program; the zero value is the end of every program.
type Label int

const end Label = 0

// Arg is an argument of a system call: a [Const], a [Ref], a [*Call] or what
// [Ref.Int32], [Ref.Uint32] or [Ref.Uint64] return.
type Arg interface{ argument() source }

// source is where an argument's value comes from: a word of the table itself,
// or copied by copy (an op) from the address in it just before the call.
type source struct {
	word word
	copy uint32
}

// Const is an argument that is known beforehand.
type Const uint64

func (c Const) argument() source { return source{word: word{constant, uint64(c)}} }

// Int is [Const] for signed numbers, such as AT_FDCWD.
func Int(n int) Const { return Const(n) }

// Ref is a place in a program's data. As an argument it is its address in the
// process.
type Ref struct{ offset uint64 }

func (r Ref) argument() source { return source{word: word{inData, r.offset}} }

// Add returns the place n bytes further on.
func (r Ref) Add(n int) Ref { return Ref{r.offset + uint64(n)} }

// loaded is a value read from the data when the call is about to run.
type loaded struct {
	from Ref
	op   uint32
}

func (l loaded) argument() source { return source{word{inData, l.from.offset}, l.op} }

// Int32, Uint32 and Uint64 are the value there at the time of the call, for
// instance the number of a descriptor that recvmsg has put there.
func (r Ref) Int32() Arg  { return loaded{r, opCopyS32} }
func (r Ref) Uint32() Arg { return loaded{r, opCopyU32} }
func (r Ref) Uint64() Arg { return loaded{r, opCopy64} }

// Call is one system call of a program. As an argument of a later one it is
// its result.
type Call struct {
	p     *Program
	line  int
	index int
}

func (c *Call) argument() source { return source{word{inResult, uint64(c.line)}, opCopy64} }

// OnError makes the program go on at label if the call fails. The failure is
// noted, unless label was bound to what comes next anyway: see [Call.Ignore].
func (c *Call) OnError(label Label) *Call {
	c.p.lines[c.line].label = label
	return c
}

// Ignore makes the program go on with the next line if the call fails. The
// failure is not noted; [Batch.Result] has it.
func (c *Call) Ignore() *Call {
	next := c.p.Label()
	c.p.bound[next-1] = c.line + 1
	c.p.lines[c.line].label, c.p.lines[c.line].value = next, 0
	return c
}

// Name sets what the call is called in errors; it is "system call N" otherwise.
func (c *Call) Name(name string) *Call {
	c.p.names[c.index] = name
	return c
}

// NewProgram returns an empty program.
func NewProgram() *Program { return new(Program) }

// Data puts a copy of b into the program's data, on an address divisible by 16.
func (p *Program) Data(b []byte) Ref {
	r := p.Zero(len(b))
	copy(p.data[r.offset:], b)
	return r
}

// String is [Program.Data] of s and a zero byte.
func (p *Program) String(s string) Ref { return p.Data(append([]byte(s), 0)) }

// Zero makes room for n bytes, all zero.
func (p *Program) Zero(n int) Ref {
	r := Ref{uint64(len(p.data)+15) &^ 15}
	p.data = append(p.data, make([]byte, int(r.offset)+n-len(p.data))...)
	return r
}

// Put64 stores v at r, for runs that begin later.
func (p *Program) Put64(r Ref, v uint64) { binary.NativeEndian.PutUint64(p.data[r.offset:], v) }

// PutAddress stores the address of target at r, as the members of struct iovec
// and struct msghdr need it. It is filled in when the program is run.
func (p *Program) PutAddress(r, target Ref) {
	p.pointers = append(p.pointers, pointer{r, target})
}

type pointer struct{ at, to Ref }

// Syscall adds a call.
func (p *Program) Syscall(nr uintptr, args ...Arg) *Call {
	if len(args) > 6 {
		panic(fmt.Sprintf("ptrace: system call %d with %d arguments", nr, len(args)))
	}
	l := line{op: opCall, value: 1, label: p.fail, nr: word{constant, uint64(nr)}}
	copies := 0
	for _, a := range args {
		if a.argument().copy != 0 {
			copies++
		}
	}
	at := len(p.lines) + copies
	for i, a := range args {
		s := a.argument()
		if s.copy == 0 {
			l.args[i] = s.word
			continue
		}
		p.lines = append(p.lines, line{op: s.copy, nr: s.word, args: [6]word{{inArg, uint64(at*8 + i)}}})
	}
	p.lines = append(p.lines, l)
	p.calls = append(p.calls, at)
	p.names = append(p.names, fmt.Sprintf("system call %d", nr))
	return &Call{p, at, len(p.calls) - 1}
}

// Label returns a new label, to be bound by [Program.Bind].
func (p *Program) Label() Label {
	p.bound = append(p.bound, -1)
	return Label(len(p.bound))
}

// Bind makes label the place of the next line added.
func (p *Program) Bind(label Label) { p.bound[label-1] = len(p.lines) }

// FailTo makes the calls added from now on go to label when they fail. The
// lines there usually undo what was done; the error is reported all the same.
func (p *Program) FailTo(label Label) { p.fail = label }

// Goto, BranchEqual and BranchNotEqual go on at label: always, or if the 32
// bits at r are, or are not, value.
func (p *Program) Goto(label Label) { p.lines = append(p.lines, line{op: opGoto, label: label}) }
func (p *Program) BranchEqual(r Ref, value uint32, label Label) {
	p.branch(opBranchEqual, word{inData, r.offset}, value, label)
}
func (p *Program) BranchNotEqual(r Ref, value uint32, label Label) {
	p.branch(opBranchNotEqual, word{inData, r.offset}, value, label)
}

// BranchResult goes on at label if the low 32 bits of the call's result are
// value.
func (p *Program) BranchResult(c *Call, value uint32, label Label) {
	p.branch(opBranchEqual, word{inResult, uint64(c.line)}, value, label)
}

func (p *Program) branch(op uint32, at word, value uint32, label Label) {
	p.lines = append(p.lines, line{op: op, nr: at, value: value, label: label})
}

// Copy32 copies the 32 bits at from, a signed number, to the 64 at to: there
// must be room for 8 bytes.
func (p *Program) Copy32(to, from Ref) {
	p.lines = append(p.lines, line{op: opCopyS32, nr: word{inData, from.offset}, args: [6]word{{inData, to.offset}}})
}

// End ends the program there. It also ends after its last line.
func (p *Program) End() { p.lines = append(p.lines, line{op: opEnd}) }

const (
	headerSize = uint64(unsafe.Sizeof(header{}))
	entrySize  = uint64(unsafe.Sizeof(entry{}))
)

// The offsets of table and data in the scratch mapping, and its size.
func (p *Program) entryOffset(line int) uint64 { return headerSize + uint64(line)*entrySize }
func (p *Program) dataOffset() uint64          { return (p.entryOffset(len(p.lines)+1) + 15) &^ 15 }
func (p *Program) size() uint64 {
	return (p.dataOffset() + uint64(len(p.data)) + pageSize - 1) &^ (pageSize - 1)
}

// assemble writes the program to mem, which is zero and which the process has
// at base.
func (p *Program) assemble(mem []byte, base uint64) error {
	value := func(w word) uint64 {
		switch w.kind {
		case inData:
			return base + p.dataOffset() + w.n
		case inResult:
			return base + p.entryOffset(int(w.n)) + uint64(unsafe.Offsetof(entry{}.result))
		case inArg:
			return base + p.entryOffset(int(w.n/8)) + uint64(unsafe.Offsetof(entry{}.args)) + w.n%8*8
		}
		return w.n
	}
	for i := range len(p.lines) + 1 {
		l := line{op: opEnd}
		if i < len(p.lines) {
			l = p.lines[i]
		}
		target := len(p.lines)
		if l.label != end {
			if target = p.bound[l.label-1]; target < 0 {
				return ErrUnbound
			}
		}
		e := entry{op: l.op, value: l.value, target: base + p.entryOffset(target), nr: value(l.nr)}
		for n, a := range l.args {
			e.args[n] = value(a)
		}
		copy(mem[p.entryOffset(i):], unsafe.Slice((*byte)(unsafe.Pointer(&e)), entrySize))
	}
	data := mem[p.dataOffset():]
	copy(data, p.data)
	for _, ptr := range p.pointers {
		binary.LittleEndian.PutUint64(data[ptr.at.offset:], base+p.dataOffset()+ptr.to.offset)
	}
	return nil
}

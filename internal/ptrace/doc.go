// Package ptrace stops live processes and makes them run system calls.
//
// A [Tracer] is one operating system thread that every ptrace request is made
// from, since the kernel ties a tracee to the thread that seized it. It owns
// the [Process] values it has seized until they are released; closing it, or
// the death of its process, lets all of them go on.
//
// System calls are run as a [Program]: a table of calls, with results feeding
// later arguments and branches, which one thread of the process works through
// by itself ([Thread.Start], [Batch.Wait]) instead of one ptrace stop per call. For
// many threads at once there are [Tracer.StartAll] and [Tracer.WaitAll]: what takes
// long is the wait for a thread to be given a processor, and they wait for all
// together.
// Nobody is needed to finish it: the code that walks the table removes the
// table from memory and puts signal mask, flags and registers back on its own.
// If the tracer dies, the process still ends up whole.
//
// What is put into a process while a batch runs: the code and the saved
// registers in the zero bytes behind the text of the vDSO (no mapping of the
// process is used, its stack and its FPU state are never touched), and one
// mapping with the table. Both are gone when Wait returns. A tracer that died
// leaves its bytes in the vDSO, which nothing executes any more; the next batch
// removes them, or [Process.CleanResidue].
//
// Seccomp filters do not apply to a batch, and apply again before the thread
// runs on. They are in force at once if the tracer dies: what they forbid then
// fails, or kills, the rest of the batch. A thread that dispatches its system
// calls to itself is refused.
//
// An interrupted system call goes on as if nobody had been there: the kernel
// itself restarts it, or ends it with EINTR where a signal with a handler
// arrived meanwhile. Those few calls that end with EINTR on any interruption
// (epoll_wait among them) are restarted too; a relative timeout they were
// given then counts from the restart.
//
// The first tracer that seizes anything installs a handler for real-time signal
// 62, which a program that uses this package must leave alone.
//
// The package never decides whom to stop, and knows nothing of file systems.
//
// Concurrency: methods may be called from any goroutine and run on the
// tracer's thread one at a time. One process must not be used from several
// goroutines at once. [Tracer.Do] runs many calls in one visit to the thread.
package ptrace

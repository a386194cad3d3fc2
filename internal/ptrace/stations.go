package ptrace

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"spfs/internal/fault"
)

// The slack of a vDSO has room for the code and the state of one thread. A
// process with several threads can be given stations, a mapping with room for
// all others: so that those too can run programs, and so that none runs on
// before the programs are over, whatever becomes of the tracer.
type stations struct {
	area   region
	by     *Thread      // maps and unmaps it
	parked []*injection // threads that rest, and would wait there without a tracer
}

// The header of the area: a mark, and the word that parked threads wait for.
const (
	stationsMark   = "spfs-stations\x00\x00\x00"
	stationsWord   = len(stationsMark)
	stationsHeader = 64
)

// stationSize is the distance of one station from the next.
func stationSize() uint64 { return (blockSize + 15) &^ 15 }

// MakeStations maps stations for all threads but by, which does the mapping. It
// does nothing if there are no others. [Process.Release] takes them away again.
//
// The mapping can be written and executed. Some processes may not have such.
func (p *Process) MakeStations(ctx context.Context, by *Thread) error {
	return p.t.Do(func() error {
		if len(p.Threads) < 2 || p.stations != nil {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return by.timeout(err)
		}
		// As in startSome: not to be given up in the middle.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abandonTime)
		defer cancel()
		size := (stationsHeader + uint64(len(p.Threads)-1)*stationSize() + pageSize - 1) &^ (pageSize - 1)
		start, err := by.mapStations(ctx, size)
		if err != nil {
			return fmt.Errorf("map %d bytes for the threads of process %d: %w", size, p.PID, err)
		}
		p.stations = &stations{area: region{start, start + size}, by: by}
		at := start + stationsHeader
		for _, th := range p.Threads {
			if th != by {
				th.station = region{at, at + blockSize}
				at += stationSize()
			}
		}
		return nil
	})
}

// mapStations maps size bytes, and marks them so that they are found again.
// Until then the thread would unmap them by itself if the tracer died.
func (th *Thread) mapStations(ctx context.Context, size uint64) (start uint64, err error) {
	in, err := th.enter(size, 0)
	if err != nil {
		return 0, err
	}
	anywhere := ^uint64(0)
	err = in.aim(modeMap, unix.SYS_MMAP, 0, size, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, anywhere, 0)
	if err != nil {
		return 0, err
	}
	start, err = in.single(ctx)
	if err == nil {
		err = errnoOf(start)
	}
	if err == nil {
		err = th.p.writeMem(start, []byte(stationsMark))
	}
	fault.Point("ptrace: stations marked")
	return start, errors.Join(err, in.leaveAfter(err))
}

// Parked returns the address of the word that threads which were parked wait
// for, and whether there are stations at all. A program that stores something
// else than 0 there, and wakes all that wait (FUTEX_WAKE), lets them go on.
func (p *Process) Parked() (word uint64, ok bool) {
	if p.stations == nil {
		return 0, false
	}
	return p.stations.area.start + uint64(stationsWord), true
}

// Park sees to it that no thread with a station that runs no program goes on,
// should the tracer die, before [Process.Parked]'s word is set. It sets their
// registers; they don't run. Release sets them back.
func (p *Process) Park() error {
	return p.t.Do(func() error {
		word, ok := p.Parked()
		if !ok {
			return nil
		}
		for _, th := range p.Threads {
			if th == p.stations.by || th.station == (region{}) || th.batch != nil || !th.stopped {
				continue
			}
			if err := th.park(word); err != nil {
				return err
			}
		}
		return nil
	})
}

func (th *Thread) park(word uint64) error {
	if err := th.checkDispatch(th.station); err != nil {
		return nil // it could make no call there
	}
	if err := th.leaveRestartable(); err != nil {
		return err
	}
	in := &injection{th: th, orig: th.regs, place: th.station}
	var err error
	if in.mask, err = getMask(th.TID); err != nil {
		return th.failed("read the signal mask of", err)
	}
	in.during = blockedDuring(in.mask)
	if in.away, err = th.resumed(in.orig); err != nil {
		return err
	}
	more, err := th.readExtra()
	if err != nil {
		return err
	}
	if err := th.p.writeMem(in.place.start, block(&in.away, &more, in.during, in.mask, 0, 0)); err != nil {
		return err
	}
	th.p.stations.parked = append(th.p.stations.parked, in)
	const futexWait = 0
	return in.aim(modeSingle, unix.SYS_FUTEX, word, futexWait, 0, 0)
}

// dismiss puts all parked threads back, and unmaps the stations.
func (p *Process) dismiss(ctx context.Context) error {
	s := p.stations
	if s == nil {
		return nil
	}
	p.stations = nil
	var errs []error
	for _, in := range s.parked {
		if in.th.gone || !in.th.stopped {
			continue
		}
		if err := setMask(in.th.TID, in.mask); err != nil {
			errs = append(errs, in.th.failed("restore the signal mask of", err))
			continue
		}
		errs = append(errs, in.th.writeRegs(&in.orig))
	}
	for _, th := range p.Threads {
		th.station = region{}
	}
	by := s.by
	if by.gone && len(p.Threads) > 0 {
		by = p.Threads[0]
	}
	_, err := by.Syscall(ctx, unix.SYS_MUNMAP, s.area.start, s.area.end-s.area.start)
	for _, err := range append(errs, err) {
		if err != nil && !errors.Is(err, ErrGone) {
			return fmt.Errorf("take away the stations of process %d: %w", p.PID, errors.Join(append(errs, err)...))
		}
	}
	return nil
}

// findStations looks for stations that a tracer which died has left.
func (p *Process) findStations() (region, bool, error) {
	text, err := os.ReadFile(p.proc("maps"))
	if err != nil {
		return region{}, false, fmt.Errorf("mappings of process %d: %w", p.PID, err)
	}
	for line := range bytes.Lines(text) {
		r, ok := anonymousCode(line)
		if !ok {
			continue
		}
		var head [len(stationsMark)]byte
		if p.readMem(r.start, head[:]) == nil && string(head[:]) == stationsMark {
			return r, true, nil
		}
	}
	return region{}, false, nil
}

// anonymousCode returns the range of a line of /proc/PID/maps if it is memory
// without a file that can be written and executed.
func anonymousCode(line []byte) (region, bool) {
	f := bytes.Fields(line)
	if len(f) != 5 || string(f[1]) != "rwxp" || string(f[4]) != "0" {
		return region{}, false
	}
	from, to, ok := bytes.Cut(f[0], []byte("-"))
	start, err1 := strconv.ParseUint(string(from), 16, 64)
	end, err2 := strconv.ParseUint(string(to), 16, 64)
	return region{start, end}, ok && err1 == nil && err2 == nil && start < end
}

// openStations lets threads that wait in stations which a tracer left go on.
func (p *Process) openStations(area region) error {
	var word [4]byte
	binary.NativeEndian.PutUint32(word[:], 1)
	return p.writeMem(area.start+uint64(stationsWord), word[:])
}

package swap

import (
	"context"
	"maps"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"spfs/internal/fusestate"
	"spfs/internal/mounts"
)

// steady is what the look before the stop has left: what everybody had by the
// kernel's tables, and how each user was read while that was so.
type steady struct {
	look   *kernelLook
	mounts []mountsSeen
}

// mountsSeen is a mount namespace and its table, which stays the same as long as
// nothing is mounted or unmounted there.
type mountsSeen struct {
	space *mounts.Space
	first *mounts.Mount
	n     int
}

// seeMounts sees those in which the file system is mounted.
func seeMounts(spaces []*mounts.Space, dev uint64) (seen []mountsSeen) {
	for _, s := range spaces {
		if slices.ContainsFunc(s.Table, func(m *mounts.Mount) bool { return m.Dev == dev }) {
			seen = append(seen, mountsSeen{s, s.Table[0], len(s.Table)})
		}
	}
	return seen
}

// refreshSame is Refresh where nothing has changed since the look before the stop
// but positions and sizes: it brings those up to date, and leaves everything else
// as it was planned. It reports false, having changed nothing that counts, if
// anything else has changed or can't be told; then all is to be looked at.
//
// What it relies on are the kernel's tables, read once for the whole machine,
// and for what else has to do with the file system what /proc alone can tell.
func (p *Plan) refreshSame(ctx context.Context) (bool, error) {
	now := p.lookSame(ctx)
	if now == nil {
		return false, nil
	}
	return p.takeSame(ctx, now)
}

// lookSame looks whether anything has changed, and returns nil if it has, or that
// can't be told. It changes nothing of the plan.
func (p *Plan) lookSame(ctx context.Context) *kernelLook {
	k := p.known
	k.stopped = p.Stopped
	was := k.steady
	if k.reader == nil || was == nil || p.abort || p.Silent() || len(p.Obstacles)+len(p.Usage.Watches) > 0 || !p.Usage.plain() {
		return nil
	}
	if err := k.watch.Refresh(ctx); err != nil {
		return nil // whoever looks at all tells it
	}
	if !slices.Equal(seeMounts(k.watch.Spaces(), p.From.Mount.Dev), was.mounts) {
		return nil
	}
	now, err := look(k.reader, p.From.Mount.Dev, slices.Collect(maps.Keys(k.users)))
	if err != nil || !k.unchanged(was.look, now) || !k.unchangedInProc(now) {
		return nil
	}
	return now
}

// takeSame brings the plan up to date by a look that has found nothing changed.
func (p *Plan) takeSame(ctx context.Context, now *kernelLook) (bool, error) {
	p.takeUses(now)
	if p.judgeOld(p.Usage); p.Silent() || len(signalObstacles(p.Usage)) > 0 {
		return false, nil
	}
	p.opener.final = true
	ok, err := p.opener.checkAgain(ctx)
	if !ok || err != nil {
		return false, err
	}
	p.known.steady.look = now
	return true, nil
}

// plain says that there is nothing of which more has to be known than the kernel's
// tables tell.
func (u *Usage) plain() bool {
	for _, d := range u.Descriptions {
		if d.attr.unlinked || d.isFIFO() {
			return false
		}
	}
	for _, s := range u.Spaces {
		if s.Exe != nil {
			return false
		}
		for _, m := range s.Mappings {
			if m.attr.unlinked {
				return false
			}
		}
	}
	return true
}

// unchanged says whether everybody has the same by the kernel's tables, and all
// users who are stopped have been read while they had just that.
func (k *knowledge) unchanged(before, now *kernelLook) bool {
	for pid, u := range now.uses {
		old := before.uses[pid]
		if old == nil {
			if u.device || u.busy || u.holds() {
				return false
			}
			continue
		}
		if k.users[pid] {
			if !u.same(old) {
				return false
			}
		} else if u.holds() || old.holds() || u.device != old.device {
			return false
		}
	}
	for pid, old := range before.uses {
		if now.uses[pid] == nil && (old.holds() || old.device) {
			return false
		}
	}
	for pid := range k.users {
		if now.uses[pid] == nil {
			return false
		}
	}
	return true
}

// holds says whether there is anything of the file system.
func (u *kernelUse) holds() bool { return len(u.files)+len(u.mappings)+len(u.places) > 0 }

// unchangedInProc says the same of what only /proc tells, of those who are stopped.
func (k *knowledge) unchangedInProc(now *kernelLook) bool {
	pids := slices.Collect(maps.Keys(k.stopped))
	var next atomic.Int64
	var changed atomic.Bool
	var wait sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), len(pids)) {
		wait.Add(1)
		go func() {
			defer wait.Done()
			buf := make([]byte, 4096)
			for i := next.Add(1) - 1; int(i) < len(pids) && !changed.Load(); i = next.Add(1) - 1 {
				pid := pids[i]
				if p := k.proven[pid]; p.visit == nil || !p.visit.unchanged(now.uses[pid], buf) {
					changed.Store(true)
				}
			}
		}()
	}
	wait.Wait()
	return !changed.Load()
}

// unchanged says whether a process that is stopped now is the one that was
// read, has the tasks that it had, and files of the same kinds.
func (v *visit) unchanged(use *kernelUse, buf []byte) bool {
	name := "/proc/" + strconv.Itoa(v.pid)
	var st unix.Stat_t
	if unix.Stat(name, &st) != nil || st.Ino != v.inode || use == nil {
		return false
	}
	dir, err := openProcDir(name)
	if err != nil {
		return false
	}
	defer dir.close()
	text, err := dir.record("stat", buf)
	if err != nil {
		return false
	}
	stat, err := parseStat(text)
	r := v.reading
	if err != nil || stat.gone() || !r.sameTasks(dir, &stat, &reader{large: buf}) {
		return false
	}
	return r.sameKinds(dir, buf)
}

// sameKinds says whether the files of the process that others can change while it
// is stopped have to do with the file system what they had.
func (r *reading) sameKinds(dir procDir, buf []byte) bool {
	if len(r.kinds.epollFDs)+len(r.kinds.epolls)+len(r.kinds.inotifies)+len(r.kinds.obstacles)+len(r.kinds.doubts) > 0 {
		return false
	}
	now := kindsRead{}
	for _, ref := range r.kinds.refs {
		text, err := dir.record(ref.below()+"fdinfo/"+strconv.Itoa(ref.FD), buf)
		if err != nil {
			return false
		}
		info, err := parseFDInfo(text)
		if err != nil || len(info.watches) > 0 {
			return false
		}
		(&scanner{}).readKind(&now, r.process, ref, &info)
	}
	return reflect.DeepEqual(now, r.kinds)
}

// takeUses brings positions and sizes up to date.
func (p *Plan) takeUses(now *kernelLook) {
	files := map[int]map[int]*fusestate.File{}
	for pid, u := range now.uses {
		of := make(map[int]*fusestate.File, len(u.files))
		for i := range u.files {
			of[u.files[i].FD] = &u.files[i]
		}
		files[pid] = of
	}
	for _, d := range p.Usage.Descriptions {
		f := files[d.Refs[0].PID][d.Refs[0].FD]
		if f == nil {
			continue // it would not be the same
		}
		if d.Type != unix.S_IFDIR {
			d.NewPos = f.Pos
		}
		d.Pos, d.attr.Size = f.Pos, uint64(f.Size)
	}
	for _, s := range p.Usage.Spaces {
		u := now.uses[s.Tasks[0].PID]
		for _, m := range s.Mappings {
			for i := range u.mappings {
				if u.mappings[i].Start == m.Start {
					m.attr.Size = uint64(u.mappings[i].Size)
				}
			}
		}
	}
}

// checkAgain is the check of fill, when everybody is stopped and wants what was
// wanted before. It reports false if anything is in the way.
func (o *opener) checkAgain(ctx context.Context) (bool, error) {
	if err := o.plan.forgetNames(ctx); err != nil {
		return false, err
	}
	var again []*opening
	for _, j := range o.jobsBefore {
		if j.got == nil {
			continue
		}
		if j.ref.TID != 0 {
			j.pos = j.description.Pos
		}
		if j.compares && (j.got.size != int64(j.attr.Size) || o.written[j.want.ino]) || j.readsDir {
			j.obstacles = nil
			again = append(again, j)
		}
	}
	if err := each(ctx, again, o.check); err != nil {
		return false, err
	}
	for _, j := range again {
		if len(j.obstacles) > 0 {
			return false, nil
		}
		j.done(j.got)
	}
	return true, nil
}

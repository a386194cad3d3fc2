package test

import (
	"encoding/binary"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// event is one of inotify(7).
type event struct {
	watch int
	mask  uint32
	name  string
}

// events reads what an inotify descriptor of O_NONBLOCK has.
func events(t *testing.T, p *rig.Puppet, fd int) (list []event) {
	t.Helper()
	b := make([]byte, 64<<10)
	n, err := p.Call(unix.SYS_READ, fd, b, len(b))
	if err == unix.EAGAIN {
		return nil
	}
	if err != nil {
		t.Fatalf("reading fd %d: %v", fd, err)
	}
	for b = b[:n]; len(b) >= unix.SizeofInotifyEvent; {
		size := int(binary.NativeEndian.Uint32(b[12:]))
		name := b[unix.SizeofInotifyEvent:][:size]
		list = append(list, event{
			int(int32(binary.NativeEndian.Uint32(b))), binary.NativeEndian.Uint32(b[4:]), strings.TrimRight(string(name), "\x00"),
		})
		b = b[unix.SizeofInotifyEvent+size:]
	}
	return list
}

// watches is what fdinfo says of an inotify, but for the files.
func watches(t *testing.T, p *rig.Puppet, fd int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", p.PID, fd))
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "inotify ") {
			lines = append(lines, regexp.MustCompile(` ino:.* mask`).ReplaceAllString(strings.TrimSpace(line), " mask"))
		}
	}
	slices.Sort(lines)
	return regexp.MustCompile(` ignored_mask.*`).ReplaceAllString(strings.Join(lines, "\n"), "")
}

func watch(t *testing.T, p *rig.Puppet, fd int, path string, mask int) int {
	t.Helper()
	return p.Must(unix.SYS_INOTIFY_ADD_WATCH, fd, path, mask)
}

func TestSwapKeepsInotifyWatches(t *testing.T) {
	t.Parallel()
	// One that has nothing of the mount but watches, and one that has more.
	for name, opens := range map[string]bool{"only watches": false, "files too": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := bindfsTwice(t)
			elsewhere := rig.Dir(t)
			m.put(t, "dir/f", "x")
			m.put(t, "g", "x")
			m.put(t, "once", "x")
			p := rig.StartPuppet(t)
			if opens {
				locked(t, p, p.Open(m.old+"/g", unix.O_RDWR), unix.F_SETLK, unix.F_RDLCK, 0, 0)
				p.Chdir(m.old + "/dir")
			}
			fd := p.Must(unix.SYS_INOTIFY_INIT1, unix.IN_NONBLOCK)
			for range 3 { // numbers are not given again at once
				p.Must(unix.SYS_INOTIFY_RM_WATCH, fd, watch(t, p, fd, m.old, unix.IN_CREATE))
			}
			other := watch(t, p, fd, elsewhere, unix.IN_CREATE)
			file := watch(t, p, fd, m.old+"/g", unix.IN_MODIFY|unix.IN_ATTRIB)
			dir := watch(t, p, fd, m.old+"/dir", unix.IN_ALL_EVENTS&^(unix.IN_OPEN|unix.IN_ACCESS|unix.IN_CLOSE))
			top := watch(t, p, fd, m.old, unix.IN_CREATE|unix.IN_DELETE|unix.IN_EXCL_UNLINK)
			once := watch(t, p, fd, m.old+"/once", unix.IN_MODIFY|unix.IN_ONESHOT)
			second := p.Must(unix.SYS_INOTIFY_INIT1, unix.IN_NONBLOCK|unix.IN_CLOEXEC)
			secondDir := watch(t, p, second, m.old+"/dir", unix.IN_CREATE)
			child := p.Spawn(fork) // shares the instances
			events(t, p, fd)
			before, fds := watches(t, p, fd)+"\n"+watches(t, p, second), rig.CountFDs(t, p.PID)

			m.swap(t)
			if got := watches(t, p, fd) + "\n" + watches(t, p, second); got != before {
				t.Errorf("watched are\n%s\nwant\n%s", got, before)
			}
			for _, number := range []int{fd, second} {
				if got := events(t, p, number); got != nil {
					t.Errorf("the swap is to be seen: %v", got)
				}
			}
			if got := rig.CountFDs(t, p.PID); got != fds {
				t.Errorf("%d descriptors, and there were %d", got, fds)
			}
			stranger := rig.StartPuppet(t)
			stranger.Close(stranger.Open(m.new+"/dir/"+name, unix.O_WRONLY|unix.O_CREAT))
			stranger.Write(stranger.Open(m.new+"/g", unix.O_WRONLY), "y")
			stranger.Close(stranger.Open(m.new+"/"+name, unix.O_WRONLY|unix.O_CREAT))
			stranger.Write(stranger.Open(m.new+"/once", unix.O_WRONLY), "y")
			rig.Write(t, elsewhere+"/"+name, "")
			want := []event{
				{dir, unix.IN_CREATE, name}, {file, unix.IN_MODIFY, ""}, {top, unix.IN_CREATE, name},
				{once, unix.IN_MODIFY, ""}, {once, unix.IN_IGNORED, ""}, {other, unix.IN_CREATE, name},
			}
			if got := events(t, child, fd); !slices.Equal(got, want) {
				t.Errorf("events are %v, want %v", got, want)
			}
			if got := events(t, p, second); !slices.Equal(got, []event{{secondDir, unix.IN_CREATE, name}}) {
				t.Errorf("events of the second are %v", got)
			}
			p.Must(unix.SYS_INOTIFY_RM_WATCH, fd, dir)
			if got := events(t, p, fd); !slices.Equal(got, []event{{dir, unix.IN_IGNORED, ""}}) {
				t.Errorf("after the end of the watch events are %v", got)
			}
			if fresh := watch(t, p, fd, "/", unix.IN_CREATE); fresh <= once {
				t.Errorf("a new watch got the number %d, which is not beyond %d", fresh, once)
			}
		})
	}
}

// Who waits for events goes on waiting, and gets them.
func TestSwapOfInotifyReader(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	p := rig.StartPuppet(t)
	fd := p.Must(unix.SYS_INOTIFY_INIT1, 0)
	wd := watch(t, p, fd, m.old, unix.IN_CREATE)
	b := make([]byte, 4096)
	reads := p.Start(unix.SYS_READ, fd, b, len(b))
	awaitCall(t, p, unix.SYS_READ)
	m.swap(t)
	if reads.Done() {
		t.Fatal("the read has ended")
	}
	stranger := rig.StartPuppet(t)
	stranger.Open(m.new+"/f", unix.O_WRONLY|unix.O_CREAT)
	if n, err := reads.Wait(); n != unix.SizeofInotifyEvent+16 || err != nil {
		t.Errorf("the read returns %d (%v)", n, err)
	}
	p.Must(unix.SYS_INOTIFY_RM_WATCH, fd, wd)
}

// A watch that can't be made there takes everyone back, to the watches that
// there were.
func TestSwapOfInotifyThatCannotBe(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	m.put(t, "f", "x")
	m.put(t, "g", "x")
	m.put(t, "h", "x")
	p := rig.StartPuppet(t)
	fd := p.Must(unix.SYS_INOTIFY_INIT1, unix.IN_NONBLOCK)
	one := watch(t, p, fd, m.old+"/f", unix.IN_MODIFY)
	two := watch(t, p, fd, m.old+"/g", unix.IN_MODIFY)
	watch(t, p, fd, m.new+"/g", unix.IN_MODIFY) // there can't be two
	before := watches(t, p, fd)
	fds := rig.CountFDs(t, p.PID)
	m.unchangedBy(t, p, func() {
		rig.Run(t, rig.Build(t).Swap, "run", "--from", m.old, "--to", m.new).Fails(t, 1, itoa(p.PID), "inotify")
	})
	if got := watches(t, p, fd); got != before {
		t.Errorf("watched are\n%s\nwant\n%s", got, before)
	}
	if got := events(t, p, fd); got != nil {
		t.Errorf("the attempt is to be seen: %v", got)
	}
	if got := rig.CountFDs(t, p.PID); got != fds {
		t.Errorf("%d descriptors, and there were %d", got, fds)
	}
	stranger := rig.StartPuppet(t)
	for _, name := range []string{"f", "g"} {
		stranger.Write(stranger.Open(m.old+"/"+name, unix.O_WRONLY), "y")
	}
	if got := events(t, p, fd); !slices.Equal(got, []event{{one, unix.IN_MODIFY, ""}, {two, unix.IN_MODIFY, ""}}) {
		t.Errorf("events are %v", got)
	}
}

// Events that are read late keep everyone waiting, and stopped nobody.
func TestSwapWaitsForEventsToBeRead(t *testing.T) {
	t.Parallel()
	m := bindfsTwice(t)
	p := rig.StartPuppet(t)
	fd := p.Must(unix.SYS_INOTIFY_INIT1, unix.IN_NONBLOCK)
	wd := watch(t, p, fd, m.old, unix.IN_CREATE)
	rig.StartPuppet(t).Open(m.old+"/f", unix.O_WRONLY|unix.O_CREAT)
	m.unchangedBy(t, p, func() {
		rig.Run(t, rig.Build(t).Swap, "plan", "--from", m.old, "--to", m.new, "--pid", itoa(p.PID)).Refuses(t, itoa(p.PID), "inotify", "unread")
	})
	if got := events(t, p, fd); !slices.Equal(got, []event{{wd, unix.IN_CREATE, "f"}}) {
		t.Errorf("events are %v", got)
	}
	m.swap(t)
}

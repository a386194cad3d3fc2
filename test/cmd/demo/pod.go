package main

import (
	"fmt"

	"spfs/test/rig"
)

// pod is the story of a container that runs its own FUSE daemon: both go through
// the checkpoint, and the mount with them.
func (d *demo) pod() {
	t := d.t
	programs := rig.Build(t)
	p := rig.StartPod(t, rig.PodBindfs(t, "bindfs"), rig.CounterOptions{FDs: 3, Lists: true})
	w := p.Counter.Workers[0]
	p.Counter.CountsOn(500)
	fmt.Println()
	d.say("Another container runs its own bindfs (process %d), which serves /data at /mnt,", p.Daemon())
	d.more("and a client (process %d) that also lists a directory bit by bit and keeps an unlinked file: %d counts.", p.Counter.PID, w.Count())

	running := rig.Mkdir(t, d.top, "images-running")
	r := rig.SPFS(t, "dump", "--tree", fmt.Sprint(p.PID), "--images-dir", running, "--leave-running", "--criu", programs.CRIU).OK(t)
	before := p.Counter.PID
	p.Counter.CountsOn(100)
	if !rig.Alive(before) {
		t.Fatalf("the client is gone")
	}
	d.say("spfs dump --leave-running: checkpointed, daemon and all, in %v. Both run on.", ms(r.Took))

	images := rig.Mkdir(t, d.top, "images-pod")
	r = rig.SPFS(t, "dump", "--tree", fmt.Sprint(p.PID), "--images-dir", images, "--criu", programs.CRIU).OK(t)
	p.NotRunning()
	at := w.Count()
	d.say("spfs dump: in %v, %d KiB. Everything is gone: client, daemon and mount. The client had counted to %d.", ms(r.Took), size(images)>>10, at)

	r = rig.SPFS(t, "restore", "--images-dir", images, "--detach", "--criu", programs.CRIU, "--", "--root", p.Root).OK(t)
	p.Restored()
	p.Counter.CountsOn(500)
	d.say("spfs restore: all are back in %v, the daemon on a new connection that has its nodes and handles.", ms(r.Took))
	p.Counter.Check()
	counts := p.Counter.Count()
	bytes := p.Counter.End(p.Data)
	if !t.Failed() {
		d.say("Checked: %d counts; no call failed, nobody waited for anything but CRIU; %d bytes compared.", counts, bytes)
	}
}

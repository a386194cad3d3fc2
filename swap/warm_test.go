package swap

import (
	"context"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"spfs/test/rig"
)

// What is copied into a new private mapping need not be read before.
func TestWarmReadsWhatIsCopiedOver(t *testing.T) {
	m := newTwoMounts(t)
	m.write(t, "file", strings.Repeat("x", 400*pageSize))
	p := rig.StartPuppet(t)
	fd := p.Open(m.old+"/file", unix.O_RDONLY)
	at := p.Mmap(fd, 300*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	plan := m.plan(t, Scope{})
	replacement := plan.Usage.Spaces[0].Mappings[0].Replacement
	warm(context.Background(), plan.Usage)
	if n := cachedPages(int(replacement.Fd())); n != 0 {
		t.Errorf("nothing was written to, and %d pages were read", n)
	}
	p.Store(at+250*pageSize, []byte("its own"))
	warm(context.Background(), plan.Usage)
	page := unix.CachestatRange{Off: 250 * pageSize, Len: pageSize}
	var st unix.Cachestat_t
	if err := unix.Cachestat(uint(replacement.Fd()), &page, &st, 0); err != nil || st.Cache != 1 {
		t.Errorf("page 250 was written to, and of it %d pages were read (%v)", st.Cache, err)
	}
}

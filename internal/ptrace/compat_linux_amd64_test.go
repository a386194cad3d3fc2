package ptrace

import (
	"errors"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSeize32Bit(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "compat")
	if out, err := exec.Command("cc", "-m32", "-nostdlib", "-static", "-o", bin, "testdata/compat.S").CombinedOutput(); err != nil {
		t.Fatalf("cc: %v\n%s", err, out)
	}
	if err := exec.Command(bin, "try").Run(); errors.Is(err, unix.ENOEXEC) {
		// This kernel runs no 32-bit program, so there is none to seize: what
		// is left to go wrong is how the registers of one are read.
		const user32CS = 0x23 // arch/x86/include/asm/segment.h, __USER32_CS
		if supported(&Regs{Cs: user32CS}) || !supported(&Regs{Cs: userCS}) {
			t.Error("code segments are taken for what they are not")
		}
		return
	}
	f := run(t, exec.Command(bin))
	tr, ctx := newTracer(t), withTime(t)
	if _, err := tr.Seize(ctx, f.pid); !errors.Is(err, ErrArch) {
		t.Errorf("%v, want ErrArch", err)
	}
	untouched(t, f.pid)
}

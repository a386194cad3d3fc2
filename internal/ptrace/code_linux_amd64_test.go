package ptrace

import "testing"

func TestArithmeticFlags(t *testing.T) {
	for _, c := range []struct{ flags, want uint64 }{
		{0, 0}, {0xd5, 0xd500}, {1 << 11, 0x7f}, {0x246, 0x4600}, {0xa97, 0x977f},
	} {
		if got := arithmeticFlags(c.flags); got != c.want {
			t.Errorf("%#x: %#x, want %#x", c.flags, got, c.want)
		}
	}
}

package bytetext

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// Text is a byte string of the kernel's, such as a path: not always UTF-8,
// which JSON must be. It is written with "%XX" for a percent sign and for
// each byte that is not part of valid UTF-8.
type Text string

// MarshalText implements encoding.TextMarshaler.
func (t Text) MarshalText() ([]byte, error) {
	var b bytes.Buffer
	for i, r := range string(t) {
		// Ranging over a string gives U+FFFD both for itself and for a
		// byte that is no UTF-8; only the former is three bytes long.
		invalid := r == '\uFFFD' && !strings.HasPrefix(string(t[i:]), "\uFFFD")
		if r == '%' || invalid {
			fmt.Fprintf(&b, "%%%02X", t[i])
		} else {
			b.WriteRune(r)
		}
	}
	return b.Bytes(), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (t *Text) UnmarshalText(in []byte) error {
	out := make([]byte, 0, len(in))
	for i := 0; i < len(in); i++ {
		if in[i] != '%' {
			out = append(out, in[i])
			continue
		}
		if i+2 >= len(in) {
			return fmt.Errorf("%q: cut off after %%", in)
		}
		v, err := strconv.ParseUint(string(in[i+1:i+3]), 16, 8)
		if err != nil {
			return fmt.Errorf("%q: not hexadecimal after %%", in)
		}
		out = append(out, byte(v))
		i += 2
	}
	*t = Text(out)
	return nil
}

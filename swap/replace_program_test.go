package swap

import (
	"os"
	"testing"
)

// tableOf makes a table of n descriptors, each of a description of its own.
func tableOf(n int) *FDTable {
	t := &FDTable{}
	for i := range n {
		t.FDs = append(t.FDs, FD{Num: 3 + i, CloseOnExec: i%2 == 0, Description: &Description{Replacement: os.Stdin}})
	}
	return t
}

func TestProgramSendsWhatItReceives(t *testing.T) {
	v, err := newVerdict(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer v.close()
	for _, c := range []struct {
		name     string
		job      job
		room     int
		messages []int // descriptions in each
		mappings int
	}{
		{"descriptors", job{table: tableOf(3)}, 100, []int{1, 3}, 0},
		{"more descriptors than one message takes", job{table: tableOf(600)}, 1000, []int{1, 253, 253, 94}, 0},
		{"more descriptors than there is room for", job{table: tableOf(5)}, 2, []int{1, 2, 2, 1}, 0},
		{"directories", job{context: &FSContext{Cwd: &Directory{}}}, 10, []int{1, 4}, 0},
		{"mappings of two files, one of them twice", job{space: &AddressSpace{Mappings: []*Mapping{
			{Start: 0x1000, End: 0x2000, Replacement: os.Stdin},
			{Start: 0x3000, End: 0x4000, Replacement: os.Stdout, Shared: true},
			{Start: 0x5000, End: 0x6000, Replacement: os.Stdin},
		}}}, 10, []int{1, 2}, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newProgram(&c.job, v, c.room)
			var got []int
			for _, m := range p.messages {
				got = append(got, len(m))
			}
			if len(got) != len(c.messages) {
				t.Fatalf("messages of %v descriptions, want %v", got, c.messages)
			}
			for i := range got {
				if got[i] != c.messages[i] {
					t.Errorf("messages of %v descriptions, want %v", got, c.messages)
					break
				}
			}
			if len(p.moved) != c.mappings {
				t.Errorf("%d mappings moved, want %d", len(p.moved), c.mappings)
			}
		})
	}
}

func TestParseOpenFilesLimit(t *testing.T) {
	const text = "Limit                     Soft Limit           Hard Limit           Units     \n" +
		"Max processes             96364                96364                processes \n" +
		"Max open files            1024                 524288               files     \n"
	if got, err := parseOpenFilesLimit(text); err != nil || got != 1024 {
		t.Errorf("limit %d (%v), want 1024", got, err)
	}
	for _, bad := range []string{"", "Max open files", "Max open files unlimited unlimited files\n"} {
		if got, err := parseOpenFilesLimit(bad); err == nil {
			t.Errorf("%q gave a limit of %d and no error", bad, got)
		}
	}
}

func FuzzParseOpenFilesLimit(f *testing.F) {
	f.Add("Max open files            1024                 524288               files     \n")
	f.Add("Max open files            10000000000000000000 524288               files     \n")
	f.Fuzz(func(t *testing.T, text string) {
		if n, err := parseOpenFilesLimit(text); err != nil && n != 0 {
			t.Errorf("%d and an error: %v", n, err)
		}
	})
}

func BenchmarkNewProgram(b *testing.B) {
	v, err := newVerdict(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer v.close()
	j := &job{table: tableOf(1000)}
	for range b.N {
		newProgram(j, v, 2000)
	}
}

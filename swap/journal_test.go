package swap

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// inDirectory has journals in a directory of the test's own.
func inDirectory(t *testing.T) {
	t.Helper()
	journalDirectory = filepath.Join(t.TempDir(), "spfs")
	t.Cleanup(func() { journalDirectory = defaultJournalDirectory })
}

func someRecord() *runRecord {
	return &runRecord{
		Version: journalVersion, PID: 7, Began: time.Unix(1, 0).UTC(),
		From:      endpointRecord{Path: []byte("old\xff"), Point: []byte("/mnt/old\xff"), Root: []byte("/"), Dev: 41, Mount: 3},
		To:        endpointRecord{Path: []byte("new"), Point: []byte("/mnt/new"), Root: []byte("/"), Dev: 42, Mount: 4},
		Processes: []processRecord{{100, 5}, {101, 6}},
		Mounts:    []mountRecord{{ID: 3, Unique: 1 << 40, Point: []byte("/mnt/old\xff"), Root: []byte("/"), Parent: 1, Group: 2}},
		Made:      []madeRecord{{Name: []byte(newName()), In: [][]byte{[]byte("/dir\xff"), []byte("/")}}},
	}
}

func TestJournalKeepsItsRecord(t *testing.T) {
	inDirectory(t)
	j, err := newJournal()
	if err != nil {
		t.Fatal(err)
	}
	defer j.close()
	if r, err := j.read(); r != nil || err != nil {
		t.Fatalf("a new journal has the record %v (%v)", r, err)
	}
	want := someRecord()
	for range 2 { // the second replaces the first
		if err := j.write(want); err != nil {
			t.Fatal(err)
		}
		got, err := j.read()
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("read %+v (%v), want %+v", got, err, want)
		}
	}
	for _, name := range []string{"", "journal"} {
		st, err := os.Stat(filepath.Join(j.path, name))
		if err != nil || st.Mode()&0o077 != 0 {
			t.Errorf("%s/%s has mode %v (%v)", j.path, name, st.Mode(), err)
		}
	}
	if err := j.remove(); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(journalDirectory); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestJournalOfARunUnderWayIsNotTaken(t *testing.T) {
	inDirectory(t)
	j, err := newJournal()
	if err != nil {
		t.Fatal(err)
	}
	defer j.close()
	if err := j.write(someRecord()); err != nil {
		t.Fatal(err)
	}
	if other, err := openJournal(j.path, unix.LOCK_EX|unix.LOCK_NB); err == nil {
		other.close()
		t.Error("it was locked twice")
	}
	if err := refuseAfterCutOff(41); err != nil {
		t.Errorf("a run under way counts as cut off: %v", err)
	}
	j.close()
	if err := refuseAfterCutOff(41); err == nil {
		t.Error("a run that was cut off does not keep others from the mount")
	}
	if err := refuseAfterCutOff(40); err != nil {
		t.Errorf("it keeps others from another mount: %v", err)
	}
}

func TestRecordIsNotBelieved(t *testing.T) {
	for _, text := range []string{
		``, `{}`, `[]`, `{"version":2,"pid":1}`,
		`{"version":1,"pid":0}`,
		`{"version":1,"pid":5,"processes":[{"pid":1}]}`,
		`{"version":1,"pid":5,"from":{"point":"Li4=","root":"Lw=="},"to":{"point":"Lw==","root":"Lw=="}}`,
		`{"version":1,"pid":5,"from":{"point":"Lw==","root":"Lw=="},"to":{"point":"Lw==","root":"Lw=="},"mounts":[{"id":1,"point":"L2EvLi4vYg==","root":"Lw=="}]}`,
	} {
		if r, err := parseRecord([]byte(text)); err == nil {
			t.Errorf("%s is read as %+v", text, r)
		}
	}
}

func FuzzParseRecord(f *testing.F) {
	f.Add([]byte(`{"version":1,"pid":5,"from":{"point":"Lw==","root":"Lw=="},"to":{"point":"Lw==","root":"Lw=="}}`))
	f.Add([]byte(`{"version":1,"pid":5,"processes":[{"pid":9,"start":1}],"mounts":[{"id":1,"point":"L2E=","root":"Lw=="}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := parseRecord(text)
		if err != nil {
			return
		}
		for _, p := range r.Processes {
			if p.PID <= 1 {
				t.Errorf("process %d", p.PID)
			}
		}
		for _, m := range r.Mounts {
			if !cleanPath(m.Point) || !cleanPath(m.Root) {
				t.Errorf("mount at %q", m.Point)
			}
		}
	})
}

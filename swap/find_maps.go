package swap

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// mapLine is one line of /proc/PID/maps (fs/proc/task_mmu.c show_map_vma).
type mapLine struct {
	start, end uint64
	offset     uint64
	prot       int
	shared     bool
	ino        uint64
	vmFlags    []string // two letters each, from smaps; nil until read
	key        int      // protection key, likewise
	dirty      int64    // bytes that the file has not been told yet, of a shared one; from smaps
}

var errMapLine = errors.New("not understood")

// deviceText is a device as maps prints it.
func deviceText(dev uint64) []byte {
	return fmt.Appendf(nil, "%02x:%02x", unix.Major(dev), unix.Minor(dev))
}

// parseMapLine reads "start-end perms offset dev inode path". onDev is false,
// and the rest is not looked at, when dev (as of [deviceText]) is another.
// The path is not read: it is ambiguous here, and the map_files link is not.
func parseMapLine(line, dev []byte) (m mapLine, onDev bool, err error) {
	fields := bytes.SplitN(line, []byte(" "), 6)
	if len(fields) < 5 {
		return m, false, fmt.Errorf("maps line %q: %w", line, errMapLine)
	}
	if !bytes.Equal(fields[3], dev) {
		return m, false, nil
	}
	from, to, _ := strings.Cut(string(fields[0]), "-")
	var errs [4]error
	m.start, errs[0] = strconv.ParseUint(from, 16, 64)
	m.end, errs[1] = strconv.ParseUint(to, 16, 64)
	m.offset, errs[2] = strconv.ParseUint(string(fields[2]), 16, 64)
	m.ino, errs[3] = strconv.ParseUint(string(fields[4]), 10, 64)
	perms := fields[1]
	if errors.Join(errs[:]...) != nil || len(perms) != 4 || m.start >= m.end {
		return m, false, fmt.Errorf("maps line %q: %w", line, errMapLine)
	}
	if perms[0] == 'r' {
		m.prot |= unix.PROT_READ
	}
	if perms[1] == 'w' {
		m.prot |= unix.PROT_WRITE
	}
	if perms[2] == 'x' {
		m.prot |= unix.PROT_EXEC
	}
	m.shared = perms[3] == 's'
	return m, true, nil
}

// parseMaps picks the mappings of a device out of a maps file.
func parseMaps(text []byte, dev uint64) ([]mapLine, error) {
	want := deviceText(dev)
	var found []mapLine
	for len(text) > 0 {
		var line []byte
		line, text = cutLine(text)
		m, ok, err := parseMapLine(line, want)
		if err != nil {
			return nil, err
		}
		if ok {
			found = append(found, m)
		}
	}
	return found, nil
}

// parseSmaps is parseMaps for a smaps file, which has VmFlags too.
func parseSmaps(text []byte, dev uint64) ([]mapLine, error) {
	want := deviceText(dev)
	var found []mapLine
	ours := false
	for len(text) > 0 {
		var line []byte
		line, text = cutLine(text)
		key, value, _ := bytes.Cut(line, []byte(" "))
		if !bytes.HasSuffix(key, []byte(":")) { // the line that maps has too
			m, ok, err := parseMapLine(line, want)
			if err != nil {
				return nil, err
			}
			if ours = ok; ok {
				found = append(found, m)
			}
			continue
		}
		if !ours {
			continue
		}
		last := &found[len(found)-1]
		switch string(key) {
		case "VmFlags:":
			last.vmFlags = strings.Fields(string(value))
		case "ProtectionKey:":
			var err error
			if last.key, err = protectionKey(value); err != nil {
				return nil, err
			}
		case "Shared_Dirty:", "Private_Dirty:": // by how many map the page
			n, err := strconv.ParseInt(string(bytes.TrimSuffix(bytes.TrimSpace(value), []byte(" kB"))), 10, 50)
			if err != nil || n < 0 {
				return nil, fmt.Errorf("smaps line %q: %w", line, errMapLine)
			}
			if last.shared {
				last.dirty += n << 10
			}
		}
	}
	return found, nil
}

// plainFlags are the VmFlags that mmap(2) and mprotect(2) bring back by
// themselves: rights, what rights may become, sharing, accounting, and the
// soft-dirty mark, which says nothing to the process.
var plainFlags = map[string]bool{
	"rd": true, "wr": true, "ex": true, "sh": true,
	"mr": true, "mw": true, "me": true, "ms": true,
	"ac": true, "sd": true,
}

// flagMeanings says what some VmFlags mean (Documentation/filesystems/proc.rst).
var flagMeanings = map[string]string{
	"wf": "advised MADV_WIPEONFORK",
	"um": "watched by userfaultfd",
	"uw": "write-protected by userfaultfd",
	"ui": "watched by userfaultfd for minor faults",
	"sf": "mapped with MAP_SYNC",
	"gd": "growing downwards",
	"ht": "of huge pages",
	"de": "not to be expanded",
	"gu": "with guard regions",
	"sl": "sealed (mseal)",
	"mm": "of mixed pages (DAX)",
	"pf": "of raw page frames",
	"io": "of device memory",
}

// oddFlags says what about a mapping can't be brought back. What must be said
// again of the new one is noted in state.
func (m *mapLine) oddFlags(state *mappingState) []string {
	var odd []string
	if m.key != 0 {
		odd = append(odd, fmt.Sprintf("under the protection key %d (pkey_mprotect)", m.key))
	}
	for _, f := range m.vmFlags {
		if plainFlags[f] || state.take(f) {
			continue
		}
		meaning := flagMeanings[f]
		if meaning == "" {
			meaning = "of the unknown kind " + strconv.Quote(f)
		}
		odd = append(odd, meaning)
	}
	return odd
}

// mayWrite says whether mprotect could make the mapping writable.
func (m *mapLine) mayWrite() bool {
	for _, f := range m.vmFlags {
		if f == "mw" {
			return true
		}
	}
	return false
}

package handover

import "spfs/internal/proctree"

// describe names a process in a message.
func describe(pid int) string { return "process " + proctree.Name(pid) }

// zombie says whether a process has ended, waited for or not.
func zombie(pid int) bool {
	fields, err := proctree.Stat(pid)
	return err != nil || fields[0] == "Z" || fields[0] == "X"
}

// startOf tells a process from others that have its pid, at other times.
func startOf(pid int) (string, error) {
	fields, err := proctree.Stat(pid)
	if err != nil {
		return "", err
	}
	return fields[19], nil // the 22nd of proc_pid_stat(5)
}

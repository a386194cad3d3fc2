package swap

import "slices"

// ahead is what was made of a plan while everybody ran: for a plan that still is
// as it was when all are stopped, nothing need be written then.
type ahead struct {
	usage *Usage
	all   [][]*job // by process
}

// writeAhead writes the programs of the plan's jobs, as far as they don't depend
// on what can be made in the stop only. A job that comes to nothing is written
// then, if it still is wanted.
func writeAhead(p *Plan, v *verdict) *ahead {
	a := &ahead{p.Usage, jobs(p.Usage)}
	for _, j := range slices.Concat(a.all...) {
		if !j.foreseeable() {
			continue
		}
		if _, err := j.programNow(p, v); err != nil {
			j.close()
		}
	}
	return a
}

// close gives up what was not taken.
func (a *ahead) close() {
	if a == nil {
		return
	}
	for _, j := range slices.Concat(a.all...) {
		j.close()
	}
}

// jobs are those written ahead if u is what they are for, and new ones if not.
func (a *ahead) jobs(u *Usage) [][]*job {
	if a == nil || a.usage != u {
		return jobs(u)
	}
	return a.all
}

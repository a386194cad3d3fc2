package swap

// placeInDirectory finds the position in the new directory that the old
// position stands for.
func (o *opener) placeInDirectory(j *opening) {
	if j.pos == 0 {
		j.got.pos, j.got.newPos, j.got.posSet = 0, 0, true
		return
	}
	j.refuse("it is being read, and its position can't be told on --to", "let it finish the directory")
}

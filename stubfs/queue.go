package stubfs

// queue is a list of requests by the order of their arrival, from which any
// can be removed at once.
type queue struct{ first, last *held }

// push adds the newest.
func (q *queue) push(h *held) { q.after(q.last, h) }

// insert adds one that has arrived earlier than some in the queue.
func (q *queue) insert(h *held) {
	at := q.last
	for at != nil && at.seq > h.seq {
		at = at.prev
	}
	q.after(at, h)
}

// after links h in behind at, or as the first if at is nil.
func (q *queue) after(at, h *held) {
	next := q.first
	if at != nil {
		next = at.next
		at.next = h
	} else {
		q.first = h
	}
	h.prev, h.next = at, next
	if next != nil {
		next.prev = h
	} else {
		q.last = h
	}
}

func (q *queue) remove(h *held) {
	if h.prev != nil {
		h.prev.next = h.next
	} else {
		q.first = h.next
	}
	if h.next != nil {
		h.next.prev = h.prev
	} else {
		q.last = h.prev
	}
	h.prev, h.next = nil, nil
}

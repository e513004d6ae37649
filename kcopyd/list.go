package kcopyd

// A job is in up to two lists at a time: always in the list of all jobs, and
// in that of its state.
const (
	listAll   = iota // submitted, callback not returned, in order of submission
	listQueue        // wants a segment
	listDone         // wants its callback
	listKinds
)

type link struct{ prev, next *Job }

// list is a doubly linked list through the jobs themselves.
type list struct {
	kind       int
	head, tail *Job
	n          int
}

func (l *list) pushTail(j *Job) {
	k := &j.links[l.kind]
	k.prev, k.next = l.tail, nil
	if l.tail != nil {
		l.tail.links[l.kind].next = j
	} else {
		l.head = j
	}
	l.tail = j
	l.n++
	j.in[l.kind] = true
}

func (l *list) pushHead(j *Job) {
	k := &j.links[l.kind]
	k.prev, k.next = nil, l.head
	if l.head != nil {
		l.head.links[l.kind].prev = j
	} else {
		l.tail = j
	}
	l.head = j
	l.n++
	j.in[l.kind] = true
}

func (l *list) remove(j *Job) {
	k := &j.links[l.kind]
	if k.prev != nil {
		k.prev.links[l.kind].next = k.next
	} else {
		l.head = k.next
	}
	if k.next != nil {
		k.next.links[l.kind].prev = k.prev
	} else {
		l.tail = k.prev
	}
	*k = link{}
	l.n--
	j.in[l.kind] = false
}

// segList is a FIFO of segments.
type segList struct{ head, tail *segment }

func (l *segList) pushTail(s *segment) {
	s.next = nil
	if l.tail != nil {
		l.tail.next = s
	} else {
		l.head = s
	}
	l.tail = s
}

func (l *segList) pop() *segment {
	s := l.head
	l.head = s.next
	if l.head == nil {
		l.tail = nil
	}
	s.next = nil
	return s
}

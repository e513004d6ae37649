package mirror

import (
	"fmt"
	"strconv"
	"strings"
)

// Without a leg record the kernel's mirror knows only in memory which of its
// legs lack what was answered. A daemon that is killed is replaced by one that
// must know it too, or it would copy the old data of a leg over the new: so the
// default leg and the marks stand in the daemon's own record before the request
// that saw the failure is answered or held.

// Remember is the default leg and the marks of the legs, where the default leg may
// be another than the first: "1 2 0"; then the scrub, as JSON. It is empty while there
// is nothing to say.
func (m *mirror) Remember() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return strings.TrimSpace(m.marksLocked() + " " + m.scrubMemoryLocked())
}

// memoryParts are the two parts of what was remembered.
func memoryParts(text string) (marks, scrub string) {
	if i := strings.IndexByte(text, '{'); i >= 0 {
		return text[:i], text[i:]
	}
	return text, ""
}

func (m *mirror) marksLocked() string {
	if m.keep != nil || !m.params.handleErrors {
		return ""
	}
	def := m.def.Load()
	text, some := strconv.Itoa(int(def)), def != 0
	for _, l := range m.legs {
		t := l.types.Load()
		text += " " + strconv.FormatUint(uint64(t), 10)
		some = some || t != 0
	}
	if !some {
		return ""
	}
	return text
}

// saveMarks has the daemon record what Remember says, if that changed.
func (m *mirror) saveMarks() {
	if m.keep != nil || !m.params.handleErrors || m.env.Record == nil {
		return
	}
	m.marks.Lock()
	defer m.marks.Unlock()
	m.mu.Lock()
	text := m.marksLocked()
	m.mu.Unlock()
	if text == m.savedMarks {
		return
	}
	m.env.Record()
	m.savedMarks = text
}

// restoreMarks takes what the mirror before remembered.
func (m *mirror) restoreMarks() error {
	memory, _ := memoryParts(m.env.Remembered)
	if memory == "" || m.keep != nil || !m.params.handleErrors {
		return nil
	}
	words := strings.Fields(memory)
	if len(words) != 1+len(m.legs) {
		return fmt.Errorf("what is recorded of the legs is %q, expected %d numbers", memory, 1+len(m.legs))
	}
	var numbers []uint64
	for _, w := range words {
		n, err := strconv.ParseUint(w, 10, 8)
		if err != nil {
			return fmt.Errorf("what is recorded of the legs is %q: %w", memory, err)
		}
		numbers = append(numbers, n)
	}
	if numbers[0] >= uint64(len(m.legs)) {
		return fmt.Errorf("what is recorded of the legs is %q, and there are %d", memory, len(m.legs))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.def.Store(int32(numbers[0]))
	for i, l := range m.legs {
		if t := numbers[1+i]; t != 0 {
			l.types.Store(uint32(t))
			l.errors.Store(1)
			m.legFailure = true
		}
	}
	m.savedMarks = m.marksLocked()
	return nil
}

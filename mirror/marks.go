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
// be another than the first: "1 2 0". It is empty while there is nothing to say.
func (m *mirror) Remember() string {
	if m.keep != nil || !m.params.handleErrors {
		return ""
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.marksLocked()
}

func (m *mirror) marksLocked() string {
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
	text := m.Remember()
	if text == m.savedMarks {
		return
	}
	m.env.Record()
	m.savedMarks = text
}

// restoreMarks takes what the mirror before remembered.
func (m *mirror) restoreMarks() error {
	if m.env.Remembered == "" || m.keep != nil || !m.params.handleErrors {
		return nil
	}
	words := strings.Fields(m.env.Remembered)
	if len(words) != 1+len(m.legs) {
		return fmt.Errorf("what is recorded of the legs is %q, expected %d numbers", m.env.Remembered, 1+len(m.legs))
	}
	var numbers []uint64
	for _, w := range words {
		n, err := strconv.ParseUint(w, 10, 8)
		if err != nil {
			return fmt.Errorf("what is recorded of the legs is %q: %w", m.env.Remembered, err)
		}
		numbers = append(numbers, n)
	}
	if numbers[0] >= uint64(len(m.legs)) {
		return fmt.Errorf("what is recorded of the legs is %q, and there are %d", m.env.Remembered, len(m.legs))
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

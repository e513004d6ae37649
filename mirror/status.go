package mirror

import (
	"fmt"
	"strings"
	"time"

	"github.com/dmfuse/dmfuse/target"
)

// Status is the kernel's text (kernel: mirror_status).
func (m *mirror) Status(form target.StatusForm) string {
	if form == target.StatusTable {
		return m.tableLine()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d", len(m.legs))
	for _, l := range m.legs {
		b.WriteString(" " + target.DeviceWord(l.dev))
	}
	fmt.Fprintf(&b, " %d/%d 1 ", m.dirty.count.Load(), uint64(m.dirty.n))
	m.mu.Lock()
	for _, l := range m.legs {
		b.WriteByte(l.letter())
	}
	m.mu.Unlock()
	if d := m.dirty.dev; d != nil {
		fmt.Fprintf(&b, " 3 disk %s %c", target.DeviceWord(d), m.dirty.status())
	} else {
		b.WriteString(" 1 core")
	}
	return b.String()
}

func (m *mirror) tableLine() string {
	legs := make([]string, len(m.legs))
	for i, l := range m.legs {
		legs[i] = target.DeviceWord(l.dev)
	}
	log := ""
	if d := m.dirty.dev; d != nil {
		log = target.DeviceWord(d)
	}
	return m.params.line(log, legs)
}

// Reporter is a target that tells about a mirror more than its status says.
type Reporter interface {
	Report() Report
}

// Report is the state of a mirror for people and programs.
type Report struct {
	Legs      []LegReport `json:"legs"`
	Log       string      `json:"log"` // "core", or "disk"
	LogDevice string      `json:"log_device,omitempty"`
	LogHealth string      `json:"log_health,omitempty"` // A alive, D failed, F a flush failed

	RegionBytes int64  `json:"region_bytes"`
	Regions     uint64 `json:"regions"`
	InSync      uint64 `json:"regions_in_sync"`
	Dirty       int    `json:"regions_dirty"`      // writes under way, or not cleared yet
	Recovering  int    `json:"regions_recovering"` // chosen or being copied

	CopiedBytes int64     `json:"copied_bytes"`        // by recoveries of this target, per leg written
	NextRetry   time.Time `json:"next_retry,omitzero"` // of regions out of sync
	Held        int       `json:"held_writes"`         // neither answered nor failed yet
	HeldSince   time.Time `json:"held_since,omitzero"` // the oldest of them
	HeldSeconds float64   `json:"held_seconds"`        // its age
	Policies    string    `json:"policies"`            // as the message policy prints them
	Suspended   bool      `json:"suspended,omitempty"` // or never resumed

	// Record is the leg record; nil without the feature, and before the first
	// resume.
	Record *RecordReport `json:"record,omitempty"`
}

// RecordReport is what is known of a mirror's leg record.
type RecordReport struct {
	Mirror     string `json:"mirror"`
	Generation uint64 `json:"generation"`
	// Copies is how many places have it; 0: it is in memory only.
	Copies int `json:"copies"`
	// LogUntrusted is why everything is copied after a crash; empty: it is not.
	LogUntrusted string    `json:"log_untrusted,omitempty"`
	Changed      time.Time `json:"changed,omitzero"`
}

// LegReport is the state of a leg.
type LegReport struct {
	Device  string `json:"device"`
	Offset  int64  `json:"offset_bytes"`
	Health  string `json:"health"` // the letter of the status
	Errors  uint32 `json:"errors"` // since the marks were cleared
	Default bool   `json:"default,omitempty"`

	// With a leg record; State is empty without.
	ID    int       `json:"id,omitempty"`
	State LegState  `json:"state,omitempty"`
	Why   string    `json:"why,omitempty"` // it is not in
	Since time.Time `json:"since,omitzero"`
}

// Report tells the state of the mirror.
func (m *mirror) Report() Report {
	record := m.recordNow()
	stats := m.copier.Stats()
	m.mu.Lock()
	defer m.mu.Unlock()
	r := Report{
		Log: "core", RegionBytes: m.region, Regions: uint64(m.dirty.n), InSync: uint64(m.dirty.count.Load()),
		CopiedBytes: int64(stats.BytesWritten + stats.BytesZeroed), NextRetry: m.rec.next,
		Held: len(m.held), Policies: m.policies.String(), Suspended: m.suspended,
	}
	if d := m.dirty.dev; d != nil {
		r.Log, r.LogDevice, r.LogHealth = "disk", d.Name(), string(m.dirty.status())
	}
	for i, l := range m.legs {
		r.Legs = append(r.Legs, LegReport{Device: l.dev.Name(), Offset: l.offset, Health: string(l.letter()), Errors: l.errors.Load(), Default: i == int(m.def.Load())})
	}
	r.addRecord(record)
	for _, e := range m.regions {
		switch e.state {
		case stateDirty:
			r.Dirty++
		case stateRecovering:
			r.Recovering++
		}
	}
	for h := range m.held {
		if r.HeldSince.IsZero() || h.since.Before(r.HeldSince) {
			r.HeldSince = h.since
		}
	}
	if r.Held > 0 {
		r.HeldSeconds = time.Since(r.HeldSince).Seconds()
	}
	return r
}

package mapper

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/dmfuse/dmfuse/blockdev"
)

// Files of a state directory.
const (
	stateFile    = "mapper.json" // numbers that must not be given twice
	recordPrefix = "device-"     // one record per device, by serial number
	recordSuffix = ".json"
	damagedMark  = ".damaged" // a record that could not be read, moved aside
	unwantedMark = ".old"     // a record that nobody wanted back, moved aside
	serialStep   = 1000       // serial numbers reserved by one write
)

// stateDir keeps the records of promise 9. Without a directory it only counts.
type stateDir struct {
	dir  string // empty: nothing is kept
	boot string // id of this boot

	events *eventFile // nil without a directory
	faults faultFile

	mu       sync.Mutex
	numbers  numbers
	serial   uint64           // last one given
	problems []RestoreProblem // found while opening
}

// numbers is the content of stateFile.
type numbers struct {
	Boot     string `json:"boot_id"`
	Major    int    `json:"major"`
	Reserved uint64 `json:"serials_reserved"` // no larger serial was ever given
}

// openState reads the numbers of the state directory and settles the major.
func openState(m *Manager) (*stateDir, error) {
	s := &stateDir{dir: m.o.StateDir}
	if s.dir != "" {
		if err := s.load(m.host); err != nil {
			return nil, err
		}
	}
	m.major = m.o.Major
	if m.major == 0 && s.numbers.Boot == s.boot {
		m.major = s.numbers.Major
	}
	if m.major == 0 {
		list, err := os.ReadFile(filepath.Join(m.host.Proc, "devices"))
		if err != nil {
			return nil, fmt.Errorf("choosing a major number: %w", err)
		}
		m.major = freeMajor(list)
	}
	s.numbers.Boot, s.numbers.Major = s.boot, m.major
	return s, s.save()
}

func (s *stateDir) load(h *Host) error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	boot, err := os.ReadFile(filepath.Join(h.Proc, "sys/kernel/random/boot_id"))
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	s.boot = strings.TrimSpace(string(boot))
	path := filepath.Join(s.dir, stateFile)
	for _, path := range []string{path, filepath.Join(s.dir, eventFileName)} {
		if fi, err := os.Lstat(path); err == nil && !fi.Mode().IsRegular() {
			s.problems = append(s.problems, s.setAside(path, errors.New("it is no regular file")))
		}
	}
	if err := s.checkVersions(path); err != nil {
		return err
	}
	if err := blockdev.DropUnfinished(s.dir, nil); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("state directory: %w", err)
	default:
		if err := decodeState(data, &s.numbers); err != nil {
			s.numbers = numbers{}
			s.problems = append(s.problems, s.setAside(path, err))
		}
	}
	// A record that is newer than the numbers (they were damaged) counts too.
	serials, err := s.recordSerials()
	if err != nil {
		return err
	}
	for _, n := range serials {
		s.numbers.Reserved = max(s.numbers.Reserved, n+serialStep)
	}
	s.serial = s.numbers.Reserved
	s.events, err = openEvents(s.dir)
	return err
}

// checkVersions refuses a directory with files of a version that is not read,
// before anything in it is changed.
func (s *stateDir) checkVersions(numbers string) error {
	serials, err := s.recordSerials()
	if err != nil {
		return err
	}
	err = checkStateVersion(numbers)
	for _, n := range serials {
		err = cmp.Or(err, checkStateVersion(s.recordPath(n)))
	}
	return err
}

// save writes the numbers.
func (s *stateDir) save() error {
	if s.dir == "" {
		return nil
	}
	data, err := encodeState(s.numbers)
	if err == nil {
		err = keepFile(filepath.Join(s.dir, stateFile), data)
	}
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	return nil
}

// nextSerial gives a number that was never given before, also not by an earlier
// daemon: a block of them is reserved on disk first.
func (s *stateDir) nextSerial() (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dir != "" && s.serial >= s.numbers.Reserved {
		s.numbers.Reserved = s.serial + serialStep
		if err := s.save(); err != nil {
			s.numbers.Reserved = s.serial
			return 0, err
		}
	}
	s.serial++
	return s.serial, nil
}

func (s *stateDir) recordPath(serial uint64) string {
	return filepath.Join(s.dir, fmt.Sprintf("%s%d%s", recordPrefix, serial, recordSuffix))
}

// Recorded is how many devices a restart would bring back from a state directory;
// 0 also where there is none.
func Recorded(dir string) (n int) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), recordPrefix) && strings.HasSuffix(e.Name(), recordSuffix) {
			n++
		}
	}
	return n
}

// recordSerials lists the records that there are.
func (s *stateDir) recordSerials() ([]uint64, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	var out []uint64
	for _, e := range entries {
		var n uint64
		name := e.Name()
		if _, err := fmt.Sscanf(name, recordPrefix+"%d"+recordSuffix, &n); err == nil &&
			s.recordPath(n) == filepath.Join(s.dir, name) {
			out = append(out, n)
		}
	}
	return out, nil
}

// setAside moves a file that cannot be used out of the way and says so.
func (s *stateDir) setAside(path string, cause error) RestoreProblem {
	aside := path + damagedMark
	for i := 2; ; i++ {
		if _, err := os.Lstat(aside); err != nil {
			break
		}
		aside = fmt.Sprintf("%s%s-%d", path, damagedMark, i)
	}
	err := fmt.Errorf("state file %s: %w; it was moved to %s", path, cause, aside)
	if rerr := os.Rename(path, aside); rerr != nil {
		err = fmt.Errorf("state file %s: %w; it could not be moved aside: %v", path, cause, rerr)
	}
	return RestoreProblem{Path: path, Err: err}
}

// DropRecords moves the records of a daemon that was killed aside, where no
// restart finds them: for one that starts without its devices. Left in place
// they would bring its snapshots back at the next restart, valid, though their
// origins were written without them meanwhile.
func (m *Manager) DropRecords() error {
	s := m.state
	if s.dir == "" {
		return nil
	}
	serials, err := s.recordSerials()
	for _, n := range serials {
		if rerr := os.Rename(s.recordPath(n), s.recordPath(n)+unwantedMark); err == nil && rerr != nil {
			err = fmt.Errorf("state directory: %w", rerr)
		}
	}
	return cmp.Or(err, s.dropBatches())
}

// forget removes the record of a device for good.
func (s *stateDir) forget(d *Device) {
	if s.dir == "" {
		return
	}
	d.recordMu.Lock()
	defer d.recordMu.Unlock()
	d.forgotten = true
	d.forgetFaultCounts()
	if err := os.Remove(s.recordPath(d.serial)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.m.log.WithField("device", d.Name()).WithError(err).Error("removing the record for restart")
	}
}

// record writes the record of a device as it is now. Failing is no reason to
// fail what was done already; it is logged and reported.
func (d *Device) record() {
	if err := d.recordErr(); err != nil {
		d.m.log.WithField("device", d.Name()).WithError(err).Error("a restart would not bring back the last change")
		d.report(EventProblem, err.Error())
	}
}

func (d *Device) recordErr() error { return d.writeRecord(nil) }

// recordAs is recordErr for a device that is about to be suspended or not.
func (d *Device) recordAs(suspended bool) error { return d.writeRecord(&suspended) }

func (d *Device) writeRecord(suspended *bool) error {
	s := d.m.state
	if s.dir == "" {
		return nil
	}
	d.recordMu.Lock()
	defer d.recordMu.Unlock()
	if d.forgotten || d.restoring {
		return nil
	}
	r := d.makeRecord()
	if suspended != nil {
		r.Suspended = *suspended
	}
	data, err := encodeState(r)
	if err == nil {
		err = keepFile(s.recordPath(d.serial), data)
	}
	if err != nil {
		return fmt.Errorf("record for restart: %w", err)
	}
	return nil
}

func (d *Device) makeRecord() record {
	d.mu.Lock()
	live, inactive := d.live.Load(), d.inactive
	if live != nil {
		live.hold()
	}
	if inactive != nil {
		inactive.hold()
	}
	r := record{
		Boot: d.m.state.boot, Name: text(d.Name()), UUID: text(d.uuid), Minor: d.minor, Serial: d.serial,
		Major: d.m.major, Batch: d.batch, Loaded: d.loaded, Suspended: d.suspended, DeferredRemove: d.deferredRemove,
		EventNr: d.events.now(),
		Attr:    recordAttr{Mode: d.attr.Mode, UID: d.attr.UID, GID: d.attr.GID, Mtime: d.attr.Mtime, ReadAhead: d.attr.ReadAhead},
	}
	if d.failed != nil {
		r.Failed = text(d.failed.Error())
	}
	for _, g := range d.guards {
		r.Guards = append(r.Guards, g.was)
	}
	r.Faults, r.NextFault = d.faultTexts, d.nextFault
	r.Stats = d.recordStats()
	d.mu.Unlock()
	r.Live, r.Inactive = recordOf(live), recordOf(inactive) // ask the targets, no lock held
	return r
}

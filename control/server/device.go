package server

import (
	"net/http"
	"strconv"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/control"
	"github.com/dmfuse/dmfuse/mapper"
	"github.com/dmfuse/dmfuse/target"
)

// keyOf reads the device a request is about from its query. What is given twice
// is refused: which of the two is meant is not known.
func keyOf(r *http.Request) (control.Key, error) {
	q := r.URL.Query()
	for name, values := range q {
		if len(values) > 1 {
			return control.Key{}, control.Errorf(control.CodeInvalid, "%q is given %d times in the query", name, len(values))
		}
	}
	key := control.Key{Name: q.Get("name"), UUID: q.Get("uuid")}
	if m := q.Get("minor"); m != "" {
		n, err := strconv.Atoi(m)
		if err != nil || n < 0 {
			return key, control.Errorf(control.CodeInvalid, "minor=%q is no minor number", m)
		}
		key.Minor = &n
	}
	return key, nil
}

// device finds a device; its key must have exactly one mark.
func (s *Server) device(key control.Key) (*mapper.Device, error) {
	marks := 0
	mk := mapper.Key{Name: key.Name, UUID: key.UUID, Minor: -1}
	for _, set := range []bool{key.Name != "", key.UUID != "", key.Minor != nil} {
		if set {
			marks++
		}
	}
	if marks != 1 {
		return nil, control.Errorf(control.CodeInvalid, "a device is named by exactly one of name, uuid and minor; %d were given", marks)
	}
	if key.Minor != nil {
		mk.Minor = *key.Minor
	}
	d, err := s.opts.Manager.Device(mk)
	if err != nil {
		e := *wireError(err)
		e.Device = keyText(key)
		return nil, &e
	}
	return d, nil
}

// keyText is a key for people.
func keyText(key control.Key) string {
	switch {
	case key.Name != "":
		return key.Name
	case key.UUID != "":
		return "uuid " + key.UUID
	case key.Minor != nil:
		return "minor " + strconv.Itoa(*key.Minor)
	}
	return ""
}

// onDevice makes a handler for a request about one device.
func (s *Server) onDevice(r *http.Request) (*mapper.Device, error) {
	key, err := keyOf(r)
	if err != nil {
		return nil, err
	}
	return s.device(key)
}

func on(r *http.Request, flag string) bool {
	v, err := strconv.ParseBool(r.URL.Query().Get(flag))
	return v && err == nil
}

func (s *Server) infoOf(d *mapper.Device, inactive bool) control.Info {
	i, a := d.Info(inactive), d.Attr()
	mode := a.Mode
	if mode == 0 {
		mode = 0o600
	}
	return control.Info{
		Name: i.Name, UUID: i.UUID, Major: i.Major, Minor: i.Minor, Path: s.opts.Path(i.Name),
		SizeBytes: i.Size.Bytes(), Suspended: i.Suspended, ReadOnly: i.ReadOnly,
		Live: i.Live, Inactive: i.Inactive, DeferredRemove: i.DeferredRemove,
		OpenCount: i.OpenCount, EventNr: i.EventNr, Targets: i.Targets,
		ReadAhead: i.ReadAhead, ReadAheadKnown: i.ReadAheadKnown,
		Mode: mode, UID: a.UID, GID: a.GID, Problem: i.Problem,
	}
}

func (s *Server) devices(r *http.Request) (any, error) {
	list := control.DeviceList{Devices: []control.Info{}}
	tables, statuses, deps := on(r, "tables"), on(r, "statuses"), on(r, "deps")
	inactive, noflush := on(r, "inactive"), !on(r, "flush")
	for _, d := range s.opts.Manager.Devices() {
		list.Devices = append(list.Devices, s.infoOf(d, inactive))
		if tables {
			list.Tables = append(list.Tables, wireLines(d.Status(target.StatusTable, inactive, noflush)))
		}
		if statuses {
			list.Statuses = append(list.Statuses, wireLines(d.Status(target.StatusInfo, inactive, noflush)))
		}
		if deps {
			list.Deps = append(list.Deps, wireDeps(d.Deps(inactive)))
		}
	}
	return list, nil
}

// wireLines puts the lines of a table or status on the wire.
func wireLines(lines []mapper.TargetStatus) []control.TargetStatus {
	out := make([]control.TargetStatus, 0, len(lines))
	for _, t := range lines {
		out = append(out, control.TargetStatus{
			Start: uint64(t.Start), Length: uint64(t.Length), Type: t.Type, Params: t.Params,
		})
	}
	return out
}

func (s *Server) info(r *http.Request) (any, error) {
	d, err := s.onDevice(r)
	if err != nil {
		return nil, err
	}
	return s.infoOf(d, on(r, "inactive")), nil
}

func (s *Server) table(r *http.Request) (any, error)  { return s.lines(r, target.StatusTable) }
func (s *Server) status(r *http.Request) (any, error) { return s.lines(r, target.StatusInfo) }

func (s *Server) lines(r *http.Request, form target.StatusForm) (any, error) {
	d, err := s.onDevice(r)
	if err != nil {
		return nil, err
	}
	inactive := on(r, "inactive")
	return control.StatusReply{
		Device: s.infoOf(d, inactive), Targets: wireLines(d.Status(form, inactive, on(r, "noflush"))),
	}, nil
}

func (s *Server) deps(r *http.Request) (any, error) {
	d, err := s.onDevice(r)
	if err != nil {
		return nil, err
	}
	inactive := on(r, "inactive")
	return control.DepsReply{Device: s.infoOf(d, inactive), Deps: wireDeps(d.Deps(inactive))}, nil
}

// wireDeps puts lower devices on the wire; a regular file has no numbers.
func wireDeps(deps []mapper.Dep) []control.Dep {
	out := make([]control.Dep, 0, len(deps))
	for _, dep := range deps {
		c := control.Dep{Major: dep.Major, Minor: dep.Minor, Name: dep.Name, Path: dep.Path}
		if dep.Name == "" && dep.Major == 0 && dep.Minor == 0 {
			c.Major, c.Minor = -1, -1
		}
		out = append(out, c)
	}
	return out
}

func (s *Server) wait(r *http.Request) (any, error) {
	d, err := s.onDevice(r)
	if err != nil {
		return nil, err
	}
	nr, err := strconv.ParseUint(r.URL.Query().Get("event_nr"), 10, 32)
	if err != nil {
		return nil, control.Errorf(control.CodeInvalid, "event_nr=%q is no event number", r.URL.Query().Get("event_nr"))
	}
	ctx, cancel := s.untilClosed(r)
	defer cancel()
	got, err := d.WaitEvent(ctx, uint32(nr))
	if err != nil {
		return nil, err
	}
	return control.WaitReply{EventNr: got}, nil
}

func (s *Server) message(r *http.Request) (any, error) {
	d, err := s.onDevice(r)
	if err != nil {
		return nil, err
	}
	var req control.MessageRequest
	if err := body(r, &req); err != nil {
		return nil, err
	}
	text, err := d.Message(r.Context(), blockdev.Sector(req.Sector), req.Words)
	if err != nil {
		return nil, err
	}
	return control.MessageReply{Text: text}, nil
}

func (s *Server) discard(r *http.Request) (any, error) {
	d, err := s.onDevice(r)
	if err != nil {
		return nil, err
	}
	var req control.RangeRequest
	if err := body(r, &req); err != nil {
		return nil, err
	}
	off, n, size := req.OffsetBytes, req.LengthBytes, d.Size()
	if n < -1 {
		return nil, control.Errorf(control.CodeInvalid, "length_bytes %d is no length; -1 means up to the end", n)
	}
	if n < 0 {
		n = size - off
	}
	if off < 0 || off > size || n < 0 || n > size-off {
		return nil, control.Errorf(control.CodeRange, "bytes %d+%d do not lie within %s, which has %d", off, n, d.Name(), size)
	}
	return nil, d.Discard(r.Context(), off, n)
}

func (s *Server) flush(r *http.Request) (any, error) {
	d, err := s.onDevice(r)
	if err != nil {
		return nil, err
	}
	return nil, d.Flush(r.Context())
}

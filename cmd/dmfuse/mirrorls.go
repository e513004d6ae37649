package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// mirrorInfo describes a mirror as ls shows it.
type mirrorInfo struct {
	Name            string          `json:"name"`
	Path            string          `json:"path"`
	SizeBytes       int64           `json:"size_bytes"`
	State           string          `json:"state"` // in-sync, resync, degraded
	Legs            []mirrorLegInfo `json:"legs"`
	Log             string          `json:"log"`                  // "core", or where it is
	LogHealth       string          `json:"log_health,omitempty"` // A, D, F; of a log on a device
	RegionSizeBytes int64           `json:"region_size_bytes"`
	Regions         uint64          `json:"regions"`
	InSync          uint64          `json:"regions_in_sync"`
	Suspended       bool            `json:"suspended"`
	ReadOnly        bool            `json:"read_only"`
	OpenCount       int             `json:"open_count"`
}

type mirrorLegInfo struct {
	Device string `json:"device"`
	Health string `json:"health"` // the letter of the status; A: alive
}

// mirrorInfo puts together what the table and the status say. It needs loadAll.
func (s *session) mirrorInfo(m mapped, t mirrorTable) (mirrorInfo, error) {
	i := mirrorInfo{
		Name: m.Name, Path: m.Path, SizeBytes: m.SizeBytes, Log: "core", RegionSizeBytes: int64(t.region) * 512,
		Suspended: m.Suspended, ReadOnly: m.ReadOnly, OpenCount: m.OpenCount, State: "in-sync",
	}
	if t.disk {
		i.Log = s.wordText(t.log)
	}
	if len(m.status) != 1 {
		return i, fmt.Errorf("the table of %s has just been changed", m.Name)
	}
	st, ok := readMirrorStatus(m.status[0].Params)
	if !ok || len(st.letters) != len(t.legs) {
		return i, fmt.Errorf("the status of %s is %q, which is not understood", m.Name, m.status[0].Params)
	}
	for n, l := range t.legs {
		i.Legs = append(i.Legs, mirrorLegInfo{s.wordText(l.word), st.letters[n : n+1]})
	}
	i.InSync, i.Regions, i.LogHealth = st.inSync, st.regions, st.log
	switch {
	case st.degraded():
		i.State = "degraded"
	case st.inSync < st.regions:
		i.State = "resync"
	}
	return i, nil
}

// mirrorStatus is the text of the kernel's status of a mirror.
type mirrorStatus struct {
	inSync, regions uint64
	letters         string // one for each leg
	log             string // the letter of a log on a device
}

// readMirrorStatus reads "2 LEG LEG 5/8 1 AD 3 disk LOG A".
func readMirrorStatus(text string) (st mirrorStatus, ok bool) {
	words := strings.Fields(text) // an escaped blank within a path splits it, so count from the end
	n := len(words)
	switch {
	case n >= 5 && words[n-1] == "core" && words[n-2] == "1":
		words = words[:n-2]
	case n >= 7:
		st.log = words[n-1]
		at := n - 2
		for at > 0 && (words[at] != "disk" || words[at-1] != "3") {
			at--
		}
		if at == 0 {
			return st, false
		}
		words = words[:at-1]
	default:
		return st, false
	}
	if n = len(words); n < 3 {
		return st, false
	}
	st.letters = words[n-1]
	_, err := fmt.Sscanf(words[n-3], "%d/%d", &st.inSync, &st.regions)
	return st, err == nil
}

// degraded says whether a leg or the log is not as it should be.
func (st mirrorStatus) degraded() bool {
	return strings.Trim(st.letters, "A") != "" || st.log != "" && st.log != "A"
}

func newMirrorLsCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "List the mirrors",
		Args:  asUsage(cobra.NoArgs),
		RunE:  func(cmd *cobra.Command, _ []string) error { return a.mirrorLs(cmd.Context()) },
	}
}

func (a *app) mirrorLs(ctx context.Context) error {
	s, err := a.session(ctx)
	if err != nil {
		return err
	}
	if err := s.loadAll(ctx, true); err != nil {
		return err
	}
	all := []mirrorInfo{}
	for _, m := range s.devices {
		t, ok := m.mirrorTable()
		if !ok {
			continue
		}
		i, err := s.mirrorInfo(m, t)
		if err != nil {
			return err
		}
		all = append(all, i)
	}
	if a.json {
		return a.printJSON(struct {
			Mirrors []mirrorInfo `json:"mirrors"`
		}{all})
	}
	rows := [][]string{}
	for _, i := range all {
		var legs []string
		for _, l := range i.Legs {
			legs = append(legs, l.Device+legMark(l.Health))
		}
		rows = append(rows, []string{i.Name, a.size(i.SizeBytes), i.syncText(), i.stateText(), i.Log, strings.Join(legs, " ")})
	}
	return a.printTable([]string{"NAME", "SIZE", "SYNC%", "STATE", "LOG", "LEGS"}, rows)
}

// legMark marks a leg that is not alive.
func legMark(letter string) string {
	if letter == "A" {
		return ""
	}
	return "(" + letter + ")"
}

func (i mirrorInfo) syncText() string {
	if i.Regions == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", float64(i.InSync)*100/float64(i.Regions))
}

func (i mirrorInfo) stateText() string {
	text := i.State
	if i.ReadOnly {
		text += ",read-only"
	}
	if i.Suspended {
		text += ",suspended"
	}
	return text
}

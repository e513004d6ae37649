package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/dmfuse/dmfuse/control"
	"github.com/dmfuse/dmfuse/snapshot"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// snapshotInfo describes a snapshot as ls and usage show it.
type snapshotInfo struct {
	Name           string  `json:"name"`
	Path           string  `json:"path"`
	SizeBytes      int64   `json:"size_bytes"`
	Origin         string  `json:"origin"`
	COW            string  `json:"cow"`
	Store          string  `json:"store"` // P, PO or N
	ChunkSizeBytes int64   `json:"chunk_size_bytes"`
	State          string  `json:"state"` // valid, damaged, paused, invalid, overflow, merging, merged, merge-failed, waiting
	AllocatedBytes int64   `json:"allocated_bytes"`
	MetadataBytes  int64   `json:"metadata_bytes"`
	TotalBytes     int64   `json:"total_bytes"`  // size of the COW
	UsedPercent    float64 `json:"used_percent"` // of what is left for data
	ReadOnly       bool    `json:"read_only"`
	Suspended      bool    `json:"suspended"`
	OpenCount      int     `json:"open_count"`
}

// snapshotInfo puts together what the daemon knows of a snapshot. It needs
// loadAll.
func (s *session) snapshotInfo(m mapped) (snapshotInfo, error) {
	args := m.lines[0].Args
	i := snapshotInfo{
		Name: m.Name, Path: m.Path, SizeBytes: m.SizeBytes, Origin: s.wordText(args[0]), COW: s.wordText(args[1]), Store: args[2],
		ReadOnly: m.ReadOnly, Suspended: m.Suspended, OpenCount: m.OpenCount,
	}
	var sectors int64
	if _, err := fmt.Sscan(args[3], &sectors); err != nil {
		return i, fmt.Errorf("the chunk size of %s is %q, which is no number", m.Name, args[3])
	}
	i.ChunkSizeBytes = sectors * 512
	if len(m.status) != 1 {
		return i, fmt.Errorf("the table of %s has just been changed", m.Name)
	}
	err := i.readStatus(m.status[0].Params)
	if i.State == "valid" && m.lines[0].Type == "snapshot-merge" {
		i.State = "merging"
		if i.AllocatedBytes == i.MetadataBytes {
			i.State = "merged"
		}
	}
	return i, err
}

// spaceOf asks the target for what its status line has no room for, and says so
// in the state when writes wait.
func (s *session) spaceOf(ctx context.Context, i *snapshotInfo) (snapshot.Usage, error) {
	var u snapshot.Usage
	text, err := s.c.Message(ctx, control.ByName(i.Name), 0, []string{"usage"})
	if err != nil {
		return u, err
	}
	if err := json.Unmarshal([]byte(text), &u); err != nil {
		return u, fmt.Errorf("the usage of %s is not understood: %w", i.Name, err)
	}
	if u.State == "paused" && i.State == "valid" {
		i.State = "paused"
	}
	return u, nil
}

// readStatus takes over the text of the target's status.
func (i *snapshotInfo) readStatus(text string) error {
	switch strings.TrimSpace(text) {
	case "Invalid":
		i.State = "invalid"
	case "Overflow":
		i.State = "overflow"
	case "Merge failed":
		i.State = "merge-failed"
	case "Unknown":
		i.State = "waiting" // for a handover from another table
	default:
		var all, total, meta uint64 // of a damaged store they can be anything
		if _, err := fmt.Sscanf(text, "%d/%d %d", &all, &total, &meta); err != nil {
			return fmt.Errorf("the status of %s is %q, which is not understood", i.Name, text)
		}
		i.State = "valid"
		if all > total || meta > all {
			i.State = "damaged"
			all, meta = total, 0
		}
		i.AllocatedBytes, i.TotalBytes, i.MetadataBytes = int64(all)*512, int64(total)*512, int64(meta)*512
		i.UsedPercent = usedPercent(int64(all), int64(total), int64(meta))
	}
	return nil
}

// usedPercent is LVM's figure: 0 with nothing but metadata, 100 when full.
func usedPercent(allocated, total, metadata int64) float64 {
	switch {
	case allocated == metadata || total == 0:
		return 0
	case allocated >= total:
		return 100
	}
	return float64(allocated) * 100 / float64(total)
}

// wordText is a word of a table for people: the name of a device instead of
// its number.
func (s *session) wordText(word string) string {
	if m, ok := s.deviceOf(word); ok {
		return m.Name
	}
	return word
}

func newSnapshotLsCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "List the snapshots",
		Args:  asUsage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.snapshotLs(cmd.Context())
		},
	}
}

func (a *app) snapshotLs(ctx context.Context) error {
	s, err := a.session(ctx)
	if err != nil {
		return err
	}
	if err := s.loadAll(ctx, true); err != nil {
		return err
	}
	all := []snapshotInfo{}
	for _, m := range s.devices {
		if !m.isSnapshot() {
			continue
		}
		i, err := s.snapshotInfo(m)
		if err == nil && i.State == "valid" {
			var u snapshot.Usage
			u, err = s.spaceOf(ctx, &i)
			if u.COWGone != "" {
				a.note("%s: %s", i.Name, u.COWGone)
			}
		}
		if i.State == "damaged" {
			a.note("the store of %s names data beyond the end of its COW; remove the snapshot and look at it with: dmfuse cow check %s", i.Name, shellQuote(i.COW))
		}
		if err != nil {
			return err
		}
		all = append(all, i)
	}
	if a.json {
		return a.printJSON(struct {
			Snapshots []snapshotInfo `json:"snapshots"`
		}{all})
	}
	rows := [][]string{}
	for _, i := range all {
		rows = append(rows, []string{
			i.Name, i.Origin, i.COW, a.size(i.ChunkSizeBytes), i.allocatedText(a), i.percentText(), i.stateText(),
		})
	}
	return a.printTable([]string{"NAME", "ORIGIN", "COW", "CHUNK", "USED", "USE%", "STATE"}, rows)
}

// allocatedText is the room taken in the COW; unknown once it is invalid.
func (i snapshotInfo) allocatedText(a *app) string {
	if i.TotalBytes == 0 {
		return "-"
	}
	return a.size(i.AllocatedBytes)
}

func (i snapshotInfo) percentText() string {
	if i.TotalBytes == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", i.UsedPercent)
}

func (i snapshotInfo) stateText() string {
	text := i.State
	if i.ReadOnly {
		text += ",read-only"
	}
	if i.Suspended {
		text += ",suspended"
	}
	return text
}

func newSnapshotUsageCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "usage NAME",
		Short: "Show how full the COW of a snapshot is",
		Args:  asUsage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.snapshotUsage(cmd.Context(), args[0])
		},
	}
}

// snapshotUsageInfo is the answer of usage.
type snapshotUsageInfo struct {
	snapshotInfo
	DataBytes int64  `json:"data_bytes"` // chunks saved or written
	Chunks    int64  `json:"chunks"`
	FreeBytes int64  `json:"free_bytes"`           // room left for chunks and their metadata
	DiskBytes *int64 `json:"disk_bytes,omitempty"` // what the COW file takes on its file system
	EventNr   uint32 `json:"event_nr"`

	CapacityBytes int64         `json:"capacity_bytes,omitempty"`  // what the COW has or may grow to
	DiskFreeBytes *int64        `json:"disk_free_bytes,omitempty"` // on the file system of the COW file
	Reserve       string        `json:"reserve,omitempty"`         // space taken beforehand: on, off, unsupported
	ReservedBytes int64         `json:"reserved_bytes,omitempty"`
	PausedSince   *time.Time    `json:"paused_since,omitempty"`
	Fill          *forecast     `json:"fill,omitempty"`
	Policies      []policyValue `json:"policies,omitempty"`

	snapshot.Work // what first writes have cost

	COWGone     string `json:"cow_gone,omitempty"`    // the name of the COW file leads elsewhere
	Commit      string `json:"commit,omitempty"`      // when a write is answered: lazy or strict
	CommitWhy   string `json:"commit_why,omitempty"`  // what keeps it from being lazy
	Uncommitted int64  `json:"uncommitted,omitempty"` // chunks that are answered and not committed
}

func (a *app) snapshotUsage(ctx context.Context, name string) error {
	s, m, err := a.snapshotCalled(ctx, name)
	if err != nil {
		return err
	}
	i, err := s.snapshotInfo(m)
	if err != nil {
		return err
	}
	u := snapshotUsageInfo{snapshotInfo: i, EventNr: m.EventNr}
	if i.TotalBytes > 0 {
		u.DataBytes = i.AllocatedBytes - i.MetadataBytes
		u.Chunks = u.DataBytes / i.ChunkSizeBytes
		u.FreeBytes = max(0, i.TotalBytes-i.AllocatedBytes)
	}
	var st unix.Stat_t
	if unix.Stat(i.COW, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG {
		n := st.Blocks * 512
		u.DiskBytes = &n
		var fs unix.Statfs_t
		if unix.Statfs(i.COW, &fs) == nil {
			n := int64(min(fs.Bavail, math.MaxInt64/uint64(fs.Bsize))) * fs.Bsize
			u.DiskFreeBytes = &n
		}
	}
	if err := u.addSpace(ctx, s, m); err != nil {
		return err
	}
	if a.json {
		return a.printJSON(u)
	}
	return a.printUsage(u)
}

func (a *app) printUsage(u snapshotUsageInfo) error {
	rows := [][]string{
		{"Name:", u.Name}, {"Path:", u.Path}, {"Size:", a.size(u.SizeBytes)},
		{"Origin:", u.Origin}, {"COW:", u.COW}, {"Store:", u.Store}, {"Chunk size:", a.size(u.ChunkSizeBytes)},
		{"State:", u.stateText()},
	}
	if u.TotalBytes > 0 {
		rows = append(rows, [][]string{
			{"Used:", fmt.Sprintf("%s of %s (%.2f %%)", a.size(u.AllocatedBytes), a.size(u.TotalBytes), u.UsedPercent)},
			{"Data:", a.size(u.DataBytes) + " in " + count(u.Chunks, "chunk")},
			{"Metadata:", a.size(u.MetadataBytes)},
			{"Free:", a.size(u.FreeBytes)},
		}...)
	}
	if u.DiskBytes != nil {
		rows = append(rows, []string{"On disk:", a.size(*u.DiskBytes)})
	}
	rows = append(rows, u.spaceRows(a)...)
	return writeColumns(a.stdout, rows)
}

// snapshotCalled finds a snapshot by its name and refuses other devices.
func (a *app) snapshotCalled(ctx context.Context, name string) (*session, mapped, error) {
	s, err := a.session(ctx)
	if err != nil {
		return nil, mapped{}, err
	}
	if err := s.loadAll(ctx, true); err != nil {
		return nil, mapped{}, err
	}
	m, err := s.snapshotAmong(name)
	return s, m, err
}

// snapshotAmong finds a snapshot by its name. It needs loadAll.
func (s *session) snapshotAmong(name string) (mapped, error) {
	m, ok := s.called(name)
	if name == "" {
		return m, errEmptyName()
	}
	if !ok {
		return m, noSuchDevice(name)
	}
	if !m.isSnapshot() {
		kind := "has no live table"
		if len(m.lines) > 0 {
			kind = "is a device of type " + m.lines[0].Type
		}
		return m, fail(exitFailed, fmt.Errorf("%s is no snapshot: it %s", name, kind), "see the snapshots with: dmfuse snapshot ls")
	}
	return m, nil
}

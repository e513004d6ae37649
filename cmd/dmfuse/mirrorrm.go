package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/mirror"
	"github.com/spf13/cobra"
)

func newMirrorRmCommand(a *app) *cobra.Command {
	var keep bool
	cmd := &cobra.Command{
		Use:   "rm NAME",
		Short: "Take a mirror apart",
		Long: `Remove the device of a mirror, the record beside its legs, and its log if mirror
create made the file. The legs stay as they are: plain images. With --keep-log log
and records stay, and dmfuse mirror create with the same legs makes the mirror again
without a copy; dmfuse remove does the same.

It is said which legs do not have all data.`,
		Example: `  dmfuse mirror rm data`,
		Args:    asUsage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.mirrorRm(cmd.Context(), args[0], keep)
		},
	}
	cmd.Flags().BoolVar(&keep, "keep-log", false, "keep log and records")
	return cmd
}

// removedMirror is the answer of rm.
type removedMirror struct {
	Name    string   `json:"name"`
	Legs    []string `json:"legs"`
	Stale   []string `json:"stale_legs"` // lack data that the others have
	Log     string   `json:"log"`        // "core", or where it is
	Deleted bool     `json:"log_deleted"`
}

func (a *app) mirrorRm(ctx context.Context, name string, keep bool) error {
	s, m, t, err := a.mirrorCalled(ctx, name)
	if err != nil {
		return err
	}
	r, err := s.report(ctx, name)
	if err != nil {
		return err
	}
	ans := removedMirror{Name: name, Log: "core", Stale: []string{}}
	files := []string{}
	for i, l := range t.legs {
		ans.Legs = append(ans.Legs, s.wordText(l.word))
		if i < len(r.Legs) && !hasAll(r, r.Legs[i]) {
			ans.Stale = append(ans.Stale, s.wordText(l.word))
		}
		if p, err := s.findWord(l.word); err == nil && isFile(p) {
			files = append(files, p.path)
		}
	}
	log, logErr := place{}, error(nil)
	if t.disk {
		ans.Log = s.wordText(t.log)
		log, logErr = s.findWord(t.log)
	}
	if err := s.remove(ctx, m); err != nil {
		return err
	}
	if len(ans.Stale) > 0 {
		for _, l := range ans.Stale {
			a.note("%s does not have all that was written to %s", l, name)
		}
	}
	if !keep {
		if t.disk && logErr == nil && isFile(log) {
			files = append(files, log.path)
			ans.Deleted, err = deleteLog(log.path)
		}
		if err = errors.Join(err, removeRecords(t, files)); err != nil {
			return fmt.Errorf("the mirror %s is removed, but something is left: %w", name, err)
		}
	}
	if a.json {
		return a.printJSON(ans)
	}
	return nil
}

// deleteLog deletes the log if mirror create made its file.
func deleteLog(path string) (bool, error) {
	dev, err := blockdev.OpenFile(path, blockdev.FileOptions{NoLocks: true})
	if err != nil {
		if isMissing(err) || blockdev.Kind(err) == blockdev.ErrNoDevice {
			err = nil
		}
		return false, err
	}
	made, err := mirror.Made(dev)
	if cerr := dev.Close(); err == nil {
		err = cerr
	}
	if err != nil || !made {
		return false, err
	}
	if err := os.Remove(path); err != nil {
		return false, err
	}
	return true, blockdev.SyncPath(filepath.Dir(path))
}

// removeRecords takes the records beside files away.
func removeRecords(t mirrorTable, files []string) error {
	if !t.hasRecord() {
		return nil
	}
	var errs []error
	for _, f := range files {
		errs = append(errs, mirror.RemoveSidecar(f))
	}
	return errors.Join(errs...)
}

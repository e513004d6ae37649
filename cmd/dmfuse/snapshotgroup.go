package main

import (
	"context"
	"fmt"
)

// groupInfo is the answer of snapshot create --group.
type groupInfo struct {
	Snapshots []createdSnapshot `json:"snapshots"`
	// SuspendedMillis is how long the origins stood still.
	SuspendedMillis float64  `json:"suspended_ms"`
	Frozen          []string `json:"frozen,omitempty"` // mount points that were frozen for it
}

// snapshotGroup makes several snapshots at one instant: everything is checked
// first, then all COWs are made, and then the daemon is told once.
func (a *app) snapshotGroup(ctx context.Context, words []string, o createOptions) error {
	if len(words)%2 != 0 {
		return usagef("%d words: expected ORIGIN NAME ORIGIN NAME ...", len(words))
	}
	if o.cow.path != "" {
		return usagef("--cow is for one snapshot; with --group say --cow-dir DIR")
	}
	s, err := a.lookCreate(ctx, o)
	if err != nil {
		return err
	}
	var all []member
	var paths []string
	names, cows := map[string]bool{}, map[string]string{}
	for i := 0; i < len(words); i += 2 {
		one := o
		one.origin, one.name = words[i], words[i+1]
		if names[one.name] {
			return usagef("two snapshots with the name %q", one.name)
		}
		m, err := s.planMember(one)
		if err != nil {
			return err
		}
		if other, ok := cows[m.cow.path]; ok {
			return usagef("the snapshots %s and %s would have one COW, %s; choose other names, or --cow-dir", other, one.name, m.cow.path)
		}
		names[one.name], cows[m.cow.path] = true, one.name
		all, paths = append(all, m), append(paths, m.base.lower.path, m.cow.path)
	}
	if err := s.start(ctx, paths...); err != nil {
		return err
	}
	r, frozen, err := s.makeSnapshots(ctx, all)
	if err != nil {
		return err
	}
	if !a.json {
		for _, m := range all {
			if _, err := fmt.Fprintln(a.stdout, resultOf(r, m.o.name).Path); err != nil {
				return err
			}
		}
		return nil
	}
	answer := groupInfo{SuspendedMillis: r.SuspendedMillis, Frozen: frozen}
	for _, m := range all {
		answer.Snapshots = append(answer.Snapshots, describeSnapshot(resultOf(r, m.o.name), m.base, m.cow))
	}
	return a.printJSON(answer)
}

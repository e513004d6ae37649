package crash

import (
	"os"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/snapshot"
	"github.com/dmfuse/dmfuse/tests/harness/cowfile"
)

// checkStores looks at the files while no daemon has them: each store is sound,
// and origin and COW file alone show what the snapshot must show.
func (r *rig) checkStores() {
	r.t.Helper()
	origin, err := os.ReadFile(r.origin)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.views["disk"].m.Check(origin, 0); err != nil {
		r.t.Errorf("the file of the origin after kill -9: %v", err)
	}
	r.checkSnapshots(origin)
}

// checkSnapshots checks all stores, and what they show over that origin.
func (r *rig) checkSnapshots(origin []byte) {
	r.t.Helper()
	for name, v := range r.views {
		if v.cow == "" {
			continue
		}
		if err := r.ownCheck(v.cow); err != nil {
			r.t.Errorf("store of %s after kill -9: %v", name, err)
		}
		cow, err := os.ReadFile(v.cow)
		if err != nil {
			r.t.Fatal(err)
		}
		list, err := cowfile.Read(cow, int(v.chunk))
		if err != nil {
			r.t.Errorf("store of %s after kill -9: %v", name, err)
			continue
		}
		if err := v.m.Check(cowfile.View(origin, cow, int(v.chunk), list), 0); err != nil {
			r.t.Errorf("the files of %s after kill -9: %v", name, err)
		}
	}
}

// ownCheck asks our own checker. What a kill leaves behind the end of the list is
// a warning to it, no problem.
func (r *rig) ownCheck(path string) error {
	f, err := blockdev.OpenFile(path, blockdev.FileOptions{})
	if err != nil {
		return err
	}
	defer f.Close()
	report, err := snapshot.CheckStore(f, blockdev.Sector(r.sectors))
	if err != nil {
		return err
	}
	return report.Err()
}

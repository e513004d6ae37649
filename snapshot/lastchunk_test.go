package snapshot

import (
	"fmt"
	"sync"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
)

// The last chunks of a store, which are just enough, are wanted by several
// writers of the snapshot and of the origin at once. Those who lose the race for
// room find what they need made by another: nothing overflows, and nothing is
// lost.
func TestLastChunks_Race(t *testing.T) {
	for round := range 40 {
		for _, store := range []string{"P", "PO", "N"} {
			for _, policy := range []string{"invalidate", "readonly", "pause"} {
				if store == "N" && policy == "readonly" {
					continue
				}
				t.Run(fmt.Sprintf("%s %s %d", store, policy, round), func(t *testing.T) {
					l := newLab(t, Options{})
					fill(t, l.mem("o", 16), 1)
					size, room := 2, 4 // chunks: header and area; and one for each of the origin
					if store == "N" {
						size, room = 1, 2
					}
					l.disk("c", blockdev.Sector(size*8), 1000)
					snap := l.live("0 16 snapshot o c " + store + " 8")
					org := l.live("0 16 snapshot-origin o")
					defer func() { snap.close(); org.close() }()
					snap.policy("overflow=grow", "at-limit="+policy, fmt.Sprintf("limit=%dk", room*4))
					var all sync.WaitGroup
					for i, to := range []*table{snap, snap, org, org} {
						for chunk := range 2 {
							half := (i % 2) * 4 // of the chunk: the others write elsewhere
							all.Go(func() {
								if err := to.write(2+uint64(i), blockdev.Sector(chunk*8+half), 4); err != nil {
									t.Errorf("writer %d, chunk %d: %v", i, chunk, err)
								}
							})
						}
					}
					all.Wait()
					if u := snap.snap().Usage(); u.State != "active" {
						t.Fatalf("state %s: nothing was missing", u.State)
					}
					for chunk := range 2 {
						snap.want(2, blockdev.Sector(chunk*8), 4)
						snap.want(3, blockdev.Sector(chunk*8)+4, 4)
						org.want(4, blockdev.Sector(chunk*8), 4)
						org.want(5, blockdev.Sector(chunk*8)+4, 4)
					}
				})
			}
		}
	}
}

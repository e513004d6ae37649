package cli

import (
	"encoding/json"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/dmfuse/dmfuse/tests/harness"
)

// Commands that want the same COW or the same name at the same moment: one gets
// it, the others end with exit code 4, and nothing of theirs is left in what it got.
func TestSnapshotCreate_AtOnce(t *testing.T) {
	d := harness.Start(t)
	d.Must("origin", "create", d.Image("disk.img", mib), "disk")
	cow := d.Path("one.cow")
	for _, c := range []struct {
		name    string
		content []byte // of the COW before; nil: none
		args    func(i int) []string
	}{
		{"one new COW", nil, func(i int) []string { return []string{"s" + strconv.Itoa(i), "--cow", cow} }},
		{"one empty COW", []byte{}, func(i int) []string { return []string{"s" + strconv.Itoa(i), "--cow", cow} }},
		{"one COW by force", []byte("something"), func(i int) []string { return []string{"s" + strconv.Itoa(i), "--cow", cow, "--force"} }},
		{"one name", nil, func(int) []string { return []string{"s", "--cow", cow} }},
		{"one name, other COWs", nil, func(i int) []string { return []string{"s", "--cow", cow + strconv.Itoa(i)} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.content != nil {
				write(t, cow, string(c.content))
			}
			results := make([]harness.Result, 5)
			var all sync.WaitGroup
			for i := range results {
				all.Go(func() { results[i] = d.CLI(append([]string{"snapshot", "create", "disk"}, c.args(i)...)...) })
			}
			all.Wait()
			winners := 0
			for _, r := range results {
				switch {
				case r.Code == 0:
					winners++
				case r.Code != 4 || !strings.Contains(r.Stderr, "\n  "):
					t.Errorf("%v\nwant exit code 4 and what to do", r)
				}
			}
			var list struct {
				Snapshots []snapshotAnswer `json:"snapshots"`
			}
			answer(t, d, &list, "snapshot", "ls")
			if winners != 1 || len(list.Snapshots) != 1 {
				t.Fatalf("%d commands succeeded and there are %d snapshots, want 1", winners, len(list.Snapshots))
			}
			won := list.Snapshots[0]
			writeAt(t, won.Path, 8192, "mine")
			var side struct {
				Name string `json:"name"`
			}
			b, err := os.ReadFile(won.COW + ".dmfuse")
			if err == nil {
				err = json.Unmarshal(b, &side)
			}
			if err != nil || side.Name != won.Name {
				t.Errorf("the sidecar is that of %q, want %q (%v)", side.Name, won.Name, err)
			}
			d.Must("snapshot", "rm", won.Name, "--keep-cow")
			d.Must("cow", "check", won.COW)
			d.Must("snapshot", "open", won.COW, "disk", won.Name)
			if got := readAt(t, won.Path, 8192, 4); got != "mine" {
				t.Errorf("the store holds %q, want %q", got, "mine")
			}
			d.Must("snapshot", "rm", won.Name, "--keep-cow")
			for _, path := range []string{won.COW, won.COW + ".dmfuse"} {
				if err := os.Remove(path); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

package clone

import (
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"github.com/dmfuse/dmfuse/target"
	"github.com/dmfuse/dmfuse/target/targettest"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func types() []target.Type { return Types(Options{}) }

func TestClone_Suite(t *testing.T) {
	for name, args := range map[string]string{
		"plain":     "m d s 8",
		"no copies": "m d s 8 1 no_hydration",
		"batches":   "m d s 16 0 4 hydration_threshold 8 hydration_batch_size 4",
		"large":     "m d s 128 2 NO_HYDRATION no_discard_passdown",
		"words":     "m d s 8 0 0 ignored",
	} {
		t.Run(name, func(t *testing.T) {
			c := targettest.Case{
				Types: types, Start: 40, Length: 203, Moves: true,
				Disks:   []targettest.Disk{{Name: "m", Sectors: 16}, {Name: "d", Sectors: 203, Seed: 3}, {Name: "s", Sectors: 300, Seed: 7}},
				Args:    strings.Fields(args),
				Content: func(s blockdev.Sector) []byte { return devtest.Pattern(7, s, 1) },
			}
			for _, bad := range []string{
				"", "m", "m d", "m d s", "m d s x", "m d s 0", "m d s 4", "m d s 12", "m d s 4194304", "m d s 4294967304",
				"m d s 8 x", "m d s 8 3", "m d s 8 1", "m d s 8 1 nosuch", "m d s 8 0 x", "m d s 8 0 1 hydration_threshold",
				"m d s 8 0 2 hydration_threshold x", "m d s 8 0 2 nosuch 1", "m d s 8 0 2 hydration_threshold", "m d s 8 0 5",
				"m d s 8 0 6 hydration_threshold 1 hydration_threshold 1 hydration_threshold 1",
				"m m s 8", "m d m 8", "m d d 8", "m m m 8", "d s m 8",
			} {
				c.Bad = append(c.Bad, strings.Fields(bad))
			}
			targettest.Suite(t, c)
		})
	}
}

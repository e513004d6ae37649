package lifetimes

import (
	"math/rand/v2"
	"testing"

	"github.com/dmfuse/dmfuse/tests/harness"
)

// life is about how many operations a world lives for.
const life = 500

// TestLifetimes leads worlds through ten thousand operations, a million with
// DMFUSE_LONG. The seed of a world that failed is printed; DMFUSE_SEED begins
// with that one.
func TestLifetimes(t *testing.T) {
	left := harness.Pick(10_000, 1_000_000)
	if harness.Race() || testing.Short() {
		left = 1000
	}
	for seed := harness.Seed(t); left > 0 && !t.Failed(); seed++ {
		left -= live(t, seed)
	}
}

func live(t *testing.T, seed uint64) int {
	defer func() {
		if t.Failed() {
			t.Logf("this world's seed: DMFUSE_SEED=%d", seed)
		}
	}()
	w := newWorld(t, rand.New(rand.NewPCG(seed, 1)))
	defer w.close()
	for w.ops < life {
		w.step()
	}
	w.check()
	w.restart()
	w.check()
	return w.ops
}

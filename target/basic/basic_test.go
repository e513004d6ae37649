package basic

import (
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"github.com/dmfuse/dmfuse/target"
	"github.com/dmfuse/dmfuse/target/targettest"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func one(typ func() target.Type) func() []target.Type {
	return func() []target.Type { return []target.Type{typ()} }
}

func TestLinear_Suite(t *testing.T) {
	targettest.Suite(t, targettest.Case{
		Types: one(Linear), Start: 40, Length: 200, KeepsOnError: true,
		Disks:   []targettest.Disk{{Name: "/img/a b", Sectors: 300, Seed: 7}},
		Args:    []string{"/img/a b", "17"},
		Table:   `/img/a\ b 17`,
		Content: func(s blockdev.Sector) []byte { return devtest.Pattern(7, s+17, 1) },
		Bad: [][]string{
			{}, {"/img/a b"}, {"/img/a b", "x"}, {"/img/a b", "-1"}, {"/img/a b", "0x1"}, {"/img/a b", "0", "0"},
			{"/img/a b", "18446744073709551615"}, {"/img/a b", "18014398509481983"},
		},
	})
}

func TestStriped_Suite(t *testing.T) {
	for name, c := range map[string]targettest.Case{
		"one":  {Length: 64, Args: []string{"1", "8", "a", "5"}},
		"two":  {Length: 192, Start: 1000, Args: []string{"2", "8", "a", "0", "b", "16"}},
		"odd":  {Length: 3 * 7 * 5, Start: 3, Args: []string{"3", "7", "a", "1", "b", "2", "c", "3"}},
		"same": {Length: 64, Args: []string{"2", "4", "a", "0", "a", "40"}},
	} {
		t.Run(name, func(t *testing.T) {
			c.Types, c.KeepsOnError = one(Striped), name != "same"
			c.Disks = []targettest.Disk{{Name: "a", Sectors: 120}, {Name: "b", Sectors: 120}, {Name: "c", Sectors: 120}}[:min(3, (len(c.Args)-2)/2)]
			if name == "same" {
				c.Disks = c.Disks[:1]
			}
			c.Bad = [][]string{
				{}, {"2"}, {"0", "8"}, {"2", "0", "a", "0", "a", "0"}, {"x", "8", "a", "0"}, {"1", "x", "a", "0"},
				{"1", "8", "a"}, {"1", "8", "a", "0", "a"}, {"1", "8", "a", "x"}, {"1", "8", "a", "-1"},
				{"4294967296", "8", "a", "0"}, {"1", "4294967296", "a", "0"}, {"1", "1000", "a", "0"}, {"11", "8", "a", "0"},
				{"1", "1", "a", "18014398509481983"},
			}
			targettest.Suite(t, c)
		})
	}
}

func TestZero_Suite(t *testing.T) {
	targettest.Suite(t, targettest.Case{
		Types: one(Zero), Kind: targettest.ReadsZeros, Start: 8, Length: 100, Bad: [][]string{{"x"}},
	})
}

func TestError_Suite(t *testing.T) {
	targettest.Suite(t, targettest.Case{Types: one(Error), Kind: targettest.Fails, Start: 8, Length: 100})
}

func TestTypes_AreThoseOfTheKernel(t *testing.T) {
	want := map[string][3]uint32{"linear": {1, 5, 0}, "striped": {1, 7, 0}, "zero": {1, 2, 0}, "error": {1, 7, 0}}
	for _, typ := range Types() {
		if want[typ.Name] != typ.Version {
			t.Errorf("%s has version %v", typ.Name, typ.Version)
		}
		if typ.Wildcard != (typ.Name == "error") || typ.Singleton || typ.Immutable {
			t.Errorf("%s: %+v", typ.Name, typ)
		}
		delete(want, typ.Name)
	}
	if len(want) != 0 {
		t.Errorf("missing: %v", want)
	}
}

package compat

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// oddCase is a COW store made by hand and what the kernel did with it.
type oddCase struct {
	Name         string
	Table        string
	COWSectors   int64  `json:"cow_sectors"`
	COW          string `json:"cow_sha256"`
	COWActivated string `json:"cow_activated_sha256"`
	COWAfter     string `json:"cow_after_writes_sha256"`
	CreateRC     int    `json:"create_rc"`
	CreateStderr string `json:"create_stderr"`
	Steps        []step
}

// TestOddStores opens wrong, short and strange stores through a table line: the
// answers, the map of what is read from where, what writes do, and the store
// afterwards must be the kernel's.
func TestOddStores(t *testing.T) {
	const dir = "testdata/snapshot-odd"
	var odd struct{ Cases []oddCase }
	readJSON(t, filepath.Join(dir, "odd.json"), &odd)
	if len(odd.Cases) < 20 {
		t.Fatalf("%d cases", len(odd.Cases))
	}
	book := newLedger(t, "snapshot-odd")
	for _, c := range odd.Cases {
		t.Run(c.Name, func(t *testing.T) {
			name := "snapshot-odd/" + c.Name
			cow := unzip(t, filepath.Join(dir, c.Name+".cow.img.gz"))
			if hash(cow) != c.COW {
				t.Fatal("image damaged")
			}
			lab := newLab(t)
			lab.device("7:0", pattern(40, 0, 1024))
			lab.device("7:1", cow)
			got := lab.create("snap", c.Table)
			book.equal(t, name+"/create rc", fmt.Sprint(got.rc), fmt.Sprint(c.CreateRC))
			book.equal(t, name+"/create stderr", got.stderr, c.CreateStderr)
			if c.COWActivated != "" {
				book.equal(t, name+"/cow activated", hash(lab.content("7:1")), c.COWActivated)
			}
			if got.rc == 0 {
				lab.oddSteps(book, t, name, c)
			}
			want := cow
			if after := filepath.Join(dir, c.Name+".cow-after.img.gz"); exists(after) {
				want = unzip(t, after)
			}
			if hash(want) != c.COWAfter {
				t.Fatal("image afterwards damaged")
			}
			book.equal(t, name+"/cow after", imageDiff(lab.content("7:1"), want), "")
		})
	}
}

func (l *lab) oddSteps(book *ledger, t *testing.T, name string, c oddCase) {
	t.Helper()
	for i, s := range c.Steps {
		if s.Map != nil {
			book.equal(t, name+"/map", l.mapText(t), mapLines(s.Map))
			continue
		}
		got, what := l.step(vector{}, s)
		id := fmt.Sprintf("%s/%d %s %s", name, i, s.At, what)
		book.equal(t, id+" stdout", got.stdout, s.Stdout)
		book.equal(t, id+" rc", fmt.Sprint(got.rc), fmt.Sprint(s.RC))
	}
}

// mapText describes every 8 sectors of the snapshot that are not those of the
// origin: "cow N" where they are 8 sectors of the COW file, else their sum.
func (l *lab) mapText(t *testing.T) string {
	t.Helper()
	const run = 8
	cow, origin := l.content("7:1"), l.content("7:0")
	where := map[string]string{} // the first place counts
	for s := 0; (s+run)*sector <= len(cow); s++ {
		sum := hash(cow[s*sector : (s+run)*sector])
		if where[sum] == "" {
			where[sum] = "cow " + strconv.Itoa(s)
		}
	}
	found := map[string]string{}
	for s := 0; (s+run)*sector <= len(origin); s += run {
		sum, err := l.sum("snap", int64(s), run)
		switch {
		case err != nil:
			found[strconv.Itoa(s)] = errnoName(err)
		case sum == hash(origin[s*sector:(s+run)*sector]):
		case where[sum] != "":
			found[strconv.Itoa(s)] = where[sum]
		default:
			found[strconv.Itoa(s)] = sum
		}
	}
	return mapLines(found)
}

func mapLines(m map[string]string) string {
	keys := slices.SortedFunc(maps.Keys(m), func(a, b string) int {
		x, _ := strconv.Atoi(a)
		y, _ := strconv.Atoi(b)
		return x - y
	})
	var b strings.Builder
	for _, k := range keys {
		fmt.Fprintf(&b, "%s: %s\n", k, m[k])
	}
	return b.String()
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// layoutCase is a device and what writes through it leave below.
type layoutCase struct {
	Name      string
	Table     string
	Ops       []string
	TableOut  string                             `json:"table_out"`
	StatusOut string                             `json:"status_out"`
	Before    string                             `json:"sha256_before"`
	After     string                             `json:"sha256_after"`
	Legs      map[string]struct{ SHA256 string } `json:"legs_after"`
}

// TestLayout compares where linear and striped put what is written.
func TestLayout(t *testing.T) {
	var layout struct{ Cases []layoutCase }
	readJSON(t, "testdata/layout.json", &layout)
	if len(layout.Cases) < 9 {
		t.Fatalf("%d cases", len(layout.Cases))
	}
	book := newLedger(t, "layout")
	for _, c := range layout.Cases {
		t.Run(c.Name, func(t *testing.T) {
			lab := newLab(t)
			for i := range int64(3) {
				lab.device(fmt.Sprintf("7:%d", i), pattern(uint64(i+1), 0, 2048))
			}
			if a := lab.create("d", c.Table); a.rc != 0 {
				t.Fatalf("create: %s", a.stderr)
			}
			name := "layout/" + c.Name
			book.equal(t, name+"/before", lab.mustSum(t, "d"), c.Before)
			if a := lab.ops(c.Ops); a.rc != 0 {
				t.Errorf("ops: %s", a.stdout)
			}
			book.equal(t, name+"/table", lab.dmsetup([]string{"table", "d"}).stdout, c.TableOut)
			book.equal(t, name+"/status", lab.dmsetup([]string{"status", "d"}).stdout, c.StatusOut)
			book.equal(t, name+"/after", lab.mustSum(t, "d"), c.After)
			for node, leg := range c.Legs {
				book.equal(t, name+"/"+node, hash(lab.content(node)), leg.SHA256)
			}
		})
	}
}

func (l *lab) mustSum(t *testing.T, name string) string {
	t.Helper()
	sum, err := l.sum(name, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

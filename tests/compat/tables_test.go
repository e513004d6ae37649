package compat

import (
	"bytes"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/mapper"
	"github.com/dmfuse/dmfuse/tests/harness"
)

// tableCase is a table given to "dmsetup create" and what came of it.
type tableCase struct {
	Table        string
	RC           int
	Stderr       string
	TableOut     string `json:"table_out"`
	StatusOut    string `json:"status_out"`
	DepsOut      string `json:"deps_out"`
	InfoOut      string `json:"info_out"`
	KernelTable  string `json:"kernel_table"`
	KernelStatus string `json:"kernel_status"`
	DeviceLeft   bool   `json:"device_left"`
}

// tableLab has the devices that the tables name.
func tableLab(t *testing.T) *lab {
	lab := newLab(t)
	for i, sectors := range []int64{4096, 4096, 4096, 4096, 64, 2048, 3, 4096} {
		lab.device(fmt.Sprintf("7:%d", i), make([]byte, sectors*sector))
	}
	lab.blocks["7:7"] = 4096
	return lab
}

// settled is what a command prints. The recordings were made a moment after the
// device: a mirror is given that moment for its first synchronisation.
func (l *lab) settled(table, want string, argv ...string) (out string) {
	harness.Poll(10*time.Second, func() bool {
		out = l.dmsetup(argv).stdout
		return out == want || !strings.Contains(table, " mirror ")
	})
	return out
}

// TestTables gives good tables and compares what they became.
func TestTables(t *testing.T) {
	var tables struct{ Cases []tableCase }
	readJSON(t, "testdata/tables.json", &tables)
	if len(tables.Cases) < 40 {
		t.Fatalf("%d cases", len(tables.Cases))
	}
	eachTable(t, "tables", tables.Cases, func(t *testing.T, book *ledger, name string, c tableCase, lab *lab) {
		got := lab.create("t", c.Table)
		book.equal(t, name+" rc", fmt.Sprint(got.rc), fmt.Sprint(c.RC))
		if c.RC != 0 || got.rc != 0 {
			book.equal(t, name+" stderr", unnumbered(got.stderr), unnumbered(c.Stderr))
			return
		}
		for what, want := range map[string]string{"table": c.TableOut, "status": c.StatusOut, "deps": c.DepsOut, "info": c.InfoOut} {
			book.equal(t, name+" "+what, lab.settled(c.Table, want, what, "t"), want)
		}
	})
}

// TestBadTables gives tables most of which the kernel refuses: the same ones are
// refused here, with the same errno, and leave nothing behind.
func TestBadTables(t *testing.T) {
	var tables struct{ Cases []tableCase }
	readJSON(t, "testdata/bad-tables.json", &tables)
	if len(tables.Cases) < 100 {
		t.Fatalf("%d cases", len(tables.Cases))
	}
	eachTable(t, "bad-tables", tables.Cases, func(t *testing.T, book *ledger, name string, c tableCase, lab *lab) {
		got := lab.create("bad", c.Table)
		book.equal(t, name+" rc", fmt.Sprint(got.rc), fmt.Sprint(c.RC))
		book.equal(t, name+" stderr", unnumbered(got.stderr), unnumbered(c.Stderr))
		_, err := lab.m.Device(mapper.ByName("bad"))
		left := err == nil
		book.equal(t, name+" device left", fmt.Sprint(left), fmt.Sprint(c.DeviceLeft || c.RC == 0))
		if c.RC != 0 {
			for i := range 8 {
				node := fmt.Sprintf("7:%d", i)
				if content := lab.content(node); !bytes.Equal(content, make([]byte, len(content))) {
					t.Errorf("%s: device %s was written", name, node)
				}
			}
		} else if left {
			book.equal(t, name+" table", lab.dmsetup([]string{"table", "bad"}).stdout, c.KernelTable)
			book.equal(t, name+" status", lab.settled(c.Table, c.KernelStatus, "status", "bad"), c.KernelStatus)
		}
	})
}

// deviceNumber stands in messages only where the command made the device.
var deviceNumber = regexp.MustCompile(` \(253:\d+\)`)

func unnumbered(text string) string { return deviceNumber.ReplaceAllString(text, "") }

func eachTable(t *testing.T, area string, cases []tableCase, fn func(t *testing.T, book *ledger, name string, c tableCase, lab *lab)) {
	book := newLedger(t, area)
	for i, c := range cases {
		if shortened(i) {
			continue
		}
		name := fmt.Sprintf("%s/%d %s", area, i, strings.ReplaceAll(c.Table, "/", "|"))
		t.Run(filepath.Base(name), func(t *testing.T) { fn(t, book, name, c, tableLab(t)) })
	}
}

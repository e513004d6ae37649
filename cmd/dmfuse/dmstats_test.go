package main

import (
	"context"
	"regexp"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/mapper"
)

// statsMachine has the device s of 4096 sectors in two segments, and t.
func statsMachine(t *testing.T) *machine {
	t.Helper()
	m := newMachine(t, map[uint32]int64{0: 4096, 1: 4096}, nil)
	for name, table := range map[string]string{"s": "0 2048 linear 7:0 0\n2048 2048 linear 7:1 0", "t": "0 8 zero"} {
		if got := m.run("", "dmsetup", "create", name, "--table", table); got.Code != 0 {
			t.Fatalf("%+v", got)
		}
	}
	return m
}

// steps runs commands of dmstats and compares what they print, blanks at the
// end of lines apart.
func (m *machine) steps(t *testing.T, steps [][2]string) {
	t.Helper()
	trailing := regexp.MustCompile(`(?m) +$`)
	for _, s := range steps {
		code := 0
		want, failed := strings.CutPrefix(s[1], "FAILS ")
		if failed {
			code = 1
		}
		got := m.run("", append([]string{"dmstats"}, strings.Fields(s[0])...)...)
		if text := trailing.ReplaceAllString(got.Stdout+got.Stderr, ""); text != want || got.Code != code {
			t.Errorf("dmstats %s: exit %d\n%s\nwant %d\n%s", s[0], got.Code, text, code, want)
		}
	}
}

func TestDmstats_CreateListDelete(t *testing.T) {
	m := statsMachine(t)
	m.steps(t, [][2]string{
		{"create s", "s: Created new region with 1 area(s) as region ID 0\n"},
		{"create --areas 4 --userdata mine s", "s: Created new region with 4 area(s) as region ID 1\n"},
		{"create --areasize 1m --start 512k --length 1m --bounds 10ms,20ms s", "s: Created new region with 1 area(s) as region ID 2\n"},
		{"create --programid other --precise --bounds 500us s", "s: Created new region with 1 area(s) as region ID 3\n"},
		{"list", "" +
			"Name             GrpID RgID ObjType RgStart RgSize #Areas ArSize  ProgID\n" +
			"s                    -    0 region        0  2.00m      1   2.00m dmstats\n" +
			"s                    -    1 region        0  2.00m      4 512.00k dmstats\n" +
			"s                    -    2 region  512.00k  1.00m      1   1.00m dmstats\n"},
		{"list --units s --nosuffix --noheadings -o stats_name,region_start,area_len,hist_bins --allprograms s", "" +
			"s:0:4096:0\ns:0:1024:0\ns:1024:2048:3\ns:0:4096:2\n"},
		{"list --histogram --programid other --noheadings", "s:-:3:region:0:2.00m:1:2.00m:2:0, 500us\n"},
		{"list -v --noheadings -o region_id,obj_type,area_id,area_start --units b s", "" +
			"0:area:0:0b\n1:area:0:0b\n1:area:1:524288b\n1:area:2:1048576b\n1:area:3:1572864b\n2:area:0:524288b\n1:region:-:0b\n"},
		{"list -S region_len<2m -o region_id --noheadings", "2\n"},
		{"list -O -region_start -o region_id,user_data --noheadings", "2:\n0:\n1:mine\n"},
		{"list nosuch", "FAILS Device does not exist.\nCommand failed.\n"},
		{"delete --regionid 9 s", "FAILS device-mapper: message ioctl on s  failed: No such file or directory\nCould not delete statistics region\nCommand failed.\n"},
		{"delete --regionid 1 s", ""},
		{"delete --allregions --alldevices", ""},
		{"list --allprograms --noheadings -o region_id", "3\n"},
		{"delete --allregions --allprograms --alldevices", ""},
		{"list --allprograms", ""},
		{"create --alldevices", "s: Created new region with 1 area(s) as region ID 0\nt: Created new region with 1 area(s) as region ID 0\n"},
	})
}

func TestDmstats_Counters(t *testing.T) {
	m := statsMachine(t)
	m.steps(t, [][2]string{{"create --areas 2 s", "s: Created new region with 2 area(s) as region ID 0\n"}})
	d, err := m.m.Device(mapper.ByName("s"))
	if err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{0, 8 << 10, 2047 * 512} {
		if _, err := d.WriteAt(context.Background(), make([]byte, 4096), off, false); err != nil {
			t.Fatal(err)
		}
	}
	times := regexp.MustCompile(`(?m)^(\S+ \d+ \d+ \d+) \d+ (\d+ \d+ \d+) .*$`)
	print := func(args ...string) string {
		t.Helper()
		got := m.run("", append([]string{"dmstats", "print"}, args...)...)
		if got.Code != 0 || got.Stderr != "" {
			t.Fatalf("print %v: %+v", args, got)
		}
		return times.ReplaceAllString(got.Stdout, "$1 $2")
	}
	const counted = "0+2048 0 0 0 3 0 17\n2048+2048 0 0 0 1 0 7\n"
	if got := print("--regionid", "0", "s"); got != counted {
		t.Errorf("%q, want %q", got, counted)
	}
	got := m.run("", "dmstats", "report", "--noheadings", "--nosuffix", "--units", "s", "-o",
		"obj_type,area_id,write_count,write_sector_count,writes_per_sec,write_size_per_sec,avg_request_size,interval", "s")
	want := "area:0:3:17:3.00:17:5:1.000000\narea:1:1:7:1.00:7:7:1.000000\nregion:-:4:24:4.00:24:6:1.000000\n"
	if got.Stdout != want || got.Code != 0 {
		t.Errorf("report\n%s%s\nwant\n%s", got.Stdout, got.Stderr, want)
	}
	const none = "0+2048 0 0 0 0 0 0\n2048+2048 0 0 0 0 0 0\n"
	if got := print("--allregions"); got != none {
		t.Errorf("after a report %q, want %q", got, none)
	}
	m.steps(t, [][2]string{
		{"print --regionid 4 s", "FAILS device-mapper: message ioctl on s  failed: No such file or directory\nCould not print statistics region.\nCommand failed.\n"},
		{"clear --regionid 4 s", "FAILS No such region: 4.\nCommand failed.\n"},
		{"clear --allregions", ""},
		{"print --regionid 0 nosuch", "FAILS device-mapper: message ioctl on nosuch  failed: No such device or address\nCommand failed.\n"},
	})
}

func TestDmstats_Groups(t *testing.T) {
	m := statsMachine(t)
	m.steps(t, [][2]string{
		{"create --segments --alias both s", "" +
			"s: Created new region with 1 area(s) as region ID 0\ns: Created new region with 1 area(s) as region ID 1\n" +
			"Grouped regions 0,1 as group ID 0 with alias both\n"},
		{"create --userdata x s", "s: Created new region with 1 area(s) as region ID 2\n"},
		{"create s", "s: Created new region with 1 area(s) as region ID 3\n"},
		{"group --regions 2-3 s", "Grouped regions 2-3 as group ID 2 on s\n"},
		{"list --noheadings -o stats_name,group_id,region_id,obj_type,region_len,area_count,user_data", "" +
			"s:0:0:region:1.00m:1:\ns:0:1:region:1.00m:1:\ns:2:2:region:2.00m:1:x\ns:2:3:region:2.00m:1:\n" +
			"both:0:-:group:2.00m:2:\ns:2:-:group:4.00m:2:x\n"},
		{"list --group --noheadings -o stats_name", "both\ns\n"},
		{"group --regions 1,2 s", "FAILS Region ID 1 already a member of group ID 0\nCould not create group on s: 1,2\nCommand failed.\n"},
		{"ungroup --groupid 2 s", "Removed group ID 2 on s\n"},
		{"ungroup --groupid 2 s", "FAILS Could not delete group 2 on s.\nCommand failed.\n"},
		{"list --noheadings -o region_id,group_id,user_data", "0:0:\n1:0:\n2:-:x\n3:-:\n-:0:\n"},
		{"delete --groupid 0 s", "Deleted statistics group 0.\n"},
		{"list --noheadings -o region_id", "2\n3\n"},
	})
}

// Without devices, and without a daemon.
func TestDmstats_NoDevices(t *testing.T) {
	m := newMachine(t, nil, nil)
	m.steps(t, [][2]string{
		{"list", "No devices found\n"}, {"report", "No devices found\n"}, {"print --allregions", "No devices found\n"},
		{"create --alldevices", "No devices found\n"}, {"create x", "FAILS device-mapper: table ioctl on x  failed: No such device or address\nCommand failed.\n"},
	})
	m.socket = m.dir + "/nobody.sock"
	m.steps(t, [][2]string{
		{"list", "No devices found\n"}, {"clear --allregions x", "FAILS device-mapper: message ioctl on x  failed: No such device or address\nCommand failed.\n"},
	})
}

func TestParseUnits(t *testing.T) {
	for text, want := range map[string]string{
		"h": "1.46m", "H": "1.54M", "b": "1536000b", "s": "3000s", "S": "3000S", "k": "1500.00k", "K": "1536.00K", "m": "1.46m", "3s": "1000.00U", "2k": "750.00U",
	} {
		u, ok := parseUnits(text)
		if got := u.text(1536000, true); !ok || got != want {
			t.Errorf("%s: %q, %v, want %q", text, got, ok, want)
		}
	}
	for _, text := range []string{"", "q", "3", "hh", "3h", "-1k", "0k", "kk"} {
		if u, ok := parseUnits(text); ok {
			t.Errorf("%q is taken: %+v", text, u)
		}
	}
}

func TestParseBounds(t *testing.T) {
	for text, want := range map[string]int{"1": 1, "1ns,2us,3ms,4s": 4, "1000,1us": 0, "": 0, "x": 0, "5m": 0, "18446744073709551615s": 0} {
		if got, err := parseBounds(text); len(got) != want || (err == nil) != (want > 0) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
}

package main

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/dmfuse/dmfuse/control"
)

// Verbs that have no part in a mapper outside of the kernel: those about udev,
// the geometry, and measurements for IMA. They check what dmsetup checks.

// cookieValue reads a cookie: the number that holds the flags for udev rules.
func (d *dm) cookieValue(text string) (uint32, error) {
	n, err := strconv.ParseUint(text, 0, 32)
	if err != nil || n == 0 {
		return 0, d.plain(exitUsage, "Incorrect cookie value.")
	}
	return uint32(n), nil
}

// udevFlags prints the flags in a cookie as variables for udev rules. They are
// its upper half; the lowest byte of that has names, the next belongs to the
// subsystem.
func (d *dm) udevFlags(args []string) error {
	cookie, err := d.cookieValue(args[0])
	if err != nil {
		return err
	}
	names := []string{"DISABLE_DM_RULES", "DISABLE_SUBSYSTEM_RULES", "DISABLE_DISK_RULES", "DISABLE_OTHER_RULES",
		"LOW_PRIORITY", "DISABLE_LIBRARY_FALLBACK", "PRIMARY_SOURCE"}
	flags := cookie >> 16
	for i := range 16 {
		switch {
		case flags&(1<<i) == 0:
		case i < len(names):
			fmt.Fprintf(d.stdout, "DM_UDEV_%s_FLAG='1'\n", names[i])
		case i < 8:
			fmt.Fprintf(d.stdout, "DM_UDEV_FLAG%d='1'\n", i)
		default:
			fmt.Fprintf(d.stdout, "DM_SUBSYSTEM_UDEV_FLAG%d='1'\n", i-8)
		}
	}
	return nil
}

// udevComplete has nobody to tell: no command waits for udev.
func (d *dm) udevComplete(args []string) error {
	cookie, err := d.cookieValue(args[0])
	if err == nil {
		_, err = fmt.Fprintf(d.stdout, "DM_COOKIE_COMPLETED=0x%-10x\n", cookie)
	}
	return err
}

func (d *dm) udevReleaseCookie(args []string) error {
	if len(args) == 0 && !d.o.on("udevcookie") && d.env("DM_UDEV_COOKIE") == "" {
		return d.plain(exitUsage, "No udev transaction cookie given.")
	}
	return nil
}

// udevCookies lists none.
func (d *dm) udevCookies([]string) error {
	_, err := fmt.Fprintln(d.stdout, "Cookie       Semid      Value      Last semop time           Last change time")
	return err
}

// The largest geometry (kernel: dev_set_geometry).
const (
	maxCylinders = 65535
	maxHeads     = 255
	maxSectors   = 255
)

// setGeometry checks a geometry; nothing asks a file for one.
func (d *dm) setGeometry(args []string) error {
	key, err := d.argKey(args[0], true)
	if err != nil {
		return err
	}
	if _, err := d.tableOf(key, false); err != nil {
		return failed("setgeometry", key, err)
	}
	var n [4]uint64
	for i, text := range args[1:] {
		v, perr := strconv.ParseUint(text, 10, 64)
		if perr != nil {
			err = errors.Join(err, perr)
		}
		n[i] = v
	}
	if err != nil || n[0] > maxCylinders || n[1] > maxHeads || n[2] > maxSectors || n[3] > n[0]*n[1]*n[2] {
		return failed("setgeometry", key, control.Errorf(control.CodeInvalid,
			"the geometry is out of range: at most %d cylinders, %d heads, %d sectors, and a start below their product", maxCylinders, maxHeads, maxSectors))
	}
	return nil
}

// measure prints what a measurement of the table would say of each target: its
// name and version. What else the kernel's targets say is not in it.
func (d *dm) measure(args []string) error { return d.status(args) }

func (d *dm) measured(targets []control.TargetStatus) error {
	types, err := d.targetList()
	if err != nil {
		return err
	}
	for i := range targets {
		t := &targets[i]
		for _, known := range types {
			if known.Name == t.Type {
				t.Params = fmt.Sprintf("target_name=%s,target_version=%d.%d.%d;", t.Type, known.Version[0], known.Version[1], known.Version[2])
			}
		}
	}
	return nil
}

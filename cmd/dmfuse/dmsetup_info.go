package main

import (
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/dmfuse/dmfuse/control"
)

// libraryVersion and driverVersion are the versions of libdevmapper and of the
// kernel's device-mapper that this program behaves like.
const (
	libraryVersion = "1.02.214 (2026-04-01)"
	driverVersion  = "4.50.0"
)

// devices lists the devices there are; without a daemon there are none.
func (d *dm) devices() ([]control.Info, error) {
	if d.c == nil {
		return nil, nil
	}
	list, err := d.c.Devices(d.ctx)
	if err != nil {
		return nil, failed("names", control.Key{}, err)
	}
	return list, nil
}

// list lists the devices with what o asks for, in one request however many
// there are.
func (d *dm) list(o control.ListOptions) (control.DeviceList, error) {
	if d.c == nil {
		return control.DeviceList{}, nil
	}
	o.Inactive = d.o.on("inactive")
	l, err := d.c.List(d.ctx, o)
	if err != nil {
		return l, failed("names", control.Key{}, err)
	}
	return l, nil
}

// none says that there are no devices at all.
func (d *dm) none() error {
	if d.json {
		return nil
	}
	_, err := fmt.Fprintln(d.stdout, "No devices found")
	return err
}

// infoOf describes one device. dmsetup says of a missing one "Device does not
// exist." where it asks with info or status.
func (d *dm) infoOf(key control.Key) (control.Info, error) {
	if key.Minor != nil && d.o.on("major") && atoi(d.o.value["major"]) != d.major {
		return control.Info{}, d.missing(noDevice(key), key)
	}
	if d.c == nil {
		return control.Info{}, d.missing(noDevice(key), key)
	}
	i, err := d.c.Info(d.ctx, key, d.o.on("inactive"))
	if err != nil {
		return i, d.missing(err, key)
	}
	return i, nil
}

// missing words the error for a device that is not there.
func (d *dm) missing(err error, key control.Key) error {
	if d.people || !errors.Is(err, syscall.ENXIO) {
		return failed("info", key, err)
	}
	return d.plain(exitMissing, "Device does not exist.")
}

// infos are the devices of the arguments: those named, or all.
func (d *dm) infos(args []string) ([]control.Info, error) {
	if len(args) == 0 && !d.o.on("uuid") && !d.o.on("major") {
		return d.devices()
	}
	key, err := d.onlyKey(args)
	if err != nil {
		return nil, err
	}
	i, err := d.infoOf(key)
	if err != nil {
		return nil, err
	}
	return []control.Info{i}, nil
}

// info describes devices.
func (d *dm) info(args []string) error {
	all := len(args) == 0 && !d.o.on("uuid") && !d.o.on("major")
	infos, err := d.infos(args)
	if err != nil {
		return err
	}
	d.jsonKey = "devices"
	if all && len(infos) == 0 {
		return d.none()
	}
	for _, i := range infos {
		if err := d.showInfo(i); err != nil {
			return err
		}
	}
	return nil
}

// showInfo prints one device in full.
func (d *dm) showInfo(i control.Info) error {
	if d.json {
		d.jsonKey = "devices"
		d.jsonOut = append(d.jsonOut, i)
		return nil
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Name:              %s\n", d.mangling.show(i.Name))
	fmt.Fprintf(&b, "State:             %s\n", stateText(i))
	if i.ReadAheadKnown {
		fmt.Fprintf(&b, "Read Ahead:        %d\n", i.ReadAhead)
	}
	fmt.Fprintf(&b, "Tables present:    %s\n", tablesText(i))
	if !d.o.on("noopencount") {
		fmt.Fprintf(&b, "Open count:        %d\n", i.OpenCount)
	}
	fmt.Fprintf(&b, "Event number:      %d\n", i.EventNr)
	fmt.Fprintf(&b, "Major, minor:      %d, %d\n", i.Major, i.Minor)
	fmt.Fprintf(&b, "Number of targets: %d\n", i.Targets)
	if i.UUID != "" {
		fmt.Fprintf(&b, "UUID: %s\n", d.mangling.show(i.UUID))
	}
	if d.people && i.Problem != "" {
		fmt.Fprintf(&b, "Problem:           %s\n", i.Problem)
	}
	_, err := fmt.Fprintln(d.stdout, b.String())
	return err
}

func stateText(i control.Info) string {
	text := "ACTIVE"
	if i.Suspended {
		text = "SUSPENDED"
	}
	if i.ReadOnly {
		text += " (READ-ONLY)"
	}
	if i.DeferredRemove {
		text += " (DEFERRED REMOVE)"
	}
	return text
}

func tablesText(i control.Info) string {
	switch {
	case i.Live && i.Inactive:
		return "LIVE & INACTIVE"
	case i.Live:
		return "LIVE"
	case i.Inactive:
		return "INACTIVE"
	}
	return "None"
}

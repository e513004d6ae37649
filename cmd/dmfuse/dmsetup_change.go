package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/dmfuse/dmfuse/control"
)

// simple does one step on the device of the arguments.
func (d *dm) simple(args []string, st control.Step) error {
	key, err := d.onlyKey(args)
	if err != nil {
		return err
	}
	return d.simpleKey(key, st)
}

func (d *dm) simpleKey(key control.Key, st control.Step) error {
	st.Key = key
	st.NoFlush, st.NoLockFS = d.o.on("noflush"), d.o.on("nolockfs")
	res, err := d.do(st)
	if err != nil {
		return failed(ioctlName(st.Op), key, err)
	}
	if n := d.readAhead(); n != nil && st.Op == control.OpResume {
		if res, err = d.do(control.Step{Op: control.OpAttr, Key: key, Attr: &control.Attr{ReadAhead: n}}); err != nil {
			return failed(ioctlName(st.Op), key, err)
		}
	}
	return d.afterChange(res)
}

// onlyKey is the device of a verb that takes one device or -u or -j -m.
func (d *dm) onlyKey(args []string) (control.Key, error) {
	if len(args) > 0 {
		return d.argKey(args[0], true)
	}
	return d.argKey("", false)
}

func (d *dm) clear(args []string) error { return d.simple(args, control.Step{Op: control.OpClear}) }

// The tries of remove --retry (libdevmapper: DM_RETRY_USLEEP_DELAY).
const (
	removeTries = 25
	removePause = 200 * time.Millisecond
)

// remove removes a device; with --force its table is replaced first by one
// that errors, so that even a device that stays open does no more harm.
func (d *dm) remove(args []string) error {
	key, err := d.onlyKey(args)
	if err != nil {
		return err
	}
	if d.o.on("force") && len(args) > 0 {
		if err := d.wipeKey(key); err != nil {
			d.say(err)
		}
	}
	tries := 1
	if d.o.on("retry") {
		tries = removeTries
	}
	st := control.Step{Op: control.OpRemove, Key: key, Deferred: d.o.on("deferred")}
	return d.tellBrokenOff(func() error {
		for {
			_, err := d.do(st)
			tries--
			if tries == 0 || !errors.Is(err, syscall.EBUSY) || !pause(d.ctx, removePause) {
				return failed("remove", key, err)
			}
		}
	})
}

// pause waits, and says false when the context ends first.
func pause(ctx context.Context, limit time.Duration) bool {
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// removeAll removes what is not open; with --force the rest gets tables that
// error, and another try.
func (d *dm) removeAll([]string) error {
	if d.c == nil {
		return nil
	}
	return d.tellBrokenOff(d.removeEvery)
}

func (d *dm) removeEvery() error {
	skipped, err := d.c.RemoveAll(d.ctx)
	if err != nil {
		return failed("remove_all", control.Key{}, err)
	}
	if d.o.on("force") && len(skipped) > 0 {
		for _, name := range skipped {
			if err := d.wipeKey(control.ByName(name)); err != nil {
				d.say(err)
			}
		}
		if skipped, err = d.c.RemoveAll(d.ctx); err != nil {
			return failed("remove_all", control.Key{}, err)
		}
		if len(skipped) > 0 && !d.people {
			fmt.Fprintf(d.stderr, "Unable to remove %d device(s).\n", len(skipped))
		}
	}
	if d.people && len(skipped) > 0 {
		return fail(exitBusy, fmt.Errorf("still open, so not removed: %s", strings.Join(skipped, ", ")), "")
	}
	return nil
}

func (d *dm) wipe(args []string) error {
	if len(args) == 0 {
		return d.plain(exitUsage, "No device specified.")
	}
	key, err := d.argKey(args[0], true)
	if err != nil {
		return err
	}
	return d.wipeKey(key)
}

// wipeKey replaces the table by an error target of the same size. As dmsetup
// it goes on to load when the size cannot be had, so that both are said.
func (d *dm) wipeKey(key control.Key) error {
	var size uint64
	reply, err := d.tableOf(key, d.o.on("inactive"))
	if err != nil {
		d.say(failed("table", key, err))
	}
	for _, t := range reply.Targets {
		size += t.Length
	}
	_, err = d.do(control.Step{
		Op: control.OpLoad, Key: key, ReadOnly: d.o.on("readonly"),
		Table: []control.Line{{Length: size, Type: "error", Args: []string{}}},
	})
	if err != nil {
		return failed("reload", key, err)
	}
	if d.o.on("force") {
		// Flushing what hangs is what force is there to avoid.
		d.o.set("noflush", "")
		d.o.set("nolockfs", "")
	}
	if err := d.resumeKey(key); err != nil {
		if err := d.simpleKey(key, control.Step{Op: control.OpClear}); err != nil {
			d.say(err)
		}
		return err
	}
	return nil
}

func (d *dm) tableOf(key control.Key, inactive bool) (control.StatusReply, error) {
	if d.c == nil {
		return control.StatusReply{}, noDevice(key)
	}
	return d.c.Table(d.ctx, key, inactive)
}

// rename gives a device another name, or its first uuid. The kernel knows the
// device by its name only here.
func (d *dm) rename(args []string) error {
	key, err := d.onlyKey(args[:len(args)-1])
	if err != nil {
		return err
	}
	st := control.Step{Op: control.OpRename, Key: key}
	word := args[len(args)-1]
	if d.o.on("setuuid") {
		st.Op = control.OpSetUUID
		st.NewUUID, err = d.newUUID(word)
	} else {
		st.NewName, err = d.newName(word)
	}
	if err != nil {
		return err
	}
	_, err = d.do(st)
	return failed("rename", key, err)
}

// message sends words to the target at a sector.
func (d *dm) message(args []string) error {
	key, rest, err := d.firstKey(args)
	if err != nil {
		return err
	}
	if len(rest) == 0 {
		return d.plain(exitUsage, "Invalid sector.")
	}
	sector, err := strconv.ParseUint(rest[0], 10, 64)
	if err != nil {
		return d.plain(exitUsage, "Invalid sector.")
	}
	if len(rest) == 1 && !d.people {
		fmt.Fprintln(d.stderr, "No message supplied.")
	}
	if d.c == nil {
		return failed("message", key, noDevice(key))
	}
	// dmsetup sends one text, which is split at blanks again.
	words := messageWords(strings.Join(rest[1:], " "))
	text, err := d.c.Message(d.ctx, key, sector, words)
	if err != nil {
		return failed("message", key, err)
	}
	if d.json {
		return d.printJSON(control.MessageReply{Text: text})
	}
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	_, err = fmt.Fprint(d.stdout, text)
	return err
}

// messageWords splits a message as the kernel does: at blanks, and a backslash
// makes the next character part of a word (dm_split_args).
func messageWords(text string) (words []string) {
	var word strings.Builder
	in := false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '\\' && i+1 < len(text):
			i++
			word.WriteByte(text[i])
			in = true
		case strings.IndexByte(" \t\n\v\f\r", c) < 0:
			word.WriteByte(c)
			in = true
		case in:
			words = append(words, word.String())
			word.Reset()
			in = false
		}
	}
	if in {
		words = append(words, word.String())
	}
	return words
}

// wait returns when the device has had another number of events than given.
func (d *dm) wait(args []string) error {
	key, rest, err := d.firstKey(args)
	if err != nil {
		return err
	}
	nr := uint32(0)
	if len(rest) > 0 {
		text := rest[len(rest)-1]
		nr = uint32(atoi(text))
		// dmsetup takes every word; what is no number would wait for the wrong event.
		if _, err := strconv.ParseUint(text, 10, 32); err != nil && d.people {
			return usagef("wait: %q is no event number: give one of 0 to 4294967295, as info prints it", text)
		}
	}
	if d.c == nil {
		return failed("waitevent", key, noDevice(key))
	}
	ctx, cancel := context.WithCancel(d.ctx)
	if d.o.on("timeout") {
		seconds, _ := strconv.ParseFloat(d.o.value["timeout"], 64) // see checkOwn
		ctx, cancel = context.WithTimeout(d.ctx, time.Duration(seconds*float64(time.Second)))
	}
	defer cancel()
	got, err := d.c.Wait(ctx, key, nr)
	if errors.Is(err, context.DeadlineExceeded) {
		return fail(exitTimeout, fmt.Errorf("no event of %s in %s seconds", keyName(key), d.o.value["timeout"]), "")
	}
	if err != nil {
		return failed("waitevent", key, err)
	}
	if d.json {
		return d.printJSON(control.WaitReply{EventNr: got})
	}
	if !d.o.on("verbose") {
		return nil
	}
	info, err := d.c.Info(d.ctx, key, false)
	if err != nil {
		return failed("waitevent", key, err)
	}
	return d.showInfo(info)
}

// mknodes has nothing to do: the mount holds a file for each device.
func (d *dm) mknodes([]string) error { return nil }

// mangle renames devices whose names hold characters that names of nodes
// cannot have.
func (d *dm) mangle(args []string) error {
	infos, err := d.infos(args)
	d.jsonKey = "devices"
	switch {
	case err != nil && d.people:
		return err
	case d.people && len(infos) == 0:
		return d.none()
	case err != nil || len(infos) == 0: // dmsetup says nothing
		return said{exitFailed}
	}
	for _, i := range infos {
		name, err := mangleAuto.mangle(i.Name, "name", maxName)
		if err != nil {
			return d.plain(exitFailed, "%v", err)
		}
		d.showMangle(i, name)
		if name == i.Name {
			continue
		}
		if _, err := d.do(control.Step{Op: control.OpRename, Key: control.ByName(i.Name), NewName: name}); err != nil {
			return failed("rename", control.ByName(i.Name), err)
		}
	}
	return nil
}

// showMangle tells which name mangle gives to a device.
func (d *dm) showMangle(i control.Info, name string) {
	uuid := i.UUID
	if uuid == "" {
		uuid = "[no UUID]"
	}
	switch {
	case d.json:
		d.jsonOut = append(d.jsonOut, map[string]any{"name": name, "old_name": i.Name, "uuid": i.UUID, "renamed": name != i.Name})
	case name == i.Name:
		fmt.Fprintf(d.stdout, "%s: %s: name already in correct form\n", i.Name, uuid)
	default:
		fmt.Fprintf(d.stdout, "%s: renaming to %s\n", i.Name, name)
	}
}

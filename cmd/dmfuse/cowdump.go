package main

import (
	"bufio"
	"encoding/json"
	"fmt"

	"github.com/dmfuse/dmfuse/control"
	"github.com/dmfuse/dmfuse/snapshot"
)

// cow dump prints as it reads: a store has as many lines as it keeps chunks.

// cowDump prints the header and the log of a store.
func (a *app) cowDump(f cowFacts, assume *sizeFlag) error {
	chunk, err := chunkFlag("--assume-chunk-size", assume)
	if err != nil {
		return err
	}
	h, err := snapshot.ReadHeader(f.dev)
	if err != nil {
		return fmt.Errorf("%s: %w", f.path, err)
	}
	if chunk == 0 {
		if err := h.Validate(); err != nil {
			return fail(exitFailed, fmt.Errorf("%s cannot be printed: %w", f.path, err), "where you know the chunk size, give it: --assume-chunk-size 4k")
		}
		if chunk, err = h.Chunk(); err != nil {
			return err
		}
	}
	out := bufio.NewWriterSize(a.stdout, 64<<10)
	d := dumper{app: a, out: out, chunk: chunk.Bytes()}
	d.head(f.path, h)
	end, err := snapshot.Dump(f.dev, chunk, d.entry, d.unreadable)
	if err != nil {
		return fmt.Errorf("%s: %w", f.path, err)
	}
	d.end(end)
	if err := out.Flush(); err != nil {
		return err
	}
	if end.Unreadable > 0 || !end.Terminated {
		return fail(exitDegraded, fmt.Errorf("the store %s is damaged: %s cannot be read, the list ends: %v", f.path, count(end.Unreadable, "part"), end.Terminated), "dmfuse cow check "+shellQuote(f.path))
	}
	return nil
}

// dumper writes a dump: text, or one JSON object whose array has one exception
// a line. Errors of the writer stick to it and come with the last flush.
type dumper struct {
	*app
	out   *bufio.Writer
	chunk int64
	n     int
	bad   []snapshot.Unreadable
}

func (d *dumper) head(path string, h snapshot.Header) {
	if d.json {
		head, _ := json.Marshal(h)
		name, _ := json.Marshal(path)
		fmt.Fprintf(d.out, `{"schema_version":%d,"path":%s,"header":%s,"chunk_size_bytes":%d,"exceptions":[`, control.SchemaVersion, name, head, d.chunk)
		return
	}
	if !d.noHeadings {
		fmt.Fprintf(d.out, "# %s: valid %d, version %d, chunk size %d sectors\n", path, h.Valid, h.Version, h.ChunkSize)
		fmt.Fprintln(d.out, "AREA   ENTRY  OLD          NEW          ORIGIN-OFFSET   COW-OFFSET")
	}
}

func (d *dumper) entry(e snapshot.Entry) {
	origin, cow := d.place(e.Old), d.place(e.New)
	if !d.json {
		fmt.Fprintf(d.out, "%-6d %-6d %-12d %-12d %-15s %s\n", e.Area, e.Entry, e.Old, e.New, origin, cow)
		return
	}
	comma := ","
	if d.n++; d.n == 1 {
		comma = ""
	}
	fmt.Fprintf(d.out, "%s\n"+`{"area":%d,"entry":%d,"old_chunk":%d,"new_chunk":%d`, comma, e.Area, e.Entry, e.Old, e.New)
	if origin != "-" {
		fmt.Fprintf(d.out, `,"origin_offset_bytes":%s`, origin)
	}
	if cow != "-" {
		fmt.Fprintf(d.out, `,"cow_offset_bytes":%s`, cow)
	}
	d.out.WriteByte('}')
}

// place is the first byte of a chunk, - where no device can have it.
func (d *dumper) place(chunk uint64) string {
	if off := int64(chunk) * d.chunk; chunk < 1<<62 && off >= 0 && uint64(off/d.chunk) == chunk {
		return fmt.Sprint(off)
	}
	return "-"
}

func (d *dumper) unreadable(u snapshot.Unreadable) {
	if d.json {
		d.bad = append(d.bad, u)
		return
	}
	fmt.Fprintf(d.out, "# area %d: %d bytes at byte %d cannot be read: %s\n", u.Area, u.Length, u.Offset, u.Error)
}

func (d *dumper) end(e snapshot.DumpEnd) {
	if !d.json {
		return
	}
	b, _ := json.Marshal(struct {
		Bad []snapshot.Unreadable `json:"unreadable"`
		End snapshot.DumpEnd      `json:"end"`
	}{append([]snapshot.Unreadable{}, d.bad...), e})
	fmt.Fprintf(d.out, "\n],%s\n", b[1:])
}

package main

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
)

// aim is a promise of speed: in one row, a subject against another, or, with
// AtMost, its own figure.
type aim struct {
	Row     string  `json:"row"`
	Subject string  `json:"subject"`
	Against string  `json:"against"`
	AtLeast float64 `json:"at_least,omitempty"`
	AtMost  float64 `json:"at_most,omitempty"`
	Ratio   float64 `json:"ratio"`
	Low     float64 `json:"low"`
	High    float64 `json:"high"`
	Met     bool    `json:"met"`
}

// aims are the promises. In memory nothing but the program itself is measured.
func aims() []aim {
	return []aim{
		{Row: "memory/4k-read-d1", Subject: nameSnap4k, Against: nameQcow64k, AtLeast: 1},
		{Row: "memory/4k-read-d16", Subject: nameSnap4k, Against: nameQcow64k, AtLeast: 1.8},
		{Row: "memory/4k-read-d1", Subject: nameHalf, Against: nameSnap4k, AtLeast: 0.9},
		{Row: "memory/4k-read-d16", Subject: nameHalf, Against: nameSnap4k, AtLeast: 0.9},
		{Row: "memory/4k-read-d1", Subject: nameFull, Against: nameSnap4k, AtLeast: 0.9},
		{Row: "memory/4k-read-d16", Subject: nameFull, Against: nameSnap4k, AtLeast: 0.9},
		{Row: "memory/4k-write-d1", Subject: nameSnap4k, Against: nameQcow64k, AtLeast: 1.2},
		{Row: "memory/4k-write-d1", Subject: nameSnap4k, Against: nameQcow4k, AtLeast: 1.2},
		{Row: "memory/4k-rewrite-d1", Subject: nameFull, Against: nameQcowFull, AtLeast: 1.2},
		{Row: "memory/4k-rewrite-d16", Subject: nameFull, Against: nameQcowFull, AtLeast: 1.7},
		{Row: "memory/4k-rewrite-d1", Subject: nameFull + overURingWord, Against: nameQcowFull, AtLeast: 1.5},
		{Row: "memory/4k-rewrite-d16", Subject: nameFull + overURingWord, Against: nameQcowFull, AtLeast: 2},
		{Row: "disk/4k-write-d16", Subject: nameLazy, Against: nameSnap4k, AtLeast: 1.5},
		{Row: "disk/4k-syncwrite-d16", Subject: nameOrigin1, Against: nameBeforeSync, AtLeast: 1.5},
		{Row: "memory/1M-seqread-d16", Subject: nameSnap4k, Against: nameBest, AtLeast: 1},
		{Row: "memory/1M-seqwrite-d16", Subject: nameSnap4k, Against: nameBest, AtLeast: 1},
		{Row: "memory/1M-seqwrite-d16", Subject: nameSnap4k, Against: nameQcow64k, AtLeast: 1},
		{Row: "memory/1M-seqwrite-d16", Subject: nameLinear, Against: nameRaw, AtLeast: 1},
		{Row: "memory/ext4-untar", Subject: nameSnap4k, Against: nameQcow64k, AtLeast: 1.3},
		{Row: "memory/ext4-sqlite", Subject: nameSnap4k, Against: nameQcow64k, AtLeast: 1.3},
		{Row: "memory/4k-read-d1", Subject: nameSnap4k, Against: nameGoFuse, AtLeast: 1.1},
		{Row: "memory/4k-read-d16", Subject: nameSnap4k, Against: nameGoFuse, AtLeast: 1.1},
		{Row: "memory/4k-read-d1", Subject: nameSnap4k + overURingWord, Against: nameQcow64k, AtLeast: 1.5},
		{Row: "memory/4k-read-d16", Subject: nameSnap4k + overURingWord, Against: nameQcow64k, AtLeast: 2.5},
		{Row: "memory/4k-read-d1", Subject: nameSnap4k + overURingWord, Against: nameGoFuse, AtLeast: 1.7},
		{Row: "memory/4k-read-d16", Subject: nameSnap4k + overURingWord, Against: nameGoFuse, AtLeast: 1.7},
		{Row: "memory/4k-write-d1", Subject: nameSnap4k + overURingWord, Against: nameQcow64k, AtLeast: 1.5},
		{Row: "memory/4k-write-d1", Subject: nameSnap4k + overURingWord, Against: nameQcow4k, AtLeast: 1.5},
		{Row: "memory/4k-write-d16", Subject: nameSnap4k + overURingWord, Against: nameQcow64k, AtLeast: 2},
		{Row: "memory/4k-write-d16", Subject: nameSnap4k + overURingWord, Against: nameQcow4k, AtLeast: 2},
		{Row: "memory/1M-seqread-d16", Subject: nameSnap4k + overURingWord, Against: nameSnap4k, AtLeast: 0.9},
		{Row: "memory/1M-seqwrite-d16", Subject: nameSnap4k + overURingWord, Against: nameSnap4k, AtLeast: 0.9},
		{Row: "memory/4k-read-d1", Subject: nameLinear, Against: nameLinear + aloneWord, AtLeast: 0.97},
		{Row: "memory/4k-read-d16", Subject: nameLinear, Against: nameLinear + aloneWord, AtLeast: 0.97},
		{Row: "memory/4k-write-d1", Subject: nameLinear, Against: nameLinear + aloneWord, AtLeast: 0.97},
		{Row: "memory/4k-write-d16", Subject: nameLinear, Against: nameLinear + aloneWord, AtLeast: 0.97},
		{Row: "memory/4k-read-d1", Subject: nameSnap4k, Against: nameSnap4k + aloneWord, AtLeast: 0.97},
		{Row: "memory/4k-read-d16", Subject: nameSnap4k, Against: nameSnap4k + aloneWord, AtLeast: 0.97},
		{Row: "memory/4k-write-d1", Subject: nameSnap4k, Against: nameSnap4k + aloneWord, AtLeast: 0.97},
		{Row: "memory/4k-write-d16", Subject: nameSnap4k, Against: nameSnap4k + aloneWord, AtLeast: 0.97},
		{Row: "memory/1M-read-d1", Subject: nameSnap4k, Against: nameGoFuse, AtLeast: 0.9},
		{Row: "memory/1M-read-d16", Subject: nameSnap4k, Against: nameGoFuse, AtLeast: 0.9},
		{Row: "memory/4k-write-d16", Subject: nameSnap4k, Against: nameQcow64k, AtLeast: 1.7},
		{Row: "memory/4k-write-d16", Subject: nameSnap4k, Against: nameQcow4k, AtLeast: 1.7},
		{Row: "memory/1M-write-d16", Subject: nameSnap64k, Against: nameQcow64k, AtLeast: 1},
		{Row: "memory/1M-write-d16", Subject: nameSnap4k, Against: nameQcow4k, AtLeast: 1},
		{Row: "memory/4k-originwrite-d1", Subject: nameOrigin8, Against: nameOrigin1, AtLeast: 0.5},
		{Row: "memory/4k-originwrite-d16", Subject: nameOrigin8, Against: nameOrigin1, AtLeast: 0.5},
		{Row: "disk/4k-originwrite-d1", Subject: nameOrigin8, Against: nameOrigin1, AtLeast: 0.5},
		{Row: "disk/4k-originwrite-d16", Subject: nameOrigin8, Against: nameOrigin1, AtLeast: 0.5},
		{Row: "memory/4k-write-d16", Subject: nameMirror, Against: nameLinear, AtLeast: 0.7},
		{Row: "memory/4k-read-d16", Subject: nameMirror, Against: nameMirror1, AtLeast: 1},
		{Row: "memory/read-beside", Subject: nameBesideResync, Against: nameAlone, AtLeast: 0.7},
		{Row: "memory/read-beside", Subject: nameBesideMerge, Against: nameAlone, AtLeast: 0.7},
		{Row: "disk/read-beside", Subject: nameBesideResync, Against: nameAlone, AtLeast: 0.7},
		{Row: "disk/read-beside", Subject: nameBesideMerge, Against: nameAlone, AtLeast: 0.7},
		{Row: "memory/resync", Subject: nameResync, Against: nameBest, AtLeast: 1},
		{Row: "memory/copy-4GiB", Subject: nameResync, Against: nameBest, AtLeast: 1},
		{Row: "disk/resync", Subject: nameResync, Against: nameBest, AtLeast: 1},
		{Row: "memory/resync-sparse", Subject: nameSparseNew, Against: nameResync, AtLeast: 10},
		{Row: "memory/create-1000", Subject: nameCreate, AtMost: 2},
		{Row: "memory/idle-1000", Subject: nameIdle, AtMost: 64},
		{Row: "memory/merge", Subject: nameMerge64k, Against: nameCommit, AtLeast: 2},
		{Row: "memory/merge", Subject: nameMerge4k, Against: nameCommit, AtLeast: 2},
		{Row: "disk/merge", Subject: nameMerge64k, Against: nameCommit, AtLeast: 2},
		{Row: "memory/open-10M", Subject: nameOpenRandom, AtMost: 3000},
		{Row: "memory/open-10M", Subject: nameOpenSequential, AtMost: 3000},
		{Row: "memory/worker-killed", Subject: namePauseIdle, AtMost: 20},
		{Row: "memory/worker-killed", Subject: namePauseBusy, AtMost: 60},
		{Row: "memory/first-byte-1TiB", Subject: nameFirstByte, AtMost: 50},
	}
}

// judge compares the rows with the aims.
func (rep *report) judge() {
	for _, a := range aims() {
		i := slices.IndexFunc(rep.Rows, func(r row) bool { return r.Place+"/"+r.Load == a.Row })
		if i < 0 {
			continue // not chosen
		}
		r := &rep.Rows[i]
		if r.cell(a.Subject) == nil || a.Against != "" && a.Against != nameBest && r.cell(a.Against) == nil {
			continue // likewise
		}
		list := r.ratios(a.Subject, a.Against)
		if a.Against == "" {
			list = r.figures(a.Subject)
		}
		if len(list) == 0 {
			rep.NotJudged = append(rep.NotJudged, notJudged{a.Row, a.Subject, a.Against, r.why(a.Subject, a.Against)})
			continue
		}
		a.Ratio, a.Low, a.High = median(list), slices.Min(list), slices.Max(list)
		a.Met = a.Ratio >= a.AtLeast && (a.AtMost == 0 || a.Ratio <= a.AtMost)
		rep.Aims = append(rep.Aims, a)
	}
}

// notJudged is an aim of a row that was measured, for which a figure is missing.
type notJudged struct {
	Row     string `json:"row"`
	Subject string `json:"subject"`
	Against string `json:"against"`
	Why     string `json:"why"`
}

// why tells what keeps two subjects of a row from being compared.
func (r *row) why(subjects ...string) string {
	for _, name := range subjects {
		if name == nameBest && len(r.best()) == 0 {
			return "no peer has a figure"
		}
		if c := r.cell(name); c != nil && len(c.Samples) == 0 {
			return name + ": " + cmp.Or(c.Error, "not measured")
		}
	}
	return "not measured"
}

// check is an error unless all aims of the rows are met.
func (rep *report) check() error {
	switch n := len(rep.NotJudged); {
	case rep.missed():
		return errors.New("an aim is missed")
	case n > 0:
		return fmt.Errorf("%d of %d aims could not be judged", n, n+len(rep.Aims))
	case len(rep.Aims) == 0:
		return errors.New("there is no aim for what was measured")
	}
	return nil
}

func (rep *report) missed() bool {
	return slices.ContainsFunc(rep.Aims, func(a aim) bool { return !a.Met })
}

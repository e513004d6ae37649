package snapshot

import "slices"

// span is a range of the origin and where a job wants it.
type span struct {
	job        int
	start, end int64
	at         int64 // on the COW device of the job
}

// shared is a range of the origin with all who want it.
type shared struct {
	start, end int64
	to         []place
	jobs       []int // the job of each place
}

// copyShared copies the chunks of all jobs. What several of them need is read
// once. The chunk sizes of the snapshots differ, and each has some chunks
// already: the ranges are cut where any of them begins or ends.
func (o *origin) copyShared(jobs []outJob) {
	for _, sh := range cutSpans(jobSpans(jobs), jobs) {
		o.copySpan(jobs, sh)
	}
}

// copySpan copies one range to all who want it.
func (o *origin) copySpan(jobs []outJob, sh shared) {
	for i, err := range o.copier.spread(jobs[sh.jobs[0]].s.source, sh.start, sh.end-sh.start, sh.to) {
		switch j := &jobs[sh.jobs[i]]; {
		case err == nil:
			j.c.work.saved(sh.end-sh.start, false)
		case j.err == nil:
			j.err = err
		}
	}
}

// jobSpans lists the runs of chunks of all jobs.
func jobSpans(jobs []outJob) []span {
	var list []span
	for i, j := range jobs {
		if j.own == nil {
			continue
		}
		for es := j.own.es; len(es) > 0; {
			k := inRow(es)
			start, end := j.c.offset(es[0].old), j.s.sourceEnd(j.c.offset(es[0].old+Chunk(k)))
			list = append(list, span{i, start, end, j.c.offset(es[0].new)})
			es = es[k:]
		}
	}
	return list
}

// cutSpans cuts the spans so that each part is wanted by the same jobs
// throughout. The parts come in ascending order.
func cutSpans(list []span, jobs []outJob) []shared {
	var cuts []int64
	for _, sp := range list {
		cuts = append(cuts, sp.start, sp.end)
	}
	slices.Sort(cuts)
	cuts = slices.Compact(cuts)
	slices.SortStableFunc(list, func(a, b span) int {
		if a.start != b.start {
			return int(min(max(a.start-b.start, -1), 1))
		}
		return a.job - b.job
	})
	var parts []shared
	var open []span // begun and not ended, at most one for each job
	for i := 0; i+1 < len(cuts); i++ {
		from, to := cuts[i], cuts[i+1]
		open = slices.DeleteFunc(open, func(sp span) bool { return sp.end <= from })
		for len(list) > 0 && list[0].start == from {
			open, list = append(open, list[0]), list[1:]
		}
		if len(open) == 0 {
			continue
		}
		p := shared{start: from, end: to}
		for _, sp := range open {
			p.to = append(p.to, place{jobs[sp.job].s.cow, sp.at + from - sp.start})
			p.jobs = append(p.jobs, sp.job)
		}
		parts = append(parts, p)
	}
	return parts
}

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

// load is what fio does in one cell of the table.
type load struct {
	block int // bytes of a request
	write bool
	depth int
	sync  bool // fdatasync after each write
	// origin: writes to an origin with more and more snapshots.
	origin bool
	seq    bool // from the beginning to the end, not in random places
	again  bool // of a write: where everything was written before
	mixed  bool // reads and writes by halves, where everything was written before; write is set
	jobs   int  // how many at once; 0 is one
	loop   bool // on a loop device with direct I/O over what the subject shows
}

// name is the word by which --rows finds a load.
func (l load) name() string {
	op := "read"
	switch {
	case l.origin:
		op = "originwrite"
	case l.mixed:
		op = "mixed"
	case l.sync:
		op = "syncwrite"
	case l.again:
		op = "rewrite"
	case l.write:
		op = "write"
	}
	if l.seq {
		op = "seq" + op
	}
	name := fmt.Sprintf("%s-%s-d%d", sizeWord(l.block), op, l.depth)
	if l.jobs > 1 {
		name += fmt.Sprintf("-j%d", l.jobs)
	}
	if l.loop {
		name = "loop-" + name
	}
	return name
}

// repeats says that a block may be met more than once: the load goes on until its
// time is over.
func (l load) repeats() bool { return !l.write || l.again || l.mixed }

func sizeWord(n int) string {
	if n >= 1<<20 {
		return fmt.Sprintf("%dM", n>>20)
	}
	return fmt.Sprintf("%dk", n>>10)
}

// unit is what a figure counts.
func (l load) unit() string {
	if l.block >= 1<<20 {
		return "MB/s"
	}
	return "1000/s"
}

// loads are all at a place. On a disk one write at a time shows how long the
// disk takes to make it durable, whoever asks for that: so everybody is asked.
func loads(place string) []load {
	var all []load
	for _, write := range []bool{false, true} {
		for _, block := range []int{4 << 10, 1 << 20} {
			for _, depth := range []int{1, 16} {
				if place == "disk" && block > 4<<10 && depth == 1 {
					continue
				}
				all = append(all, load{block: block, write: write, depth: depth, sync: place == "disk" && write && depth == 1})
			}
		}
	}
	for _, block := range []int{4 << 10, 64 << 10} {
		for _, depth := range []int{1, 16} {
			all = append(all, load{block: block, write: true, depth: depth, origin: true})
		}
	}
	for _, depth := range []int{1, 16} {
		all = append(all, load{block: 4 << 10, write: true, depth: depth, again: true})
	}
	if place == "disk" {
		all = append(all, load{block: 4 << 10, write: true, depth: 16, sync: true})
	}
	for _, write := range []bool{false, true} {
		all = append(all, load{block: 1 << 20, write: write, depth: 16, seq: true})
	}
	return all
}

// moreLoads are those that --all adds: other sizes and depths, mixed loads, four
// jobs at once, a loop device between.
func moreLoads(place string) []load {
	var all []load
	for _, write := range []bool{false, true} {
		for _, depth := range []int{1, 16, 64} {
			all = append(all, load{block: 64 << 10, write: write, depth: depth})
		}
		all = append(all, load{block: 4 << 10, write: write, depth: 64},
			load{block: 4 << 10, write: write, depth: 16, jobs: 4}, load{block: 1 << 20, write: write, depth: 16, jobs: 4})
	}
	for _, block := range []int{4 << 10, 64 << 10, 1 << 20} {
		all = append(all, load{block: block, write: true, depth: 16, mixed: true})
	}
	if place == "memory" {
		for _, write := range []bool{false, true} {
			for _, depth := range []int{1, 16} {
				all = append(all, load{block: 4 << 10, write: write, depth: depth, loop: true})
			}
		}
	}
	return all
}

// args are fio's words. A read goes over the file again and again until the
// time is up; a write ends when each block was written once, or before.
func (l load) args(path string, size int64, each time.Duration) []string {
	rw := "read"
	switch {
	case l.mixed:
		rw = "rw"
	case l.write:
		rw = "write"
	}
	if !l.seq {
		rw = "rand" + rw
	}
	jobs := int64(max(l.jobs, 1))
	args := []string{
		"--name=bench", "--filename=" + path, "--rw=" + rw, fmt.Sprintf("--bs=%d", l.block),
		fmt.Sprintf("--size=%d", size/jobs), fmt.Sprintf("--offset_increment=%d", size/jobs),
		fmt.Sprintf("--numjobs=%d", jobs), "--group_reporting",
		"--ioengine=libaio", fmt.Sprintf("--iodepth=%d", l.depth), "--direct=1", "--thread",
		fmt.Sprintf("--runtime=%dms", each.Milliseconds()), "--output-format=json",
		"--allow_file_create=0", "--invalidate=0",
	}
	if l.repeats() {
		args = append(args, "--time_based")
		if !l.seq {
			args = append(args, "--norandommap")
		}
	}
	if l.sync {
		args = append(args, "--fdatasync=1")
	}
	return args
}

// run has fio do the load on a file.
func (l load) run(ctx context.Context, o *opened, size int64, each time.Duration) (sample, error) {
	ctx, cancel := context.WithTimeout(ctx, each+time.Minute)
	defer cancel()
	before := o.cpuTime()
	out, err := command(ctx, "fio", l.args(cmp.Or(o.loop, o.path), size, each)...)
	used := o.cpuTime() - before
	if err != nil {
		return sample{}, err
	}
	s, err := l.parse(out)
	if err == nil {
		s.CPU = float64(used.Nanoseconds()) / 1000 / float64(s.Ops)
	}
	return s, err
}

// cpuTime is what all that serve it have used.
func (o *opened) cpuTime() time.Duration {
	sum := cpuTime(o.pid)
	for _, pid := range o.behind {
		sum += cpuTime(pid)
	}
	return sum
}

// cpuTime is what a process has used of the processors, its threads together.
func cpuTime(pid int) time.Duration {
	if pid == 0 {
		return 0
	}
	// The clock of another process: clock_getcpuclockid(3).
	const sched = 2
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|sched), &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// sample is one measurement.
type sample struct {
	Figure float64 `json:"figure"` // in the unit of the load
	P99    float64 `json:"p99_us"` // 99th percentile of the latency in microseconds
	CPU    float64 `json:"cpu_us"` // time of processors that the server used for a request, in microseconds
	Ops    int64   `json:"requests"`
}

// parse reads fio's answer.
func (l load) parse(out []byte) (sample, error) {
	type side struct {
		IOPS   float64 `json:"iops"`
		BW     float64 `json:"bw_bytes"`
		Total  int64   `json:"total_ios"`
		CLatNS struct {
			Percentile map[string]float64 `json:"percentile"`
		} `json:"clat_ns"`
	}
	var doc struct {
		Jobs []struct {
			Error int  `json:"error"`
			Read  side `json:"read"`
			Write side `json:"write"`
		} `json:"jobs"`
	}
	if err := json.Unmarshal(out, &doc); err != nil {
		return sample{}, fmt.Errorf("fio's answer: %w", err)
	}
	if len(doc.Jobs) != 1 {
		return sample{}, fmt.Errorf("fio's answer has %d jobs", len(doc.Jobs))
	}
	j := doc.Jobs[0]
	s := j.Read
	switch {
	case l.mixed: // both, with the worse of the two tails
		s.IOPS, s.BW, s.Total = s.IOPS+j.Write.IOPS, s.BW+j.Write.BW, s.Total+j.Write.Total
		if p := j.Write.CLatNS.Percentile; p["99.000000"] > s.CLatNS.Percentile["99.000000"] {
			s.CLatNS.Percentile = p
		}
	case l.write:
		s = j.Write
	}
	if j.Error != 0 || s.Total == 0 {
		return sample{}, fmt.Errorf("fio: error %d after %d requests", j.Error, s.Total)
	}
	figure := s.IOPS / 1000
	if l.unit() == "MB/s" {
		figure = s.BW / 1e6
	}
	return sample{Figure: figure, P99: s.CLatNS.Percentile["99.000000"] / 1000, Ops: s.Total}, nil
}

// installed finds the programs that are missing.
func installed(names ...string) error {
	for _, n := range names {
		if _, err := exec.LookPath(n); err != nil {
			return notHere("not installed: " + n)
		}
	}
	return nil
}

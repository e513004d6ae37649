package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// options are the words of the command line.
type options struct {
	bin    string         // the program under test
	old    string         // another build of it to compare with; "" none
	mem    string         // directory in memory; "" none
	disk   string         // directory on a disk; "" none
	out    string         // where the reports go
	rows   *regexp.Regexp // which loads, by place/name
	who    *regexp.Regexp // which subjects
	rounds int
	each   time.Duration // most that one load runs on one subject
	size   int64         // bytes of the devices
	all    bool          // the loads that tell little more, too
	quick  bool
	check  bool
}

func parse(args []string, errs io.Writer) (options, error) {
	var o options
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(errs)
	f.StringVar(&o.bin, "bin", "bin/dmfuse", "the program to measure")
	f.StringVar(&o.old, "old", "", "another build of the program, whose subjects get rows of their own")
	f.StringVar(&o.mem, "mem", "/dev/shm", "directory in memory, empty: leave out")
	f.StringVar(&o.disk, "disk", "/var/tmp", "directory on a disk, empty: leave out")
	f.StringVar(&o.out, "out", "bench-out", "directory of the reports")
	rows := f.String("rows", "", "only loads whose place/name matches, such as memory/4k-read")
	who := f.String("subjects", "", "only subjects whose name matches; go-fuse, the measure of all, is always there")
	f.IntVar(&o.rounds, "rounds", 3, "turns over all subjects")
	f.DurationVar(&o.each, "each", 350*time.Millisecond, "time of a load on a subject in a round")
	mib := f.Int64("size", 256, "MiB of each device")
	f.BoolVar(&o.all, "all", false, "more loads: 64k, depth 64, reads and writes mixed, four jobs, through a loop device; about half an hour")
	f.BoolVar(&o.quick, "quick", false, "one short round, in memory only")
	f.BoolVar(&o.check, "check", false, "exit status 1 when an aim is missed or cannot be judged")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	o.size = *mib << 20
	if o.quick {
		o.rounds, o.each, o.disk = 1, 200*time.Millisecond, ""
	}
	var err error
	switch {
	case f.NArg() > 0:
		return o, fmt.Errorf("unknown word %q", f.Arg(0))
	case o.rounds < 1 || o.each <= 0 || *mib < 1:
		return o, errors.New("rounds, each and size must be positive")
	}
	for _, dir := range []*string{&o.mem, &o.disk} {
		if *dir, err = plainDir(*dir); err != nil {
			return o, err
		}
	}
	if o.rows, err = regexp.Compile(*rows); err != nil {
		return o, fmt.Errorf("--rows: %w", err)
	}
	if o.who, err = regexp.Compile(*who); err != nil {
		return o, fmt.Errorf("--subjects: %w", err)
	}
	if len(chosen(o)) == 0 {
		every := o
		every.rows = regexp.MustCompile("")
		return o, fmt.Errorf("--rows %q matches none of the rows of these options, which are: %s", *rows, strings.Join(rowNames(chosen(every)), ", "))
	}
	if all := subjectNames(); !slices.ContainsFunc(all, o.who.MatchString) {
		return o, fmt.Errorf("--subjects %q matches none of the subjects, which are: %s", *who, strings.Join(all, "; "))
	}
	return o, nil
}

// plainDir is the absolute path of a directory, which is written into tables, into
// options of qemu and file names of fio: what means something there is refused.
func plainDir(dir string) (string, error) {
	if dir == "" {
		return "", nil
	}
	path, err := filepath.Abs(dir)
	if err == nil && strings.ContainsAny(path, " \t\n,:\\\"'") {
		err = fmt.Errorf("directory %q: expected a path without blanks, commas, colons, quotes and backslashes", path)
	}
	return path, err
}

func main() {
	// The death signal of children follows the thread that started them.
	runtime.LockOSThread()
	if len(os.Args) == 4 && os.Args[1] == passthroughWord {
		exit(passthrough(os.Args[2], os.Args[3]))
	}
	if len(os.Args) > 1 && os.Args[1] == compareWord {
		exit(compare(os.Stdout, os.Args[2:]))
	}
	o, err := parse(os.Args[1:], os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	// A reader of the output that goes away makes an error of a write, not an end
	// without cleaning up. (Ignoring the signal would be inherited.)
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	withoutSettings()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	exit(run(ctx, o, os.Stdout))
}

// withoutSettings takes the settings of the program under test out of the
// environment: what is measured does not depend on who measures.
func withoutSettings() {
	for _, e := range os.Environ() {
		if name, _, _ := strings.Cut(e, "="); strings.HasPrefix(name, "DMFUSE_") {
			os.Unsetenv(name)
		}
	}
}

// usageError is a command line that means nothing.
type usageError string

func (u usageError) Error() string { return string(u) }

func exit(err error) {
	if err == nil {
		os.Exit(0)
	}
	fmt.Fprintln(os.Stderr, "bench:", err)
	if _, usage := errors.AsType[usageError](err); usage {
		os.Exit(2)
	}
	os.Exit(1)
}

// run measures everything and writes the reports, also of a run that was broken
// off.
func run(ctx context.Context, o options, w io.Writer) error {
	if os.Geteuid() != 0 {
		return errors.New("needs root, to mount")
	}
	for _, bin := range []*string{&o.bin, &o.old} {
		if *bin == "" {
			continue
		}
		path, err := filepath.Abs(*bin)
		if err == nil {
			_, err = os.Stat(path)
		}
		if err != nil {
			return fmt.Errorf("%w (make build)", err)
		}
		*bin = path
	}
	for _, dir := range []string{o.mem, o.disk} {
		if st, err := os.Stat(dir); dir != "" && (err != nil || !st.IsDir()) {
			return fmt.Errorf("%s is no directory (%w)", dir, cmp.Or(err, error(syscall.ENOTDIR)))
		}
	}
	rep := report{SchemaVersion: 1, Machine: describeMachine(o), Rounds: o.rounds, SizeMiB: o.size >> 20}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	out := &printer{w: w, broken: cancel}
	out.print(rep.Machine.text())
	runErr := measure(ctx, o, &rep, out)
	if ctx.Err() != nil && out.err == nil {
		runErr = errors.Join(errors.New("interrupted"), runErr)
	}
	if len(rep.Rows) > 0 { // else the reports of the last run stay
		rep.judge()
		out.print(rep.text())
		runErr = errors.Join(runErr, rep.write(o.out))
	}
	runErr = errors.Join(out.err, runErr)
	if runErr == nil && o.check {
		return rep.check()
	}
	return runErr
}

// printer prints what is found; when that fails the run ends.
type printer struct {
	w      io.Writer
	broken func()
	err    error // the first
}

func (p *printer) print(s string) {
	if p.err != nil {
		return
	}
	if _, err := io.WriteString(p.w, s); err != nil {
		p.err = fmt.Errorf("the output ends here: %w", err)
		p.broken()
	}
}

// measure runs what is chosen at each place.
func measure(ctx context.Context, o options, rep *report, out *printer) error {
	for _, part := range chosen(o) {
		if err := measurePlace(ctx, o, part, rep, out); err != nil {
			return err
		}
	}
	return nil
}

func measurePlace(ctx context.Context, o options, part part, rep *report, out *printer) (err error) {
	p, err := newPlace(ctx, o, part.name, part.dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	for _, l := range part.loads {
		row, err := p.measure(ctx, l, o.rounds)
		rep.Rows = append(rep.Rows, row)
		out.print(row.text())
		if err != nil {
			return fmt.Errorf("%s/%s: %w", p.name, l.name(), err)
		}
	}
	for _, k := range part.tasks {
		row, err := p.do(ctx, k, o)
		rep.Rows = append(rep.Rows, row)
		out.print(row.text())
		if err != nil {
			return fmt.Errorf("%s/%s: %w", p.name, k.name, err)
		}
	}
	return nil
}

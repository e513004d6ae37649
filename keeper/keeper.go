package keeper

import (
	"bufio"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Options is what a keeper keeps.
type Options struct {
	// Args are the arguments of a worker, without the name of the program;
	// First are added for the first one.
	Args, First []string
	Env         []string

	Fuse   []int // /dev/fuse: the mounted descriptor and its clones
	Memory int
	Socket int // listening; a worker makes it non-blocking, so it must not be an os.File here, whose Fd undoes that
	Lock   int

	// Binary is where a newer program is looked for at SIGUSR2.
	Binary string

	// Ready is called once, when the first worker answers requests.
	Ready func(pid int)
	// Say tells a person what happens. Problem: something is wrong.
	Say func(problem bool, text string)

	// HungLimit is how long a worker may go without a sign of life; 0: 30 s.
	HungLimit time.Duration
	// UpgradeLimit is how long a new program may take to be ready; 0: 20 s.
	UpgradeLimit time.Duration
}

// keeper is one run of Run.
type keeper struct {
	o       Options
	signals chan os.Signal

	program  *program // of the present worker
	next     *program // wanted for the next one, or nil
	once     bool     // the kernel cannot resend
	wasReady bool     // some worker was
	ending   bool     // a signal to end came while no worker could take it
	tries    int      // workers that died since, or hung before one was ready
	pace     pace
}

// Run starts workers until one ends for good, and returns its exit code. An
// error is one of the keeper itself.
func Run(o Options) (code int, err error) {
	// A worker dies with the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if o.HungLimit == 0 {
		o.HungLimit = 30 * time.Second
	}
	if o.UpgradeLimit == 0 {
		o.UpgradeLimit = 20 * time.Second
	}
	k := &keeper{o: o, signals: make(chan os.Signal, 8)}
	if k.program, err = openProgram("/proc/self/exe"); err != nil {
		return 0, err
	}
	signal.Notify(k.signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGUSR2)
	defer signal.Stop(k.signals)
	return k.run()
}

func (k *keeper) run() (int, error) {
	why := First
	for {
		trial := why == Upgraded
		p := k.program
		if trial {
			p = k.next
		}
		w, err := k.start(p, why)
		var e end
		if err != nil {
			e = end{text: "could not be started: " + err.Error(), code: 1, crashed: true}
		} else {
			e = k.attend(w, trial)
		}
		switch {
		case trial && !e.ready:
			k.o.Say(true, fmt.Sprintf("the program %s is of no use, it %s: the old one goes on", p.name, e.text))
			p.close()
			k.next, why = nil, HandOver
			continue
		case e.final:
			return e.code, nil
		case !k.wasReady && e.hung && !k.ending && k.tries < maxTries:
			k.tries++
		case !k.wasReady:
			if err != nil {
				return 0, err
			}
			return max(e.code, 1), nil // it said why
		case e.code == ExitHandOver:
			why = HandOver
			if k.next != nil {
				why = Upgraded
			}
			continue
		case e.clean():
			return 0, nil
		case k.once:
			return 0, fmt.Errorf("the worker %s, and this kernel cannot give its requests to another one (Linux 6.9 can): the mount is dead", e.text)
		}
		why = Killed
		if e.crashed {
			why = Crashed
		}
		if k.ending && k.wasReady {
			if k.tries++; k.tries > maxTries {
				return 0, fmt.Errorf("the worker %s, and so did those before it: it cannot be told to end, so the keeper does", e.text)
			}
		}
		pause := k.pace.after(e.lived, e.crashed)
		k.o.Say(true, fmt.Sprintf("the worker %s after %v: starting the next%s", e.text, e.lived.Round(time.Millisecond), pauseText(pause)))
		k.wait(pause)
	}
}

// wait lets a time pass, but for a signal to end, which the next worker gets.
func (k *keeper) wait(pause time.Duration) {
	if pause == 0 {
		return
	}
	t := time.NewTimer(pause)
	defer t.Stop()
	for !k.ending {
		select {
		case <-t.C:
			return
		case s := <-k.signals:
			k.ending = s == syscall.SIGTERM || s == syscall.SIGINT
		}
	}
}

// running is a worker that was started.
type running struct {
	proc    *os.Process
	began   time.Time
	reports chan string
	ended   chan *os.ProcessState
	hurried bool // it goes before others; see hurry
}

// end is how a worker ended.
type end struct {
	ready   bool // it was ready
	final   bool // it said that there is to be no other
	crashed bool // by itself, or because it hung
	hung    bool
	at      string // the device that it was bringing back for long
	code    int    // exit code, -1: killed
	text    string
	lived   time.Duration
}

func (e end) clean() bool { return e.code == 0 && !e.crashed }

func (k *keeper) start(p *program, why Why) (*running, error) {
	r, report, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	args := append([]string{"dmfuse"}, k.o.Args...)
	if why == First {
		args = append(args, k.o.First...)
	}
	args = append(args, "--kept", keptText(len(k.o.Fuse), why))
	files := []uintptr{0, 1, 2, report.Fd(), uintptr(k.o.Memory), uintptr(k.o.Socket), uintptr(k.o.Lock)}
	for _, fd := range k.o.Fuse {
		files = append(files, uintptr(fd))
	}
	undo, hurried := func() {}, false
	if why != First {
		undo, hurried = hurry()
	}
	began := time.Now()
	pid, err := syscall.ForkExec(p.path(), args, &syscall.ProcAttr{
		Env: k.o.Env, Files: files,
		// A terminal's signals come to the keeper, which passes them on.
		Sys: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true},
	})
	undo()
	report.Close()
	if err != nil {
		r.Close()
		return nil, fmt.Errorf("starting %s: %w", p.name, err)
	}
	proc, err := os.FindProcess(pid)
	if err != nil {
		r.Close()
		return nil, err
	}
	w := &running{proc: proc, began: began, hurried: hurried, reports: make(chan string, 16), ended: make(chan *os.ProcessState, 1)}
	go func() {
		// Before the end is told, all that was reported is.
		lines := bufio.NewScanner(r)
		for lines.Scan() {
			w.reports <- lines.Text()
		}
		r.Close()
		close(w.reports)
	}()
	go func() {
		s, _ := proc.Wait()
		w.ended <- s
	}()
	return w, nil
}

// attend does what there is to do while a worker runs.
func (k *keeper) attend(w *running, trial bool) (e end) {
	reports := w.reports
	hung := time.NewTimer(k.o.HungLimit)
	var late <-chan time.Time // a new program that is not ready
	if trial {
		hung.Stop()
		t := time.NewTimer(k.o.UpgradeLimit)
		defer t.Stop()
		late = t.C
	}
	defer hung.Stop()
	var slow <-chan time.Time // a start that takes long goes before nobody
	if w.hurried {
		t := time.NewTimer(hurryLimit)
		defer t.Stop()
		slow = t.C
	}
	for {
		select {
		case <-slow:
			w.calm()
		case line, ok := <-reports:
			if !ok {
				reports = nil
				continue
			}
			e.hear(line)
			if line == "ready" {
				late = nil
				w.calm()
			}
			if at, ok := strings.CutPrefix(line, "restoring "); ok {
				e.at = at
				continue // which is no sign of life
			}
			k.reported(w, line, trial)
			if !trial || e.ready {
				hung.Reset(k.o.HungLimit)
			}
		case s := <-k.signals:
			k.pass(w, s, e.ready)
			if s == syscall.SIGUSR2 {
				hung.Reset(k.o.HungLimit)
			}
		case <-late:
			e.text = fmt.Sprintf("was not ready after %v and was killed", k.o.UpgradeLimit)
			_ = w.proc.Kill()
			late = nil
		case <-hung.C:
			e.crashed, e.hung = true, true
			e.text = fmt.Sprintf("gave no sign of life for %v and was killed", k.o.HungLimit)
			if !e.ready && e.at != "" {
				e.text += " (it was bringing back the device " + e.at + ")"
			}
			// Its goroutines first, for whoever looks for the reason.
			_ = w.proc.Signal(syscall.SIGQUIT)
			k.wait(500 * time.Millisecond)
			_ = w.proc.Kill()
		case s := <-w.ended:
			for reports != nil { // what it said last; the pipe is its alone
				line, ok := <-reports
				if !ok {
					break
				}
				e.hear(line)
				k.reported(w, line, trial)
			}
			return e.with(s, time.Since(w.began))
		}
	}
}

// hear adds what the worker says of itself.
func (e *end) hear(line string) {
	e.ready = e.ready || line == "ready"
	e.final = e.final || line == "final"
}

// with adds how the process ended.
func (e end) with(s *os.ProcessState, lived time.Duration) end {
	e.lived = lived
	if s == nil {
		e.code, e.text = -1, "was lost"
		return e
	}
	e.code = s.ExitCode()
	if ws, ok := s.Sys().(syscall.WaitStatus); ok && (!ws.Signaled() || ws.Signal() != syscall.SIGKILL) && e.code != 0 && e.code != ExitHandOver {
		e.crashed = true
	}
	if e.text == "" {
		e.text = fmt.Sprintf("ended (%v)", s)
	}
	return e
}

// calm makes the worker like any other process.
func (w *running) calm() {
	if w.hurried {
		w.hurried = false
		_ = calm(w.proc.Pid) // it may have died meanwhile
	}
}

// reported does what a report asks for.
func (k *keeper) reported(w *running, line string, trial bool) {
	word, rest := line, ""
	for i := range line {
		if line[i] == ' ' {
			word, rest = line[:i], line[i+1:]
			break
		}
	}
	switch word {
	case "once":
		k.once = true
		k.o.Say(true, "this kernel cannot resend requests (Linux 6.9 can): a daemon that dies takes its mount with it")
	case "upgrade":
		k.want(rest)
	case "ready":
		if !k.wasReady {
			k.wasReady = true
			k.o.Ready(w.proc.Pid)
			trim()
		} else {
			k.o.Say(false, fmt.Sprintf("worker %d goes on %v after it was started", w.proc.Pid, time.Since(w.began).Round(100*time.Microsecond)))
		}
		if trial { // it is none any more
			k.program.close()
			k.program, k.next = k.next, nil
			k.o.Say(false, "upgraded to "+k.program.name)
		}
		if k.ending {
			k.ending, k.tries = false, 0
			_ = w.proc.Signal(syscall.SIGTERM)
		}
	}
}

// pass hands a signal on. Before a worker is ready it may not know them yet.
func (k *keeper) pass(w *running, s os.Signal, ready bool) {
	switch {
	case s == syscall.SIGUSR2 && ready:
		if k.want(k.o.Binary) {
			_ = w.proc.Signal(s)
		}
	case s == syscall.SIGUSR2:
		k.o.Say(true, "no upgrade: the worker is not ready yet")
	case s == syscall.SIGQUIT:
		_ = w.proc.Signal(s)
	case ready:
		_ = w.proc.Signal(syscall.SIGTERM)
	default:
		k.ending = true
		if !k.wasReady {
			_ = w.proc.Signal(syscall.SIGTERM)
		}
	}
}

// want makes a program that of the next worker.
func (k *keeper) want(path string) bool {
	if k.once {
		k.o.Say(true, "no upgrade: this kernel cannot resend requests")
		return false
	}
	p, err := openProgram(path)
	if err != nil {
		k.o.Say(true, "no upgrade: "+err.Error())
		return false
	}
	if k.next != nil {
		k.next.close()
	}
	k.next = p
	return true
}

// program is a program file that is held open: it can be run when its path is
// gone or names another one.
type program struct {
	name string
	fd   int
}

// firstFD is above the descriptors that a worker gets, in whose place the child
// puts those.
const firstFD = 128

func openProgram(path string) (*program, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("the program %s: %w", path, err)
	}
	defer unix.Close(fd)
	high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, firstFD)
	if err != nil {
		return nil, fmt.Errorf("the program %s: %w", path, err)
	}
	name := path
	if real, err := os.Readlink(path); err == nil && path == "/proc/self/exe" {
		name = real
	}
	return &program{name: name, fd: high}, nil
}

func (p *program) path() string { return fmt.Sprintf("/proc/self/fd/%d", p.fd) }

func (p *program) close() { unix.Close(p.fd) }

// pace is how long to wait before the next worker: not at all after the first
// ends, longer while they die young.
type pace struct{ young int }

const maxPause = 5 * time.Second

// maxTries is how many workers may die before one is ready to be told to end.
const maxTries = 5

func (p *pace) after(lived time.Duration, crashed bool) time.Duration {
	if lived > 10*time.Second {
		p.young = 0
		return 0
	}
	p.young++
	switch {
	case p.young < 3:
		return 0
	case !crashed: // somebody kills it, and may go on doing so
		return min(time.Duration(p.young)*time.Millisecond, 100*time.Millisecond)
	}
	return min(50*time.Millisecond<<min(p.young-3, 10), maxPause)
}

func pauseText(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return fmt.Sprintf(" in %v", d)
}

package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// machine is what figures depend on.
type machine struct {
	Date    string   `json:"date"`
	CPU     string   `json:"cpu"`
	CPUs    int      `json:"cpus"`
	Memory  int64    `json:"memory_gib"`
	Kernel  string   `json:"kernel"`
	Go      string   `json:"go"`
	Program string   `json:"program"`
	Tools   []string `json:"tools"`
	Mem     string   `json:"memory_fs,omitempty"`
	Disk    string   `json:"disk_fs,omitempty"`
	Load    string   `json:"load_at_start"`
}

func describeMachine(o options) machine {
	m := machine{
		Date: time.Now().UTC().Format(time.DateOnly),
		CPU:  cpuModel(), CPUs: runtime.NumCPU(), Kernel: kernel(), Go: runtime.Version(), Load: loadAverage(),
		Program: firstLine(o.bin, "version"),
		Tools:   []string{firstLine("fio", "--version"), firstLine("qemu-storage-daemon", "--version")},
	}
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) == nil {
		m.Memory = int64(si.Totalram) * int64(si.Unit) >> 30
	}
	if o.mem != "" {
		m.Mem = fmt.Sprintf("%s (%s)", o.mem, fsType(o.mem))
	}
	if o.disk != "" {
		m.Disk = fmt.Sprintf("%s (%s)", o.disk, fsType(o.disk))
	}
	return m
}

func (m machine) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "machine: %d × %s, %d GiB, Linux %s, load %s at the start, %s\n", m.CPUs, m.CPU, m.Memory, m.Kernel, m.Load, m.Date)
	fmt.Fprintf(&b, "program: %s, %s; beside it: %s\n", m.Program, m.Go, strings.Join(m.Tools, "; "))
	fmt.Fprintf(&b, "places:  memory %s; disk %s\n\n", orNone(m.Mem), orNone(m.Disk))
	return b.String()
}

// short is the machine and the day in one line.
func (m machine) short() string {
	return fmt.Sprintf("%s; %d × %s, %d GiB, Linux %s, load %s at the start; %s", m.Date, m.CPUs, m.CPU, m.Memory, m.Kernel, m.Load, m.Program)
}

func orNone(s string) string {
	if s == "" {
		return "not measured"
	}
	return s
}

func cpuModel() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if name, value, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

func kernel() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}

func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	word, _, _ := strings.Cut(string(b), " ")
	return word
}

// firstLine is what a program says of itself, or that it is missing.
func firstLine(name string, args ...string) string {
	if _, err := exec.LookPath(name); err != nil {
		return name + " is not installed"
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	out, err := command(ctx, name, args...)
	if err != nil {
		return err.Error()
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}

// fsType names the common file systems by their magic number.
func fsType(path string) string {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return err.Error()
	}
	switch int64(st.Type) {
	case unix.TMPFS_MAGIC:
		return "tmpfs"
	case unix.EXT4_SUPER_MAGIC:
		return "ext4"
	case unix.XFS_SUPER_MAGIC:
		return "xfs"
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs"
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "overlay"
	}
	return fmt.Sprintf("file system %#x", st.Type)
}

package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// work is what is done in a mounted file system; it returns how much a second.
type work func(ctx context.Context, p *place, dir string) (float64, error)

// fsTasks are file systems on what a snapshot or an overlay shows, each through a
// loop device with direct I/O: what a user of an image waits for.
func fsTasks() []task {
	var list []task
	for _, w := range []struct {
		name, unit string
		needs      []string
		do         work
	}{
		{"ext4-untar", "MB/s", []string{"tar"}, untar},
		{"ext4-sqlite", "1/s", []string{"sqlite3"}, insert},
		{"ext4-git-clone", "MB/s", []string{"git", "tar"}, clone},
	} {
		k := task{name: w.name, unit: w.unit, places: []string{"memory", "disk"}}
		for _, s := range []struct {
			name  string
			ours  bool
			needs []string
			open  func(context.Context, *place, *opened) error
		}{
			{nameQcow64k, false, []string{"qemu-storage-daemon", "qemu-img"}, openQcow("cluster_size=64k")},
			{nameQcow4k, false, []string{"qemu-storage-daemon", "qemu-img"}, openQcow("cluster_size=4k")},
			{nameSnap4k, true, nil, openTable(snapshotTable(8))},
			{nameSnap64k, true, nil, openTable(snapshotTable(128))},
			{nameFile, false, nil, openBase},
		} {
			needs := append(append(s.needs, w.needs...), "losetup", "mkfs.ext4")
			k.subjects = append(k.subjects, taskSubject{s.name, s.ours, needs, inExt4(s.open, w.do)})
		}
		list = append(list, k)
	}
	return list
}

// inExt4 does work in an empty ext4 that lies below a new snapshot or overlay.
func inExt4(open func(context.Context, *place, *opened) error, do work) func(context.Context, *place, options) (float64, error) {
	return func(ctx context.Context, p *place, o options) (_ float64, err error) {
		if _, err := p.daemonOf(o.bin); err != nil { // it outlives what follows
			return 0, err
		}
		q := *p
		q.dir, q.end, q.images = p.path("ext4"), nil, 0
		defer func() { err = errors.Join(err, q.close()) }()
		if err := os.Mkdir(q.dir, 0o700); err != nil {
			return 0, err
		}
		q.end.add(func() error { return os.RemoveAll(q.dir) })
		if q.base, err = q.emptyExt4(ctx); err != nil {
			return 0, err
		}
		var on opened
		on.bin = o.bin
		defer func() { err = errors.Join(err, on.end.run()) }()
		if err := open(ctx, &q, &on); err != nil {
			return 0, err
		}
		dir, err := q.mount(ctx, &on)
		if err != nil {
			return 0, err
		}
		return do(ctx, &q, dir)
	}
}

// openBase is the image without a snapshot or a mount between: the loop device and the
// file system take this long.
func openBase(_ context.Context, p *place, o *opened) error {
	o.path = p.base
	return nil
}

// emptyExt4 makes an image with room for the work.
func (p *place) emptyExt4(ctx context.Context) (string, error) {
	path := p.path("base")
	f, err := os.Create(path)
	if err == nil {
		err = errors.Join(f.Truncate(p.size), f.Close())
	}
	if err != nil {
		return "", err
	}
	_, err = command(ctx, "mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", path)
	return path, err
}

// mount attaches a loop device to what is open and mounts it.
func (p *place) mount(ctx context.Context, o *opened) (string, error) {
	loop, err := attach(ctx, o)
	if err != nil {
		return "", err
	}
	dir := p.path("mnt")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	o.end.add(func() error { return unmount(dir) })
	_, err = command(ctx, "mount", "-t", "ext4", loop, dir)
	return dir, err
}

// untar unpacks many small files and makes them durable.
func untar(ctx context.Context, p *place, dir string) (float64, error) {
	archive, n, err := p.archive()
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	if _, err := command(ctx, "tar", "-xf", archive, "-C", dir); err != nil {
		return 0, err
	}
	_, err = command(ctx, "sync", "-f", dir)
	return float64(n) / 1e6 / time.Since(begin).Seconds(), err
}

// clone has git copy a repository into the file system and check it out, and makes
// that durable.
func clone(ctx context.Context, p *place, dir string) (float64, error) {
	archive, n, err := p.archive()
	if err != nil {
		return 0, err
	}
	repo := p.path("repo")
	if err := os.Mkdir(repo, 0o700); err != nil {
		return 0, err
	}
	for _, words := range [][]string{
		{"tar", "-xf", archive, "-C", repo},
		{"git", "-C", repo, "init", "-q"},
		{"git", "-C", repo, "add", "."},
		{"git", "-C", repo, "-c", "user.name=bench", "-c", "user.email=bench", "commit", "-q", "-m", "all"},
	} {
		if _, err := command(ctx, words[0], words[1:]...); err != nil {
			return 0, err
		}
	}
	begin := time.Now()
	if _, err := command(ctx, "git", "clone", "-q", "--no-hardlinks", repo, filepath.Join(dir, "clone")); err != nil {
		return 0, err
	}
	_, err = command(ctx, "sync", "-f", dir)
	return float64(n) / 1e6 / time.Since(begin).Seconds(), err
}

// archive makes a tar file of small files, the same each time, and returns how
// much is in it.
func (p *place) archive() (path string, n int64, err error) {
	path = p.path("tar")
	f, err := os.Create(path)
	if err != nil {
		return "", 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	src, w := rand.NewChaCha8([32]byte{3}), tar.NewWriter(f)
	rng := rand.New(src)
	for i := range 1500 {
		size := int64(1 + rng.IntN(32<<10))
		head := tar.Header{Name: fmt.Sprintf("tree/%02d/%04d", i/50, i), Mode: 0o644, Size: size}
		if err := w.WriteHeader(&head); err != nil {
			return "", 0, err
		}
		if _, err := io.CopyN(w, src, size); err != nil {
			return "", 0, err
		}
		n += size
	}
	return path, n, w.Close()
}

// insert has sqlite3 insert rows, each in a transaction of its own that it makes
// durable.
func insert(ctx context.Context, _ *place, dir string) (float64, error) {
	const rows = 300
	var script bytes.Buffer
	script.WriteString("CREATE TABLE t (id INTEGER PRIMARY KEY, text TEXT);\n")
	for i := range rows {
		fmt.Fprintf(&script, "INSERT INTO t VALUES (%d, '%0120d');\n", i, i)
	}
	script.WriteString("SELECT count(*) FROM t;\n")
	cmd := exec.CommandContext(ctx, "sqlite3", filepath.Join(dir, "db"))
	cmd.Stdin, cmd.SysProcAttr, cmd.WaitDelay = &script, apart(), stopLimit
	begin := time.Now()
	out, err := cmd.CombinedOutput()
	used := time.Since(begin)
	if got := strings.TrimSpace(string(out)); err == nil && got != fmt.Sprint(rows) {
		err = fmt.Errorf("sqlite3 counts %q rows, not %d", got, rows)
	}
	return rows / used.Seconds(), err
}

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// mirrorTable is a mirror of the image and another file of the same content, with
// its log on a file.
func mirrorTable(ctx context.Context, p *place, o *opened) (string, error) {
	var files []string
	for range 2 {
		image, err := p.image(ctx)
		o.end.add(func() error { return os.Remove(image) })
		if err != nil {
			return "", err
		}
		files = append(files, image)
	}
	log, err := p.logFile(o)
	return fmt.Sprintf("0 %d mirror disk 3 %s 1024 nosync 2 %s 0 %s 0", p.sectors(), log, files[0], files[1]), err
}

// logFile is a file with room for the log of any mirror here.
func (p *place) logFile(o *opened) (string, error) {
	path := p.path("log")
	o.end.add(func() error { return os.RemoveAll(path) })
	return path, os.WriteFile(path, make([]byte, 1<<20), 0o600)
}

// openMirror is a mirror of two legs whose reads go to all legs ("load"), or to
// the first alone ("default").
func openMirror(balance string) func(context.Context, *place, *opened) error {
	open := openTable(mirrorTable)
	return func(ctx context.Context, p *place, o *opened) error {
		if err := open(ctx, p, o); err != nil {
			return err
		}
		d, err := p.daemonOf(o.bin)
		if err != nil {
			return err
		}
		return d.do(ctx, "message", filepath.Base(o.path), "0", "policy", "read-balance="+balance)
	}
}

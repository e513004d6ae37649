package fs

import (
	"log"
	"strings"

	"github.com/sirupsen/logrus"
)

// newFuseLogger gives go-fuse a log that ends in ours. What it says there is
// the course of things for most part (a reply to a request that was
// interrupted meanwhile, an opcode it does not know) and goes to debug level;
// panics come to us by themselves.
func newFuseLogger(to logrus.FieldLogger) *log.Logger {
	return log.New(fuseLog{to.WithField("from", "go-fuse")}, "", 0)
}

type fuseLog struct{ to logrus.FieldLogger }

func (l fuseLog) Write(p []byte) (int, error) {
	line := strings.TrimSpace(string(p))
	if strings.HasPrefix(line, "Failed to read from fuse conn") {
		l.to.Warn(line)
	} else {
		l.to.Debug(line)
	}
	return len(p), nil
}

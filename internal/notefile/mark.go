package notefile

import (
	"crypto/rand"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Session is random: a note and the marks on the files it speaks of have the
// same.
type Session [16]byte

// NewSession makes one.
func NewSession() (s Session) {
	_, _ = rand.Read(s[:]) // it never fails
	return s
}

// Mark gives the mark of that name (an extended attribute) on a file, "" if it
// has none or can have none.
func Mark(path, name string) (string, error) {
	var b [64]byte
	n, err := unix.Getxattr(path, name, b[:])
	switch {
	case err == nil:
		return string(b[:n]), nil
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.EOPNOTSUPP):
		return "", nil
	case errors.Is(err, unix.ERANGE): // none of ours is so long
		return "too long", nil
	}
	return "", fmt.Errorf("reading the extended attribute %s of %s: %w", name, path, err)
}

// SetMark puts a mark on a file.
func SetMark(path, name, text string) error {
	if err := unix.Setxattr(path, name, []byte(text), 0); err != nil {
		return fmt.Errorf("marking %s with the extended attribute %s: %w", path, name, err)
	}
	return nil
}

// RemoveMark takes a mark away, if there is one.
func RemoveMark(path, name string) error {
	err := unix.Removexattr(path, name)
	if err == nil || errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return fmt.Errorf("removing the extended attribute %s of %s: %w", name, path, err)
}

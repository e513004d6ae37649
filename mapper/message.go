package mapper

import (
	"context"
	"strings"

	"github.com/dmfuse/dmfuse/blockdev"
)

// Message passes words to the target that holds sector of the live table. A
// first word that begins with '@' is for the mapper. Without a live table the
// message is accepted and has no effect, as in the kernel (target_message).
func (d *Device) Message(ctx context.Context, sector blockdev.Sector, words []string) (string, error) {
	if len(words) == 0 {
		return "", invalid("an empty message")
	}
	if strings.HasPrefix(words[0], "@") {
		if strings.EqualFold(words[0], "@fault") {
			return d.faultMessage(words[1:])
		}
		if text, ok, err := d.statsMessage(words); ok {
			return text, err
		}
		return "", d.coreMessage(words)
	}
	d.mu.Lock()
	deleting := d.deleting
	d.mu.Unlock()
	if deleting {
		return "", d.errGone()
	}
	t := d.hold(false)
	if t == nil {
		return "", nil
	}
	defer t.release()
	if sector > blockdev.MaxSector || sector.Bytes() >= t.size {
		return "", invalid("sector %d is outside of device %s", sector, d.Name())
	}
	s := t.find(sector.Bytes())
	if s.messager == nil {
		return "", invalid("target type %s takes no messages", s.typ.Name)
	}
	return s.messager.Message(ctx, words)
}

func (d *Device) coreMessage(words []string) error {
	if !strings.EqualFold(words[0], "@cancel_deferred_remove") {
		return invalid("unknown message %q", words[0])
	}
	if len(words) != 1 {
		return invalid("message %s has no arguments", words[0])
	}
	d.mu.Lock()
	if d.deleting {
		d.mu.Unlock()
		return errBeingDeleted
	}
	d.deferredRemove = false
	d.mu.Unlock()
	d.record()
	return nil
}

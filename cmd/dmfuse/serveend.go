package main

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/dmfuse/dmfuse/control"
	"github.com/dmfuse/dmfuse/fs"
)

// unmountedByOther deals with an umount that was not ours: the files are gone,
// so the devices are flushed and the daemon ends, as its users wanted.
func (d *daemon) unmountedByOther() {
	d.ending.Lock() // a shutdown that runs unmounts, too
	over := d.over
	d.ending.Unlock()
	if over {
		return
	}
	d.log.Warn("the mount was taken away by somebody else: ending")
	if err := d.shutdown(context.Background(), 0, true); err != nil {
		d.notEnded(err)
	}
}

// shutdownLimit is how long the devices have for their last flush.
const shutdownLimit = 2 * time.Minute

// notEnded logs why a shutdown was refused, with who holds the devices.
func (d *daemon) notEnded(err error) {
	log := d.log.WithError(err)
	var c *control.Error
	if errors.As(err, &c) && len(c.Holders) > 0 {
		log = log.WithField("holders", strings.Join(c.Holders, "; "))
	}
	log.Error("not ended")
}

// shutdown ends the daemon, or says who still uses its devices; what the
// process pid has open does not count, as it is the one who asks. It returns
// when everything is durable and unmounted; finish does the rest.
func (d *daemon) shutdown(ctx context.Context, pid int, force bool) error {
	d.ending.Lock()
	defer d.ending.Unlock()
	if d.over {
		return nil
	}
	if !force {
		if err := d.inUse(pid); err != nil {
			return err
		}
	}
	notify(d.env, "STOPPING=1")
	// From here on there is no way back, whoever asked and went away.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownLimit)
	defer cancel()
	if force {
		d.manager.EndFaults() // a request that hangs would keep the mount
	}
	if err := d.unmount(ctx, force); err != nil {
		return err
	}
	d.merges.close()
	if d.worker != nil {
		d.worker.Report("final")
	}
	if err := d.manager.Close(ctx); err != nil {
		d.log.WithError(err).Error("not everything could be flushed")
		d.over = true
		close(d.ended)
		return err
	}
	d.over = true
	close(d.ended)
	return nil
}

// unmountLimit is how long files may stay open at the end: long enough for a
// program that is closing them.
const unmountLimit = 3 * time.Second

// unmount takes the files away. With force it does so though some are open;
// their users get errors once the devices are closed.
func (d *daemon) unmount(ctx context.Context, force bool) error {
	ctx, cancel := context.WithTimeout(ctx, unmountLimit)
	defer cancel()
	err := d.mount.Unmount(ctx)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrElsewhere) && d.nothingOpen():
		d.log.WithError(err).Warn("nothing is open there: it ends with the daemon")
		return nil
	case !force:
		e := control.Errorf(control.CodeBusy, "the mount %s is in use: %v", d.o.mount, err)
		e.Holders = mountHolders(d.o.mount, d.mountDev, 0)
		return e
	}
	d.log.WithError(err).Warn("the mount is in use and is taken out of the tree")
	if err := d.mount.UnmountLazily(); err != nil {
		d.log.WithError(err).Error("the mount stays")
	}
	return nil
}

// nothingOpen tells whether no file of any device is open, in whatever mount
// namespace.
func (d *daemon) nothingOpen() bool {
	for _, dev := range d.manager.Devices() {
		if dev.Info(false).FileOpens > 0 {
			return false
		}
	}
	return true
}

// finish ends the control connections, those that wait for their answer last,
// and gives back the socket and the lock.
func (d *daemon) finish() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := d.server.Close(ctx)
	err = errors.Join(err, <-d.serving)
	d.log.Info("ended")
	if d.worker != nil {
		err = errors.Join(err, d.worker.Unlock())
	}
	return errors.Join(err, d.lock.Close())
}

// cleanup takes down what a failed start had brought up. The records of the
// devices stay: they are those of the daemon before, for the next one.
func (d *daemon) cleanup() error {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownLimit)
	defer cancel()
	var err error
	if d.mount != nil {
		err = errors.Join(err, d.mount.Unmount(ctx))
	}
	if d.manager != nil {
		err = errors.Join(err, d.manager.Abandon(ctx))
	}
	if d.lock != nil {
		err = errors.Join(err, d.lock.Close())
	}
	return err
}

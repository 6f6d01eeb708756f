// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

const (
	lockRetryMin = 2 * time.Millisecond
	lockRetryMax = 100 * time.Millisecond
	lockReport   = 5 * time.Second
)

// openLocked opens the file and locks it. While the lock is taken, or the device is opened
// exclusively, it tries again until ctx is done. It tries at least once.
func (d *Disk) openLocked(ctx context.Context, o *Options) error {
	var (
		holder   Holder
		reported time.Time
		retry    = lockRetryMin
	)
	for {
		err := d.tryOpen(o)
		if err == nil {
			return nil
		}
		busy := errors.Is(err, errLocked)
		if !busy && (!errors.Is(err, unix.EBUSY) || d.id.Backing != KindBlock) && !errors.Is(err, errReplaced) {
			return openError(d.id.Path, err)
		}
		if use := d.usedBy(); use != "" {
			return &Error{Path: d.id.Path, Reason: ReasonInUse, Err: err, Hint: use}
		}
		now := d.holder()
		if o.Waiting != nil && (reported.IsZero() || now != holder || time.Since(reported) > lockReport) {
			reported, holder = time.Now(), now
			o.Waiting(now)
		}
		timer := time.NewTimer(retry)
		select {
		case <-ctx.Done():
			timer.Stop()
			return &Error{Path: d.id.Path, Reason: ReasonBusy, Holder: now, Err: context.Cause(ctx), Hint: now.hint()}
		case <-timer.C:
			retry = min(2*retry, lockRetryMax)
		}
	}
}

// errLocked means that another open file has the lock.
var errLocked = errors.New("locked")

// tryOpen opens the file and takes the lock, without waiting. Without success no file is
// open.
func (d *Disk) tryOpen(o *Options) error {
	err := d.identify()
	if err == nil {
		err = d.openFile(o)
	}
	if err == nil {
		how := unix.LOCK_EX
		if o.ReadOnly {
			how = unix.LOCK_SH
		}
		if err = unix.Flock(d.fd, how|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
			err = errLocked
		}
	}
	if err != nil && d.fd >= 0 {
		err = errors.Join(err, unix.Close(d.fd))
		d.fd = -1
	}
	return err
}

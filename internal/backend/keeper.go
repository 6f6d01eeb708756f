// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/budget"
)

// Keeper keeps copies of open files while no daemon runs, and passes them to the next
// daemon. A service manager is one. Both methods may wait, for a bounded time.
type Keeper interface {
	// Store keeps a copy of a file under a name.
	Store(name string, fd int) error
	// Remove closes the copies under a name.
	Remove(name string) error
}

// keeper passes files of vifs to a [Keeper]. Vifs only set the files that they want kept,
// and never wait. One goroutine sends the differences to the Keeper, at the rate of each
// guest's budget: a file that is set and removed faster than that is never sent. Messages
// to a Keeper that does not answer are repeated.
//
// A nil *keeper keeps nothing.
type keeper struct {
	to  Keeper
	log *zap.Logger

	wake  chan struct{} // holds one: something has changed
	stop  chan struct{} // closed: the rest is sent once, without regard to budgets
	ended chan struct{}

	mu    sync.Mutex // guards all below
	files map[string]*keptFile
	order []string  // names with a difference, the oldest first
	after time.Time // nothing is sent before, because the Keeper has failed
	last  error     // last error of the Keeper
}

// keptFile is the state of one name.
type keptFile struct {
	guest *budget.Guest
	has   bool // the Keeper has a file of that name, or may have
	want  int  // our copy of the wanted file; negative: none
	given bool // the Keeper has the wanted file
	due   bool // the name is in keeper.order

	sending bool // the file is being sent, and want has not changed since
}

// keeperPause separates attempts to send a message that failed.
const keeperPause = time.Second

func newKeeper(to Keeper, log *zap.Logger) *keeper {
	if to == nil {
		return nil
	}
	k := &keeper{
		to: to, log: log, files: map[string]*keptFile{},
		wake: make(chan struct{}, 1), stop: make(chan struct{}), ended: make(chan struct{}),
	}
	go k.run()
	return k
}

// of returns the keeper for the vifs of a guest: a [vif.Keeper].
func (k *keeper) of(g *budget.Guest) guestKeeper { return guestKeeper{k, g} }

type guestKeeper struct {
	k *keeper
	g *budget.Guest
}

// Store requests that a copy of a file is kept under a name, in place of any other.
func (g guestKeeper) Store(name string, fd int) error {
	if g.k == nil {
		return nil
	}
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	g.k.set(name, g.g, own, false)
	return nil
}

// Adopted notes that the Keeper has a predecessor's file under a name.
func (g guestKeeper) Adopted(name string) {
	if g.k == nil {
		return
	}
	g.k.mu.Lock()
	defer g.k.mu.Unlock()
	g.k.files[name] = &keptFile{guest: g.g, has: true, want: -1, given: true}
}

// Remove requests that no file is kept under a name, not even a predecessor's.
func (g guestKeeper) Remove(name string) {
	if g.k != nil {
		g.k.set(name, g.g, -1, true)
	}
}

// set sets the file that is wanted under a name; fd is negative for none.
func (k *keeper) set(name string, g *budget.Guest, fd int, had bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f := k.files[name]
	if f == nil {
		f = &keptFile{guest: g, has: had, want: -1}
		k.files[name] = f
	}
	f.forget()
	f.guest, f.want, f.given, f.sending = g, fd, false, false
	if !f.due {
		f.due = true
		k.order = append(k.order, name)
	}
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// forget closes our copy, which otherwise keeps a queue of a TAP open.
func (f *keptFile) forget() {
	if f.want >= 0 {
		_ = unix.Close(f.want)
		f.want = -1
	}
}

// run sends differences to the Keeper, until close.
func (k *keeper) run() {
	defer close(k.ended)
	poll := time.NewTimer(time.Hour)
	defer poll.Stop()
	for {
		select {
		case <-k.stop:
			for more := true; more; {
				_, more = k.send(true)
			}
			k.forget()
			return
		case <-k.wake:
		case <-poll.C:
		}
		for more := true; more && !k.stopped(); {
			var wait time.Duration
			if wait, more = k.send(false); wait > 0 {
				poll.Reset(wait)
			}
		}
	}
}

func (k *keeper) stopped() bool {
	select {
	case <-k.stop:
		return true
	default:
		return false
	}
}

// close sends the rest, without regard to budgets, for at most the given time.
func (k *keeper) close(within time.Duration) {
	if k == nil {
		return
	}
	close(k.stop)
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	select {
	case <-k.ended:
	case <-ctx.Done():
		k.log.Warn("service manager timed out; not all queues of TAPs are kept")
	}
}

// forget closes all copies.
func (k *keeper) forget() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, f := range k.files {
		f.forget()
	}
}

// send sends one message that may be sent now. more reports whether another may be sent at
// once. If not, wait is the time until the next may be sent; 0 if there is none. With end,
// budgets do not count and failed messages are not repeated.
func (k *keeper) send(end bool) (wait time.Duration, more bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if left := time.Until(k.after); left > 0 && !end {
		return left, false
	}
	for i, name := range k.order {
		f := k.files[name]
		if f.done() {
			k.settled(i)
			return 0, true
		}
		if !end && !f.guest.Manager.Allow() {
			wait = budget.ManagerPause
			continue
		}
		err := k.tell(name, f)
		if err == nil {
			return 0, true
		}
		k.after = time.Now().Add(keeperPause)
		return keeperPause, false
	}
	return wait, false
}

// done reports whether the Keeper has the wanted file, or has none if none is wanted.
func (f *keptFile) done() bool { return f.given || !f.has && f.want < 0 }

// settled removes the name at i from order.
func (k *keeper) settled(i int) {
	name := k.order[i]
	k.order = append(k.order[:i], k.order[i+1:]...)
	k.files[name].due = false
	if !k.files[name].has {
		delete(k.files, name)
	}
}

// tell sends one message about a name: to remove the file, or to store another. It
// releases k.mu meanwhile.
func (k *keeper) tell(name string, f *keptFile) error {
	fd := -1
	if !f.has {
		fd, f.want = f.want, -1 // tell owns fd now, even if want changes meanwhile
		f.sending = true
	}
	f.guest.Messaged()
	k.mu.Unlock()
	var err error
	if fd < 0 {
		err = k.to.Remove(name)
	} else {
		err = k.to.Store(name, fd)
	}
	k.mu.Lock()
	if err != nil && (k.last == nil || k.last.Error() != err.Error()) {
		k.log.Warn("message to the service manager failed; retrying", zap.String("name", name), zap.Error(err))
	}
	k.last = err
	still := f.sending // want has not changed meanwhile
	f.sending = false
	switch {
	case err != nil && fd >= 0 && still:
		f.want = fd
		return err
	case fd >= 0:
		_ = unix.Close(fd)
		f.has = f.has || err == nil
		f.given = err == nil && still
	case err == nil:
		f.has = false
	}
	return err
}

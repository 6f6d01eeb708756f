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

// Keeper keeps copies of open files while no daemon runs, and hands them to the next
// one: a service manager does. Both methods may wait, but not for ever.
type Keeper interface {
	// Store keeps a copy of a file under a name.
	Store(name string, fd int) error
	// Remove closes the copies under a name.
	Remove(name string) error
}

// keeper has a [Keeper] keep what the vifs want kept. Vifs only say what they want, and
// never wait. One goroutine tells the Keeper what is different from what it has, at the
// pace of each guest's budget: what comes and goes faster than that it is never told of.
// A Keeper that does not answer is told later.
//
// A nil *keeper keeps nothing.
type keeper struct {
	to  Keeper
	log *zap.Logger

	wake  chan struct{} // holds one: something is wanted
	stop  chan struct{} // closed: no budget holds any more, and what is left is said once
	ended chan struct{}

	mu    sync.Mutex // guards all below
	files map[string]*keptFile
	order []string  // names of which the Keeper has not what is wanted, the oldest first
	after time.Time // when to say more to a Keeper that has failed
	last  error     // of it
}

// keptFile is a name, and what is kept under it.
type keptFile struct {
	guest *budget.Guest
	has   bool // the Keeper has a file of that name, or may have
	want  int  // ours, a copy of the file that it is to have; negative: none
	given bool // it has that one
	due   bool // the name is in keeper.order

	sending bool // it is being given it, and nothing else was wanted since
}

// keeperPause separates the attempts at what a Keeper did not take.
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

// of is the keeper as the vifs of a guest see it: a [vif.Keeper].
func (k *keeper) of(g *budget.Guest) guestKeeper { return guestKeeper{k, g} }

type guestKeeper struct {
	k *keeper
	g *budget.Guest
}

// Store has a copy of a file kept under a name, and no other.
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

// Adopted says that a predecessor's file is kept under a name.
func (g guestKeeper) Adopted(name string) {
	if g.k == nil {
		return
	}
	g.k.mu.Lock()
	defer g.k.mu.Unlock()
	g.k.files[name] = &keptFile{guest: g.g, has: true, want: -1, given: true}
}

// Remove has nothing kept under a name, also if a predecessor stored it.
func (g guestKeeper) Remove(name string) {
	if g.k != nil {
		g.k.set(name, g.g, -1, true)
	}
}

// set sets what is wanted under a name.
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

// forget closes our copy. A queue of a TAP lives as long as it has one.
func (f *keptFile) forget() {
	if f.want >= 0 {
		_ = unix.Close(f.want)
		f.want = -1
	}
}

// run tells the Keeper what is wanted, until close.
func (k *keeper) run() {
	defer close(k.ended)
	poll := time.NewTimer(time.Hour)
	defer poll.Stop()
	for {
		select {
		case <-k.stop:
			for more := true; more; {
				_, more = k.say(true)
			}
			k.forget()
			return
		case <-k.wake:
		case <-poll.C:
		}
		for more := true; more && !k.stopped(); {
			var wait time.Duration
			if wait, more = k.say(false); wait > 0 {
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

// close says what is left to say, without regard to budgets, but takes no longer than
// within.
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
		k.log.Warn("the service manager does not answer; not all queues of TAPs are kept")
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

// say says one thing that may be said now. It reports whether there may be more, and how
// long to wait if all that is left has to wait. At the end budgets do not count, and what
// fails is not tried again.
func (k *keeper) say(end bool) (wait time.Duration, more bool) {
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

// done reports whether the Keeper has what is wanted.
func (f *keptFile) done() bool { return f.given || !f.has && f.want < 0 }

// settled takes the name at i off the order.
func (k *keeper) settled(i int) {
	name := k.order[i]
	k.order = append(k.order[:i], k.order[i+1:]...)
	k.files[name].due = false
	if !k.files[name].has {
		delete(k.files, name)
	}
}

// tell says one thing about a name: that what is kept there is not wanted any more, or
// what is wanted. Meanwhile it lets go of k.mu.
func (k *keeper) tell(name string, f *keptFile) error {
	fd := -1
	if !f.has {
		fd, f.want = f.want, -1 // ours alone, whatever is wanted meanwhile
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
		k.log.Warn("the service manager was not told of a queue of a TAP; trying again", zap.String("name", name), zap.Error(err))
	}
	k.last = err
	still := f.sending // nothing else was wanted meanwhile
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

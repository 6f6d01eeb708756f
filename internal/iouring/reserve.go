// SPDX-License-Identifier: Apache-2.0

package iouring

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// Reserve makes the rings that New and NewAsync hand out from then on, for a process that
// will not be able to make any. A reserved ring takes only the operations and the
// registrations of this package: one that may be used as a whole could open files and
// connect sockets, which no filter of system calls sees. It belongs to the thread that calls
// New or NewAsync. Close gives an Async back to its thread, which gets it with its next NewAsync;
// a Ring is not reserved again.
//
// When all were handed out, or if Reserve fails, New and NewAsync return errors that match
// ErrNotSupported: the caller goes on with system calls. Reserve is called once.
func Reserve(r Reservation) error { return reserved.make(r) }

// Reservation holds the number and size of the rings to reserve.
type Reservation struct {
	Rings        int    // for New
	Entries      uint32 // of each; New may be asked for fewer
	Asyncs       int    // for NewAsync
	AsyncEntries uint32
}

// RegisterOps are the operations of io_uring_register(2) that reserved rings need after they
// were made.
func RegisterOps() []uint32 { return append([]uint32{registerEnable}, registrations...) }

// registrations are the operations of io_uring_register(2) that restricted rings take.
var registrations = []uint32{registerBuffers, unregisterBuffers, registerFiles, unregisterFiles,
	registerFilesUpdate, registerMaxWorkers}

// reservation is the process's stock of rings.
type reservation struct {
	mu     sync.Mutex
	on     bool // Reserve was called
	err    error
	rings  []*Ring
	asyncs []*Async
	used   map[int][]*Async // those that were closed, by their thread
}

var reserved reservation

// state returns whether rings come from the stock only, and the reason why it has none.
func (v *reservation) state() (on bool, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.on, v.err
}

func (v *reservation) make(want Reservation) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.on {
		return errors.New("io_uring: rings were reserved before")
	}
	v.on = true
	if v.err = v.fill(want); v.err == nil {
		return nil
	}
	err := v.err
	if !errors.Is(err, ErrNotSupported) {
		v.err = notSupported("no rings could be reserved", err)
	}
	for _, r := range v.rings {
		err = errors.Join(err, r.Close())
	}
	for _, a := range v.asyncs {
		err = errors.Join(err, a.Close())
	}
	v.rings, v.asyncs = nil, nil
	return err
}

func (v *reservation) fill(want Reservation) error {
	for range want.Rings {
		r, err := makeRing(want.Entries, setupDisabled)
		if err != nil {
			return err
		}
		v.rings = append(v.rings, r)
		if err := restrict(r.fd, ringOps); err != nil {
			return err
		}
	}
	for range want.Asyncs {
		a, err := makeAsync(want.AsyncEntries, setupDisabled)
		if err != nil {
			return err
		}
		v.asyncs = append(v.asyncs, a)
		if err := restrict(a.fd, asyncOps); err != nil {
			return err
		}
	}
	return nil
}

// restrict makes the kernel refuse all but the given operations, for as long as the ring
// exists.
func restrict(fd int, ops []uint8) error {
	list := []restriction{{kind: restrictFlags, arg: sqeFixedFile | sqeIOLink | sqeCQESkipSuccess}}
	for _, op := range ops {
		list = append(list, restriction{kind: restrictOp, arg: op})
	}
	for _, op := range registrations {
		list = append(list, restriction{kind: restrictRegister, arg: uint8(op)})
	}
	if errno := register(fd, registerRestrict, &list[0], len(list)); errno != 0 {
		return notSupported("the kernel cannot restrict it to reads and writes", errno)
	}
	return nil
}

// errUsedUp is the reason why there is no ring.
var errUsedUp = notSupported("all rings that were made before the sandbox are in use", nil)

// ring hands out a ring to the calling thread. It returns nil without an error if none are
// reserved.
func (v *reservation) ring(entries uint32) (*Ring, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case !v.on:
		return nil, nil
	case v.err != nil:
		return nil, v.err
	case len(v.rings) == 0:
		return nil, errUsedUp
	}
	r := v.rings[len(v.rings)-1]
	if entries == 0 || entries > r.limit {
		return nil, fmt.Errorf("io_uring with %d entries: want 1 to the %d of the reserved ones", entries, r.limit)
	}
	v.rings = v.rings[:len(v.rings)-1]
	if err := enable(r.fd); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// async is like ring for an Async.
func (v *reservation) async(entries uint32) (*Async, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case !v.on:
		return nil, nil
	case v.err != nil:
		return nil, v.err
	}
	thread := unix.Gettid()
	for i, a := range v.used[thread] {
		if entries > 0 && entries <= a.limit {
			v.used[thread] = slices.Delete(v.used[thread], i, i+1)
			return a, nil
		}
	}
	if len(v.asyncs) == 0 {
		return nil, errUsedUp
	}
	a := v.asyncs[len(v.asyncs)-1]
	a.thread = thread
	if entries == 0 || entries > a.limit {
		return nil, fmt.Errorf("io_uring with %d entries: want 1 to the %d of the reserved ones", entries, a.limit)
	}
	v.asyncs = v.asyncs[:len(v.asyncs)-1]
	if err := enable(a.fd); err != nil {
		return nil, errors.Join(err, a.Close())
	}
	return a, nil
}

// giveBack keeps a ring, which has nothing of its user any more, for the thread that it belongs
// to.
func (v *reservation) giveBack(a *Async) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.used == nil {
		v.used = map[int][]*Async{}
	}
	v.used[a.thread] = append(v.used[a.thread], a)
}

// enable lets the calling thread use a ring, and with SINGLE_ISSUER no other.
func enable(fd int) error {
	if errno := register[byte](fd, registerEnable, nil, 0); errno != 0 {
		return notSupported("a reserved ring cannot be used", errno)
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"context"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/budget"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// Device is one device of a Set, with a status of type S. All its methods may be called from
// any goroutine while Run runs, and after.
type Device[S any] interface {
	// Run serves the device until its directory is gone, another back end has it, or ctx
	// ends. After ctx has ended it waits for xenstored no longer.
	Run(ctx context.Context)
	// Changed tells that the node at key below the directory has changed, or any node if
	// key is "". It never blocks.
	Changed(key string)
	// SetStore gives the device another connection to xenstore.
	SetStore(ctx context.Context, s *xenstore.Client)
	// Status returns the status. ok is false if the device has ended or ctx ends first;
	// then only fields that never change are set.
	Status(ctx context.Context) (s S, ok bool)
	// AwaitChange waits until the status has another revision than from, until ctx ends,
	// or until the device ends.
	AwaitChange(ctx context.Context, from uint64)
	// Reset makes the device try again after it has given up. It returns false if it has
	// ended, or if ctx ends first.
	Reset(ctx context.Context) bool
}

// Kind makes the devices of a Set. The goroutine in Run calls its methods, except for Other
// and Silent, which any goroutine calls.
type Kind[D Device[S], S any] interface {
	// New makes the device of a slot. The Set runs it.
	New(Slot) D
	// Wants reports whether the program is meant to serve the device at path, as far as
	// the toolstack's nodes tell.
	Wants(ctx context.Context, s *xenstore.Client, path string) (bool, error)
	// CanAdopt returns an error if the program could not serve the device at path, which
	// the kernel's driver serves now.
	CanAdopt(ctx context.Context, s *xenstore.Client, path string) error
	// Sweep removes what is left of devices that were removed while the program did not
	// run. It is called after the devices of the first look have been started. has reports
	// whether a device is served. While Sweep returns again it is called once more after
	// a second, ten times at most.
	Sweep(has func(xenbus.DeviceID) bool) (again bool)
	// GuestGone is called when the last device of a guest has ended.
	GuestGone(domid xen.Domid)

	// Other returns the status of a device that the program does not serve.
	Other(id xenbus.DeviceID, why Reason) S
	// Silent returns s, the constant part of the status of a device that does not
	// answer, with text as its error.
	Silent(s S, text string) S
}

// Slot is the place of a device in a Set.
type Slot struct {
	ID        xenbus.DeviceID
	Path      string // the backend directory, absolute, without a slash at the end
	ErrorPath string // node for the text of an error
	Store     *xenstore.Client
	Log       *zap.Logger   // with the device's fields, and limited
	Guest     *budget.Guest // shared by all devices of the guest
	Taken     func() bool   // reports whether the kernel's driver has the device by now
}

// Words are the names of things in logs and errors.
type Words struct {
	Program string // "netbackd"
	One     string // "vif"; also the key of the id in the log
	Many    string // "vifs"
	Example string // the name of a device: "vif1.0"
	Config  string // where the guest's configuration has devices: "vif=[...]"
	Driver  string // module of the kernel's driver: "xen-netback"
	Lives   string // what goes on without xenstore: "packets keep moving"
}

// Config holds the settings of a Set.
type Config[D Device[S], S any] struct {
	Words
	Kind    Kind[D, S]
	Classes []xenbus.Class // one or two
	// Dial connects to xenstore. It is called again when the connection is lost.
	Dial    func(context.Context) (*xenstore.Client, error)
	Log     *zap.Logger
	Budgets *budget.Host

	Kernel   Kernel // nil: the kernel can serve no devices of these classes here
	Claimed  string // node that is 1 in the directory of an adopted device; "": none
	NotFound error  // the error for a device that does not exist: "no such vif"

	// MaxPerGuest bounds the devices of a guest that are served; 0: any number.
	MaxPerGuest int
}

// Set is a running set of devices.
type Set[D Device[S], S any] struct {
	cfg Config[D, S]

	ended    chan xenbus.DeviceID
	pings    chan chan<- struct{}
	requests chan request

	// These belong to the goroutine in Run.
	store   *xenstore.Client // nil before the first connection
	self    xen.Domid        // our own domain
	own     string           // its directory
	marker  string           // a node that only this instance of xenstored has; see writeMarker
	sweeps  int              // calls of Kind.Sweep so far
	sweepAt <-chan time.Time // of the next one; nil: none
	guests  map[xen.Domid]*guest

	// Only the goroutine in Run changes these. Other goroutines read them, even while
	// Run waits for an xenstored that hangs.
	mu      sync.Mutex
	devices map[xenbus.DeviceID]D      // mu guards changes, and reads by others
	others  map[xenbus.DeviceID]Reason // devices that the program does not serve; as devices

	wg sync.WaitGroup // the devices' goroutines
}

// guest is a guest that has a device.
type guest struct {
	budget  *budget.Guest
	devices int
}

// New makes a Set.
func New[D Device[S], S any](cfg Config[D, S]) *Set[D, S] {
	if n := len(cfg.Classes); n < 1 || n > maxClasses {
		panic(fmt.Sprintf("devices: %d classes", n))
	}
	return &Set[D, S]{
		cfg:    cfg,
		guests: map[xen.Domid]*guest{},
		ended:  make(chan xenbus.DeviceID), requests: make(chan request),
		pings:   make(chan chan<- struct{}),
		devices: map[xenbus.DeviceID]D{}, others: map[xenbus.DeviceID]Reason{},
	}
}

// Run serves until ctx ends. Then it stops all devices, without waiting for xenstored, so
// that a successor can adopt them. It calls ready once, when the existing devices have been
// started. Before that, an error ends Run. After that, Run reconnects to xenstore if the
// connection is lost, and the devices are served meanwhile.
func (s *Set[D, S]) Run(ctx context.Context, ready func()) error {
	devCtx, stop := context.WithCancel(ctx)
	defer func() {
		stop()
		s.wg.Wait()
		if s.store != nil {
			_ = s.store.Close()
		}
	}()
	if err := s.dial(ctx); err != nil {
		return err
	}
	served := false
	serving := func() {
		if !served {
			served = true
			ready()
		}
	}
	for wait := redialFirst; ; {
		began := time.Now()
		err := s.session(devCtx, serving)
		switch {
		case ctx.Err() != nil:
			return nil
		case !served:
			return err
		case time.Since(began) > redialMost:
			wait = redialFirst
		}
		s.cfg.Log.Warn("xenstore connection lost; "+s.cfg.Lives, zap.Error(err))
		if !s.redial(ctx, &wait) {
			return nil
		}
		s.cfg.Log.Info("xenstore connection restored")
	}
}

func (s *Set[D, S]) dial(ctx context.Context) error {
	c, err := s.cfg.Dial(ctx)
	if err != nil {
		return err
	}
	s.store = c
	return nil
}

// Pauses between attempts to reach xenstore.
const (
	redialFirst = 50 * time.Millisecond
	redialMost  = 2 * time.Second
)

// redial connects to xenstore again, with growing pauses, until it succeeds. It returns
// false if ctx ends first.
func (s *Set[D, S]) redial(ctx context.Context, wait *time.Duration) bool {
	_ = s.store.Close()
	pause := time.NewTimer(*wait)
	defer pause.Stop()
	logged := ""
	for {
		select {
		case <-ctx.Done():
			return false
		case id := <-s.ended:
			s.forget(id)
			continue
		case answer := <-s.pings:
			close(answer)
			continue
		case <-pause.C:
		}
		*wait = min(2**wait, redialMost)
		err := s.resume(ctx)
		if err == nil {
			return true
		}
		if text := err.Error(); text != logged {
			logged = text
			s.cfg.Log.Warn("xenstore connect failed", zap.Error(err))
		}
		pause.Reset(*wait)
	}
}

// errEmpty is returned after xenstored was restarted without its contents. Then all devices
// seem to be removed, but the guests still run and need them.
func (s *Set[D, S]) errEmpty() error {
	return fmt.Errorf("xenstore has come back empty; leaving the %s as they are until %s is restarted", s.cfg.Many, s.cfg.Program)
}

// resume connects to xenstore again and passes the connection to the devices.
func (s *Set[D, S]) resume(ctx context.Context) error {
	if err := s.dial(ctx); err != nil {
		return err
	}
	if err := s.checkMarker(ctx); err != nil {
		_ = s.store.Close()
		return err
	}
	for _, d := range s.devices {
		d.SetStore(ctx, s.store)
	}
	return nil
}

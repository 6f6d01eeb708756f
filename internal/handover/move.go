// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/netbackd/netbackd/internal/vif"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// nameFree is how long the name of an interface may stay taken after netbackd has given
// the vif up.
const nameFree = 3 * time.Second

// restart bounds the absence of a daemon that ends while a vif is on its way.
const restart = 10 * time.Second

// live is how long a guest that is connected may take to be served again.
const live = 20 * time.Second

// Hotplug has netbackd serve a vif whose guest does not use it yet, and returns when
// its TAP is there for a script to work on. It is for the hotplug script vif-netbackd,
// which the toolstack runs after the kernel's driver, if it is loaded, has taken the
// vif, and before that may connect it to its guest.
func (m *Mover) Hotplug(ctx context.Context, id ID) error {
	if !m.Kernel.Serves(id.Domid, id.Devid) {
		return m.claim(ctx, id)
	}
	if err := m.Daemon.CanClaim(ctx, id.Name()); err != nil {
		return err
	}
	_, err := m.take(context.WithoutCancel(ctx), id)
	return err
}

// take takes a vif from the kernel. When that fails it is the kernel's again, if back
// says so.
func (m *Mover) take(ctx context.Context, id ID) (back bool, err error) {
	if err := m.Kernel.Unbind(id.Domid, id.Devid); err != nil {
		return false, err
	}
	err = m.claim(ctx, id)
	if err == nil {
		return false, nil
	}
	// It may have it all the same, only later.
	_, _ = m.Daemon.Release(ctx, id.Name())
	if berr := m.bind(ctx, id); berr != nil {
		return false, errors.Join(err, fmt.Errorf("and back: %w; %s", berr, m.nobodys(id)))
	}
	return true, fmt.Errorf("%w; it is the kernel's again", err)
}

// claim has the daemon serve a vif. If it ends before it has answered, and is started
// again, as a service manager does, it is asked again: a claim outlives the daemon.
func (m *Mover) claim(ctx context.Context, id ID) error {
	there := func() bool { _, err := m.Daemon.Vifs(ctx); return err == nil }
	err := m.Daemon.Claim(ctx, id.Name())
	if err == nil || there() {
		return err
	}
	for end := time.Now().Add(restart); time.Now().Before(end); {
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
		if there() {
			return m.Daemon.Claim(ctx, id.Name())
		}
	}
	return err
}

// nobodys says what to do about a vif that was lost half-way.
func (m *Mover) nobodys(id ID) string {
	return fmt.Sprintf("nobody serves it now: `netbackd adopt %s`", id.Name())
}

// bind gives a vif that nobody serves to the kernel, which closes it if the name of its
// interface is taken. So this waits until it is not.
func (m *Mover) bind(ctx context.Context, id ID) error {
	for end := time.Now().Add(nameFree); ; {
		_, err := netlink.LinkByName(id.Name())
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return m.Kernel.Bind(id.Domid, id.Devid)
		}
		switch {
		case err != nil:
			return err
		case time.Now().After(end):
			return fmt.Errorf("there still is an interface %s, so xen-netback would close the vif", id.Name())
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// Fail writes into the vif's directory why its hotplug failed, where the toolstack
// looks for it.
func (m *Mover) Fail(id ID, cause error) error {
	dir, err := m.directory(id)
	if err != nil {
		return err
	}
	return errors.Join(
		m.Store.Write(dir+"/hotplug-error", cause.Error()),
		m.Store.Write(dir+"/hotplug-status", "error"),
	)
}

// Adopt takes a vif from the kernel's driver, with its guest connected or not.
func (m *Mover) Adopt(ctx context.Context, id ID) (r Report, err error) {
	if !m.Kernel.Serves(id.Domid, id.Devid) {
		return r, m.notKernels(ctx, id)
	}
	from, err := m.Kernel.Interface(id.Domid, id.Devid)
	if err != nil {
		return r, err
	}
	// Known beforehand, so that the time without service is short.
	if err := m.Daemon.CanClaim(ctx, id.Name()); err != nil {
		return r, err
	}
	mv, err := m.begin(id, from)
	if err != nil {
		return r, err
	}
	// What is begun is finished: whoever stops the command now would leave a guest
	// without network. Each step has a limit of its own.
	ctx = context.WithoutCancel(ctx)
	back, err := m.take(ctx, id)
	switch {
	case err == nil:
		err = mv.place(ctx, id.Name())
	case back:
		return mv.end(errors.Join(err, mv.placeKernels(ctx)))
	}
	if err == nil && mv.connected {
		err = m.await(ctx, id, m.serves)
	}
	return mv.end(err)
}

// notKernels says why there is nothing to adopt.
func (m *Mover) notKernels(ctx context.Context, id ID) error {
	vifs, err := m.Daemon.Vifs(ctx)
	if err != nil {
		return err
	}
	known := false
	for i := range vifs {
		if s := &vifs[i]; s.Domid == id.Domid && s.Devid == id.Devid {
			if known = true; s.ServedBy == "" && s.Hotplug == "connected" {
				return fmt.Errorf("%s: %w", id.Name(), ErrOurs)
			}
		}
	}
	if !known && !m.Kernel.Loaded() {
		return fmt.Errorf("%s: %w, and %w", id.Name(), ErrNoVif, ErrNoDriver)
	}
	// One that was lost half-way. Either no one has it, and claiming it is safe, or
	// it is netbackd's and its script was not run.
	if err := m.Daemon.Claim(ctx, id.Name()); err != nil {
		return err
	}
	dir, err := m.directory(id)
	if err != nil {
		return err
	}
	return m.runScript(ctx, id, dir)
}

// Release gives a vif to the kernel's driver, with its guest connected or not.
func (m *Mover) Release(ctx context.Context, id ID) (r Report, err error) {
	switch {
	case !m.Kernel.Loaded():
		return r, fmt.Errorf("%w; load it without having it take what netbackd serves, as root: %s", ErrNoDriver, SafeLoad)
	case m.Kernel.Serves(id.Domid, id.Devid):
		return r, fmt.Errorf("%s: %w", id.Name(), ErrKernels)
	}
	s, err := m.status(ctx, id)
	if err != nil {
		return r, err
	}
	most, err := m.Kernel.MaxQueues()
	if err != nil {
		return r, fmt.Errorf("how many queues xen-netback lets a guest have: %w", err)
	}
	if n := len(s.Queues); n > most {
		return r, fmt.Errorf("%s has %d queues, xen-netback takes %d: it would close the vif; echo %d >/sys/module/xen_netback/parameters/max_queues", id.Name(), n, most, n)
	}
	mv, err := m.begin(id, s.Interface)
	if err != nil {
		return r, err
	}
	ctx = context.WithoutCancel(ctx) // as in Adopt
	if mv.inside, err = m.Daemon.Release(ctx, id.Name()); err != nil {
		return mv.end(err)
	}
	if err := m.bind(ctx, id); err != nil {
		return mv.end(mv.takeBack(ctx, err))
	}
	err = mv.placeKernels(ctx)
	if err == nil && mv.connected {
		err = m.await(ctx, id, mv.kernelServes)
	}
	return mv.end(err)
}

// takeBack gives a vif to netbackd again that the kernel cannot have.
func (mv *move) takeBack(ctx context.Context, cause error) error {
	if err := mv.Daemon.Claim(ctx, mv.id.Name()); err != nil {
		return errors.Join(cause, fmt.Errorf("and back: %w; %s", err, mv.nobodys(mv.id)))
	}
	return errors.Join(fmt.Errorf("%w; it is netbackd's again", cause), mv.place(ctx, mv.id.Name()))
}

// status is what the daemon says of one of its vifs.
func (m *Mover) status(ctx context.Context, id ID) (*vif.Status, error) {
	vifs, err := m.Daemon.Vifs(ctx)
	if err != nil {
		return nil, err
	}
	for i := range vifs {
		if s := &vifs[i]; s.Domid == id.Domid && s.Devid == id.Devid && s.ServedBy == "" {
			return s, nil
		}
	}
	return nil, fmt.Errorf("%s: %w", id.Name(), ErrNoVif)
}

// serves: does netbackd let the guest's packets pass?
func (m *Mover) serves(ctx context.Context, id ID) (bool, error) {
	s, err := m.status(ctx, id)
	if err != nil {
		return false, err
	}
	if s.State == xenbus.Closing || s.State == xenbus.Closed {
		return false, fmt.Errorf("%s: netbackd has closed it: %s", id.Name(), s.Error)
	}
	return s.State == xenbus.Connected && len(s.Queues) > 0 && s.Carrier, nil
}

// state reads the back end's state node.
func (mv *move) state() (xenbus.State, error) {
	v, err := mv.Store.Read(mv.dir + "/state")
	if err != nil {
		return xenbus.Unknown, err
	}
	return xenbus.ParseState(v)
}

// kernelServes: does the kernel? It says so when the script is through. A bridge
// forwards when the kernel has taken notice of the carrier, which it does for interfaces
// that are up already once a second.
func (mv *move) kernelServes(context.Context, ID) (bool, error) {
	state, err := mv.state()
	switch {
	case err != nil:
		return false, err
	case state == xenbus.Closing, state == xenbus.Closed:
		return false, errors.New("xen-netback has closed the vif; `dmesg` says why")
	case state != xenbus.Connected || !mv.copy || !mv.from.up:
		return state == xenbus.Connected, nil
	}
	l, err := netlink.LinkByName(mv.from.name)
	if err != nil {
		return false, err
	}
	return l.Attrs().OperState == netlink.OperUp, nil
}

// await waits until a guest that is connected is served again.
func (m *Mover) await(ctx context.Context, id ID, served func(context.Context, ID) (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, live)
	defer cancel()
	for {
		ok, err := served(ctx, id)
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is not served again within %v", id.Name(), live)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// move is a vif on its way.
type move struct {
	*Mover
	id        ID
	dir       string
	connected bool // its guest, when the move began
	from      *place
	copy      bool // the place, rather than run the script
	count     *counter
	began     time.Time
	through   []int // interfaces packets to the guest leave by
	inside    int   // packets that were already on the way in the back end
	report    Report
}

// begin looks at all there is to know beforehand, and starts the clock.
func (m *Mover) begin(id ID, from string) (*move, error) {
	mv := &move{Mover: m, id: id, report: Report{Lost: -1}}
	var err error
	if mv.dir, err = m.directory(id); err != nil {
		return nil, err
	}
	state, err := mv.state()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", id.Name(), err)
	}
	mv.connected = state == xenbus.Connected || state == xenbus.Reconfigured
	if mv.from, err = placeOf(from); err != nil {
		return nil, err
	}
	if mv.copy, err = mv.from.copyable(); err != nil {
		return nil, err
	}
	mv.through = []int{mv.from.index}
	if mv.from.bridge != 0 && mv.connected {
		text, err := m.Store.Read(mv.dir + "/mac")
		if err != nil {
			return nil, err
		}
		mac, err := net.ParseMAC(text)
		if err != nil {
			return nil, err
		}
		if mv.count, err = startCounter(mv.from.bridge, mac); err != nil {
			return nil, err
		}
	}
	mv.began = time.Now()
	return mv, nil
}

// place puts the vif's new interface where its old one was.
func (mv *move) place(ctx context.Context, name string) error {
	to, err := placeOf(name)
	if err != nil {
		return err
	}
	mv.through = append(mv.through, to.index)
	if !mv.copy {
		mv.report.Script = true
		return mv.runScript(ctx, mv.id, mv.dir)
	}
	if err := mv.from.give(name); err != nil {
		return err
	}
	// As the script does when it is through.
	return mv.Store.Write(mv.dir+"/hotplug-status", "connected")
}

// placeKernels is place for the interface that the kernel's driver has made.
func (mv *move) placeKernels(ctx context.Context) error {
	name, err := mv.Kernel.Interface(mv.id.Domid, mv.id.Devid)
	if err != nil {
		return err
	}
	return mv.place(ctx, name)
}

// end stops the clock.
func (mv *move) end(err error) (Report, error) {
	mv.report.Gap = time.Since(mv.began)
	if mv.count != nil {
		lost, more, cerr := mv.count.stop(mv.through...)
		mv.report.Lost, mv.report.AtLeast = lost+mv.inside, more
		err = errors.Join(err, cerr)
	}
	return mv.report, err
}

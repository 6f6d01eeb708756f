// SPDX-License-Identifier: Apache-2.0

package vhostnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/vhostuser"
	"github.com/netbackd/netbackd/pkg/virtqueue"
)

// Rings is the part of the data path that a device uses. *dataplane.VirtConn is one. Its
// methods wait until the workers have done what they say.
type Rings interface {
	SetFeatures(features uint64) error
	SetMemory(t *vhostuser.Table, rings []vhostuser.Ring) error
	StartRing(r vhostuser.Ring, t *vhostuser.Table, log *virtqueue.Log) error
	UpdateRing(r vhostuser.Ring) error
	StopRing(index int) (base uint32, err error)
	SetLog(l *virtqueue.Log) error
	SendRARP(frame []byte) error
	PauseCoalescing(on bool) error
	Stats(pair int) *dataplane.Stats
	State(pair int) dataplane.VirtState
	Close()
}

// Config describes a device.
type Config struct {
	// Name is that of the device in status and log; empty: the TAP's.
	Name string
	Tap  TapConfig
	Xen  Xen
	Rate Rate // of packets from the guest
	// Drain and Stall are those of dataplane.VirtConfig.
	Drain, Stall time.Duration
	// Coalesce merges packets of a guest without segmentation offload on their way to the
	// TAP.
	Coalesce bool
	// Open makes the part of the data path.
	Open func(dataplane.VirtConfig) (Rings, error)
	// Timeout is that of vhostuser.BackendConfig.
	Timeout time.Duration
	Log     *zap.Logger // rate-limited
}

// Device is a network device of vhost-user.
type Device struct {
	cfg                Config
	log                *zap.Logger
	link               *link
	rings              Rings
	features, protocol uint64 // offered
	limiter            dataplane.Limiter
	notices            notices
	xdp                bool // an XDP program is attached to the TAP; of the goroutine of watch

	view     view // what Status shows
	sessions atomic.Uint64
	cancel   atomic.Pointer[context.CancelCauseFunc] // ends the session; nil: there is none
}

// ErrTapGone: another program has deleted the TAP.
var ErrTapGone = errors.New("the TAP was deleted")

// errReset ends a session by request.
var errReset = errors.New("reset by an administrator")

// Open makes a device. It serves no front end before Run.
func Open(cfg Config) (*Device, error) {
	if cfg.Name == "" {
		cfg.Name = cfg.Tap.Name
	}
	l, err := openLink(cfg.Tap)
	if err != nil {
		return nil, err
	}
	d := &Device{cfg: cfg, log: cfg.Log, link: l, notices: newNotices(len(l.running))}
	d.features, d.protocol = offer(l.dev.VnetHdr(), l.uso, cfg.Xen)
	d.limiter.Set(cfg.Rate.Bytes, cfg.Rate.Interval)
	if !l.dev.VnetHdr() {
		d.log.Warn("the TAP has no vnet headers, so checksums and segmentation are done here: make it with `ip tuntap add ... multi_queue vnet_hdr`",
			zap.String("interface", cfg.Tap.Name))
	}
	if info, err := l.dev.Info(); err == nil {
		d.xdp = info.XDP
	}
	pairs := make([]dataplane.VirtPair, len(l.running))
	for i := range pairs {
		pairs[i].Tap = l.dev.Queue(i)
	}
	d.rings, err = cfg.Open(dataplane.VirtConfig{
		Name: cfg.Name, VnetHdr: l.dev.VnetHdr(), Coalesce: dataplane.CoalesceIf(cfg.Coalesce, l.uso), Paused: d.xdp, Limiter: &d.limiter, Drain: cfg.Drain, Stall: cfg.Stall,
		Notice: d.notice, Pairs: pairs,
	})
	if err != nil {
		return nil, errors.Join(err, l.close())
	}
	return d, nil
}

// Close ends the device. Run must have returned.
func (d *Device) Close() error {
	d.rings.Close()
	return d.link.close()
}

// Name returns the name of the device.
func (d *Device) Name() string { return d.cfg.Name }

// Pairs returns the number of pairs of queues.
func (d *Device) Pairs() int { return len(d.link.running) }

// Run serves the connections of e, one after the other, until ctx ends, e has no more, or
// the TAP is deleted. It returns the error of the last session if e has no more.
func (d *Device) Run(ctx context.Context, e Endpoint) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer stop(nil)
	watch.Go(func() { d.watch(ctx, stop) })
	var last error
	for {
		d.view.wait(e)
		c, err := e.Next(ctx)
		switch {
		case ctx.Err() != nil:
			if cause := context.Cause(ctx); errors.Is(cause, ErrTapGone) {
				return cause
			}
			return nil
		case errors.Is(err, ErrNoMore):
			return last
		case isShortage(err):
			err = fmt.Errorf("wait for a front end: %w", err)
			d.log.Warn("front end not accepted, trying again", zap.Error(err))
			d.view.end(err)
			_ = sleep(ctx, acceptPause) // Next tells that ctx has ended
			continue
		case err != nil:
			return fmt.Errorf("wait for a front end: %w", err)
		}
		last = d.serve(ctx, c)
	}
}

// acceptPause is the time between two attempts to accept a front end.
const acceptPause = 200 * time.Millisecond

// isShortage reports whether an error means that the host is short of something for a while.
func isShortage(err error) bool {
	for _, e := range []error{unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ENOBUFS, unix.ENOSPC, unix.EAGAIN, unix.EINTR, unix.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// end ends the present session, if there is one.
func (d *Device) end(cause error) {
	if cancel := d.cancel.Load(); cancel != nil {
		(*cancel)(cause)
	}
}

// Reset closes the connection of the front end, which may connect again. It reports whether
// there was one.
func (d *Device) Reset() bool {
	was := d.cancel.Load() != nil
	d.end(errReset)
	return was
}

// serve serves one front end until it leaves.
func (d *Device) serve(ctx context.Context, c *net.UnixConn) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	d.cancel.Store(&cancel)
	defer d.cancel.Store(nil)
	d.sessions.Add(1)
	pid := peer(c)
	d.view.begin(pid)
	d.log.Info("front end connected", zap.Int("pid", pid))
	b := vhostuser.NewBackend(c, vhostuser.BackendConfig{
		Features: d.features, ProtocolFeatures: d.protocol, Rings: 2 * d.Pairs(), Timeout: d.cfg.Timeout,
	}, &handler{d})
	err := d.guard(func() error { return b.Serve(ctx) })
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if rest := d.rest(); rest != nil {
		d.log.Warn("TAP not put to rest", zap.Error(rest))
	}
	ended := ctx.Err() != nil && !errors.Is(err, errReset) && errors.Is(err, context.Canceled)
	switch {
	case err == nil, ended:
		d.log.Info("front end disconnected")
		err = nil
	case errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		d.log.Info("front end disconnected", zap.Error(err))
		err = nil
	default:
		d.log.Warn("connection closed", zap.Error(err))
	}
	d.view.end(err)
	return err
}

// rest brings the TAP into the state in which no front end uses it.
func (d *Device) rest() error {
	err := errors.Join(d.link.stop(), d.link.setOffload(tap.Offload{}), d.link.restoreMTU())
	if errors.Is(err, tap.ErrGone) {
		return nil
	}
	return err
}

// guard runs f and turns a panic into an error: a file that became shorter is a fault in the
// memory that a session maps.
func (d *Device) guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			d.log.Error("internal error", zap.Any("panic", r), zap.ByteString("stack", debug.Stack()))
			err = fmt.Errorf("internal error: %v", r)
		}
	}()
	return f()
}

// peer returns the process of the front end, as it was when it made its socket; 0 if it is
// not known.
func peer(c *net.UnixConn) int {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	pid := 0
	_ = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	return pid
}

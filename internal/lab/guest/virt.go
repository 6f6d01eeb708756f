// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/netbackd/netbackd/internal/lab/vhostfront"
	"github.com/netbackd/netbackd/pkg/tap"
)

// VirtConfig is the configuration of a virtio network device, whose back end is reached by
// vhost-user, and of its network card.
type VirtConfig struct {
	// Name, MAC, Addrs, Gateway and MTU are those of VifConfig. The MAC has to be given.
	Name    string   `json:"name,omitempty"`
	MAC     string   `json:"mac,omitempty"`
	Addrs   []string `json:"addrs,omitempty"`
	Gateway string   `json:"gateway,omitempty"`
	MTU     int      `json:"mtu,omitempty"`
	// Front is the front end.
	Front vhostfront.Config `json:"front,omitzero"`
}

func (c VirtConfig) withDefaults() VirtConfig {
	v := VifConfig{Name: c.Name, MTU: c.MTU}.withDefaults()
	c.Name, c.MTU = v.Name, v.MTU
	if c.Front.MTU == 0 && c.MTU != 1500 {
		c.Front.MTU = c.MTU
	}
	return c
}

func (c VirtConfig) card() VifConfig {
	return VifConfig{Name: c.Name, MAC: c.MAC, Addrs: c.Addrs, Gateway: c.Gateway, MTU: c.MTU}
}

// VirtInfo describes a virtio device.
type VirtInfo struct {
	Name      string `json:"name"`
	Features  uint64 `json:"features"` // that were agreed on
	Pairs     int    `json:"pairs"`
	Sessions  int    `json:"sessions"` // so far
	Connected bool   `json:"connected"`
	Error     string `json:"error,omitempty"` // of the last attempt to reconnect
}

// VirtStats holds the counters of a virtio device.
type VirtStats struct {
	Total      vhostfront.Stats   `json:"total"`
	Pairs      []vhostfront.Stats `json:"pairs"`
	Violations []string           `json:"violations,omitempty"`
}

// VirtArgs is an operation on a virtio device. Op is
//
//	settle      wait until all packets are sent, and check all memory
//	quiet       stop all rings for Time, and see that the back end is silent
//	stop        stop all rings
//	start       start them again, where they stopped
//	restart     begin with empty rings
//	reset       the same by RESET_DEVICE
//	reconnect   close the connection and open another one
//	disconnect  close the connection until reconnect
//	swap        change the memory table
//	enable      enable ring N, or disable it if Off
//	buffers     keep N buffers posted in each rx ring from now on
//	log         begin to log dirty pages
//	log-take    read and clear the log
//	log-end     check the log; the result has the number of pages
//	rarp        SEND_RARP with the card's MAC
//	mtu         NET_SET_MTU with N
type VirtArgs struct {
	VifArgs
	Op   string        `json:"op"`
	N    int           `json:"n,omitempty"`
	Off  bool          `json:"off,omitempty"`
	Time time.Duration `json:"time_ns,omitempty"`
}

// virt is a virtio device. Its goroutine, serve, owns device and card.
type virt struct {
	cfg   VirtConfig
	mac   net.HardwareAddr
	dev   *vhostfront.Device
	card  *tap.Device
	pumps []*virtPump
	jobs  chan func()
	done  chan struct{}

	failed   error // of the last attempt to reconnect
	detached bool
}

type virtPump struct {
	*vhostfront.Pump
	stop func() error
}

// newVirt connects a device and makes its card.
func newVirt(ctx context.Context, cfg VirtConfig) (*virt, error) {
	cfg = cfg.withDefaults()
	v := &virt{cfg: cfg, jobs: make(chan func()), done: make(chan struct{})}
	var err error
	if v.mac, err = net.ParseMAC(cfg.MAC); err != nil {
		return nil, err
	}
	if v.dev, err = vhostfront.Open(ctx, cfg.Front); err != nil {
		return nil, err
	}
	if v.card, err = newCard(cfg.card(), cfg.MAC); err != nil {
		return nil, errors.Join(err, v.dev.Close())
	}
	if err := v.start(ctx); err != nil {
		return nil, errors.Join(err, v.close())
	}
	return v, nil
}

// start gives each pair a queue of the card and a pump, and starts the rings.
func (v *virt) start(ctx context.Context) error {
	pairs := v.dev.Pairs()
	if err := errors.Join(v.card.SetQueues(len(pairs)), v.card.SetOffload(v.dev.Offload())); err != nil {
		return err
	}
	for i, pair := range pairs {
		p, err := vhostfront.NewPump(pair, v.card.Queue(i))
		if err != nil {
			return err
		}
		running, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- p.Run(running) }()
		v.pumps = append(v.pumps, &virtPump{p, sync.OnceValue(func() error {
			cancel()
			return <-ended
		})})
	}
	v.dev.SetPumps(func(i int, f func(*vhostfront.Pair)) error { return v.pumps[i].Do(f) })
	return errors.Join(v.dev.Start(), v.card.SetCarrier(true), awaitReady(ctx, v.card.Index()))
}

// close ends the device as a crash of the guest does.
func (v *virt) close() error {
	var errs []error
	for _, p := range v.pumps {
		errs = append(errs, p.stop())
	}
	return errors.Join(append(errs, v.dev.Close(), v.card.Close())...)
}

// attempt bounds a wait for another back end, so that jobs get their turn.
const attempt = 50 * time.Millisecond

// serve runs jobs, and gives the rings to the next back end when one has gone, until ctx
// ends or the device is detached.
func (v *virt) serve(ctx context.Context) {
	defer close(v.done)
	for {
		select {
		case <-ctx.Done():
			_ = v.close() // the process ends, which frees everything
			return
		case job := <-v.jobs:
			job()
			if v.detached {
				return
			}
		case <-v.dev.Lost():
			v.reconnect(ctx)
		}
	}
}

func (v *virt) reconnect(ctx context.Context) {
	c, cancel := context.WithTimeout(ctx, attempt)
	defer cancel()
	v.failed = v.dev.Reconnect(c)
	if v.failed == nil || ctx.Err() != nil {
		return
	}
	if v.dev.Lost() == nil { // no back end yet
		go func() {
			select {
			case v.jobs <- func() {
				if v.dev.Lost() == nil && v.failed != nil {
					v.reconnect(ctx)
				}
			}:
			case <-v.done:
			}
		}()
	}
}

func (v *virt) info() VirtInfo {
	i := VirtInfo{Name: v.cfg.Name, Features: v.dev.Features(), Pairs: len(v.pumps), Sessions: v.dev.Sessions(), Connected: v.dev.Lost() != nil}
	if v.failed != nil {
		i.Error = v.failed.Error()
	}
	return i
}

// stats collects the counters of all pairs.
func (v *virt) stats() (s VirtStats, err error) {
	for _, p := range v.pumps {
		err := p.Do(func(p *vhostfront.Pair) {
			one := p.Stats()
			s.Pairs = append(s.Pairs, one)
			s.Total.Add(one)
			s.Violations = append(s.Violations, p.Faults()...)
		})
		if err != nil {
			return s, fmt.Errorf("%w: %w", err, p.stop())
		}
	}
	return s, nil
}

// op carries out an operation.
func (v *virt) op(ctx context.Context, a VirtArgs) (pages int, err error) {
	switch a.Op {
	case "settle":
		err = v.dev.Settle(ctx)
	case "quiet":
		err = v.dev.Quiet(ctx, a.Time)
	case "stop":
		err = v.dev.Stop()
	case "start":
		err = v.dev.Start()
	case "restart", "reset":
		err = v.dev.Restart(a.Op == "reset")
	case "reconnect":
		err = v.dev.Reconnect(ctx)
	case "disconnect":
		err = v.dev.Detach()
	case "swap":
		err = v.dev.Swap()
	case "enable":
		err = v.dev.Enable(a.N, !a.Off)
	case "buffers":
		for i := range v.pumps {
			err = errors.Join(err, v.dev.SetRxTarget(i, a.N))
		}
	case "log":
		err = v.dev.StartLog()
	case "log-take":
		err = v.dev.TakeLog()
	case "log-end":
		return v.dev.EndLog()
	case "rarp":
		err = v.dev.SendRARP([6]byte(v.mac))
	case "mtu":
		err = v.dev.SetMTU(a.N)
	default:
		err = fmt.Errorf("no such operation: %.40s", a.Op)
	}
	return 0, err
}

// do runs f on the device's goroutine.
func (v *virt) do(ctx context.Context, f func() error) error {
	result := make(chan error, 1)
	select {
	case v.jobs <- func() { result <- f() }:
		return <-result
	case <-v.done:
		return errVifGone
	case <-ctx.Done():
		return ctx.Err()
	}
}

// detach stops the rings, if there is a back end, and ends the device.
func (v *virt) detach(ctx context.Context) error {
	return v.do(ctx, func() error {
		v.detached = true
		var err error
		if v.dev.Lost() != nil {
			err = v.dev.Stop()
		}
		return errors.Join(err, v.close())
	})
}

// SPDX-License-Identifier: Apache-2.0

package hostile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/netbackd/netbackd/internal/lab/linerpc"
)

// agent is the process.
type agent struct {
	mu     sync.Mutex
	fronts []*front // guarded by mu
	virts  []*virt  // guarded by mu
	disks  []*disk  // guarded by mu
	load   *running // nil: none; guarded by mu
}

// running is a load under way.
type running struct {
	stop  context.CancelFunc
	began time.Time
	parts []part
	ended chan outcome
}

// outcome is the end of a part of a load.
type outcome struct {
	strength Strength
	err      error
}

// part is the work of one goroutine of a load, until ctx ends.
type part func(ctx context.Context) (Strength, error)

// Main plays guests until the end of the input or the command quit.
func Main(ctx context.Context, in io.Reader, out io.Writer) error {
	a := &agent{}
	s := linerpc.Server[*agent]{Agent: a, Out: out, Commands: map[string]linerpc.Command[*agent]{
		"join":  linerpc.Make((*agent).join),
		"begin": linerpc.Make((*agent).begin),
		"end":   linerpc.Make((*agent).end),
	}}
	err := s.Serve(ctx, linerpc.None{}, in)
	s.Wait()
	_, lerr := a.end(ctx, linerpc.None{})
	if errors.Is(lerr, errNoLoad) {
		lerr = nil
	}
	for _, f := range a.fronts {
		err = errors.Join(err, f.leave())
	}
	for _, d := range a.disks {
		err = errors.Join(err, d.leave())
	}
	for _, v := range a.virts {
		err = errors.Join(err, v.leave())
	}
	return errors.Join(err, lerr)
}

func (a *agent) join(ctx context.Context, args JoinArgs) (linerpc.None, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, v := range args.Vifs {
		f, err := newFront(ctx, args, v)
		if err != nil {
			return linerpc.None{}, fmt.Errorf("vif%d.%d: %w", v.Domid, v.Devid, err)
		}
		a.fronts = append(a.fronts, f)
	}
	for _, v := range args.Disks {
		d, err := newDisk(ctx, args, v)
		if err != nil {
			return linerpc.None{}, fmt.Errorf("vbd%d.%d: %w", v.Domid, v.Devid, err)
		}
		a.disks = append(a.disks, d)
	}
	for _, socket := range args.Sockets {
		v, err := newVirt(socket)
		if err != nil {
			return linerpc.None{}, fmt.Errorf("%s: %w", socket, err)
		}
		a.virts = append(a.virts, v)
	}
	return linerpc.None{}, nil
}

var errNoLoad = errors.New("no load is under way")

func (a *agent) begin(ctx context.Context, args LoadArgs) (linerpc.None, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.load != nil {
		return linerpc.None{}, errors.New("a load is under way already")
	}
	parts, err := a.parts(args)
	if err != nil {
		return linerpc.None{}, err
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	r := &running{stop: stop, began: time.Now(), parts: parts, ended: make(chan outcome, len(parts))}
	for _, p := range parts {
		go func() {
			s, err := p(ctx)
			r.ended <- outcome{s, err}
		}()
	}
	a.load = r
	return linerpc.None{}, nil
}

func (a *agent) end(context.Context, linerpc.None) (s Strength, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := a.load
	if r == nil {
		return s, errNoLoad
	}
	a.load = nil
	s.Took = time.Since(r.began)
	r.stop()
	for range r.parts {
		o := <-r.ended
		s.add(o.strength)
		err = errors.Join(err, o.err)
	}
	return s, err
}

// parts returns what the goroutines of a load do.
func (a *agent) parts(args LoadArgs) (parts []part, err error) {
	if args.Load == Host {
		p, err := floodInterface(args)
		return []part{p}, err
	}
	args.Rate /= float64(max(len(a.fronts)+len(a.virts)+len(a.disks), 1))
	for _, d := range a.disks {
		parts = append(parts, d.parts(args)...)
	}
	for _, v := range a.virts {
		p, err := v.part(args)
		if err != nil {
			return nil, err
		}
		parts = append(parts, p)
	}
	for _, f := range a.fronts {
		var p part
		switch args.Load {
		case Bulk, Flood, Segments, Fragments:
			p, err = f.sending(args)
		case Sink, Starve:
			p = f.idling()
		case Drip:
			p = f.dripping()
		case Control, Static:
			p, err = f.messages(args)
		case Events:
			p = f.kicking(args)
		case Xenstore:
			p = f.writing(args)
		case Reconnect:
			p = f.reconnecting(args)
		default:
			err = fmt.Errorf("no load %.40q", args.Load)
		}
		if err != nil {
			return nil, err
		}
		parts = append(parts, p)
	}
	return parts, nil
}

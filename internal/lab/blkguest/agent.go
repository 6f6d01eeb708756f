// SPDX-License-Identifier: Apache-2.0

package blkguest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"

	"github.com/netbackd/netbackd/internal/lab/blkcases"
	"github.com/netbackd/netbackd/internal/lab/blkfront"
	"github.com/netbackd/netbackd/internal/lab/diskcheck"
	"github.com/netbackd/netbackd/internal/lab/linerpc"
	"github.com/netbackd/netbackd/internal/lab/xenfront"
)

// maxDisks bounds the disks of an agent.
const maxDisks = 64

// agent is a running agent.
type agent struct {
	host xenfront.Host
	ctx  context.Context // ends with the agent
	wg   sync.WaitGroup

	mu    sync.Mutex
	disks []*disk // guarded by mu
}

// Main runs the agent until the end of the input, the command quit or the end of ctx.
func Main(ctx context.Context, cfg Config, in io.Reader, out io.Writer) error {
	host, closeHost, err := xenfront.Open(ctx, cfg.Xen, cfg.Domid)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	a := &agent{host: host, ctx: ctx}
	server := linerpc.Server[*agent]{Agent: a, Commands: commands, Out: out}
	defer func() {
		cancel()
		server.Wait()
		a.wg.Wait() // disks free their resources before the agent leaves the domain
		_ = closeHost()
	}()
	for _, d := range cfg.Disks {
		c, cancel := context.WithTimeout(ctx, linerpc.DefaultTimeout)
		_, err := a.attach(c, d)
		cancel()
		if err != nil {
			return fmt.Errorf("attach %s: %w", d.withDefaults().Name, err)
		}
	}
	return server.Serve(ctx, Hello{PID: os.Getpid()}, in)
}

// commands lists all commands of the agent.
var commands = map[string]linerpc.Command[*agent]{
	"attach":     linerpc.Make((*agent).attach),
	"detach":     linerpc.Make((*agent).detach),
	"disconnect": linerpc.Make((*agent).disconnect),
	"reconnect":  linerpc.Make((*agent).reconnect),
	"suspend":    linerpc.Make((*agent).suspend),
	"replace":    linerpc.Make((*agent).replace),
	"info":       linerpc.Make((*agent).info),
	"stats":      linerpc.Make((*agent).stats),
	"state":      linerpc.Make((*agent).state),
	"key":        linerpc.Make((*agent).key),
	"size":       linerpc.Make((*agent).size),
	"run":        linerpc.Make((*agent).run),
	"scan":       linerpc.Make((*agent).scan),
	"stop":       linerpc.Make((*agent).stop),
	"request":    linerpc.Make((*agent).request),
	"case":       linerpc.Make((*agent).playCase),
	"cases":      linerpc.Make((*agent).playCases),
	linerpc.Quit: linerpc.Make((*agent).quit),
}

type none = linerpc.None

func (a *agent) attach(ctx context.Context, cfg DiskConfig) (Info, error) {
	cfg = cfg.withDefaults()
	a.mu.Lock()
	n := len(a.disks)
	known := slices.ContainsFunc(a.disks, func(d *disk) bool { return d.cfg.Name == cfg.Name })
	a.mu.Unlock()
	if known || n >= maxDisks {
		return Info{}, fmt.Errorf("%s: there is one already, or %d others", cfg.Name, maxDisks)
	}
	d, err := newDisk(ctx, a.host, cfg)
	if err != nil {
		return Info{}, err
	}
	info, err := d.info(ctx)
	a.mu.Lock()
	a.disks = append(a.disks, d)
	a.mu.Unlock()
	a.wg.Go(func() {
		d.serve(a.ctx)
		a.mu.Lock()
		defer a.mu.Unlock()
		a.disks = slices.DeleteFunc(a.disks, func(o *disk) bool { return o == d })
	})
	return info, err
}

// disk finds a disk by its name; empty means the first one.
func (a *agent) disk(args DiskArgs) (*disk, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, d := range a.disks {
		if args.Disk == "" || d.cfg.Name == args.Disk {
			return d, nil
		}
	}
	return nil, fmt.Errorf("no disk %q is attached", args.Disk)
}

// on runs f on the goroutine of a disk.
func (a *agent) on(ctx context.Context, args DiskArgs, f func(*disk) error) error {
	d, err := a.disk(args)
	if err != nil {
		return err
	}
	return d.do(ctx, func() error { return f(d) })
}

func (a *agent) detach(ctx context.Context, args DiskArgs) (none, error) {
	return none{}, a.on(ctx, args, func(d *disk) error {
		d.detached = true
		return errors.Join(d.disconnect(ctx), d.dev.Close())
	})
}

func (a *agent) disconnect(ctx context.Context, args DiskArgs) (none, error) {
	return none{}, a.on(ctx, args, func(d *disk) error { return d.disconnect(ctx) })
}

func (a *agent) reconnect(ctx context.Context, args ConnectArgs) (info Info, err error) {
	return a.again(ctx, args, func(d *disk) func(context.Context) error {
		return func(ctx context.Context) error {
			if len(d.dev.Queues()) > 0 {
				if err := d.dev.Disconnect(ctx); err != nil {
					return err
				}
			}
			return d.dev.Reconnect(ctx)
		}
	})
}

func (a *agent) suspend(ctx context.Context, args ConnectArgs) (info Info, err error) {
	return a.again(ctx, args, func(d *disk) func(context.Context) error { return d.dev.Suspend })
}

func (a *agent) replace(ctx context.Context, args ConnectArgs) (info Info, err error) {
	return a.again(ctx, args, func(d *disk) func(context.Context) error { return d.dev.Replace })
}

func (a *agent) again(ctx context.Context, args ConnectArgs, how func(*disk) func(context.Context) error) (info Info, err error) {
	err = a.on(ctx, args.DiskArgs, func(d *disk) (err error) {
		if err := d.again(ctx, args.Front, how(d)); err != nil {
			return err
		}
		info, err = d.info(ctx)
		return err
	})
	return info, err
}

func (a *agent) info(ctx context.Context, args DiskArgs) (info Info, err error) {
	err = a.on(ctx, args, func(d *disk) (err error) {
		info, err = d.info(ctx)
		return err
	})
	return info, err
}

func (a *agent) stats(ctx context.Context, args DiskArgs) (s StatsResult, err error) {
	err = a.on(ctx, args, func(d *disk) error {
		s = d.stats()
		return nil
	})
	return s, err
}

func (a *agent) state(ctx context.Context, args StateArgs) (none, error) {
	return none{}, a.on(ctx, args.DiskArgs, func(d *disk) error { return d.dev.SetState(ctx, args.State) })
}

func (a *agent) key(ctx context.Context, args KeyArgs) (value string, err error) {
	err = a.on(ctx, args.DiskArgs, func(d *disk) (err error) {
		switch args.Op {
		case "read":
			value, err = d.dev.Key(ctx, args.Key)
		case "read-backend":
			value, err = d.dev.BackendKey(ctx, args.Key)
		case "write":
			err = d.dev.WriteKey(ctx, args.Key, args.Value)
		case "remove":
			err = d.dev.RemoveKey(ctx, args.Key)
		default:
			err = fmt.Errorf("no such operation: %.40s", args.Op)
		}
		return err
	})
	return value, err
}

func (a *agent) size(ctx context.Context, args SizeArgs) (none, error) {
	return none{}, a.on(ctx, args.DiskArgs, func(d *disk) error { return d.awaitSize(ctx, args.Sectors) })
}

func (a *agent) run(ctx context.Context, args LoadArgs) (diskcheck.Result, error) {
	d, err := a.disk(args.DiskArgs)
	if err != nil {
		return diskcheck.Result{}, err
	}
	return d.runLoad(ctx, args.Load)
}

func (a *agent) scan(ctx context.Context, args DiskArgs) (diskcheck.Result, error) {
	return a.run(ctx, LoadArgs{args, diskcheck.ScanLoad()})
}

func (a *agent) stop(ctx context.Context, args DiskArgs) (none, error) {
	var w *load
	err := a.on(ctx, args, func(d *disk) error {
		w = d.stopLoad()
		return nil
	})
	if err != nil || w == nil {
		return none{}, err
	}
	select {
	case <-w.ended:
		return none{}, nil
	case <-ctx.Done():
		return none{}, ctx.Err()
	}
}

// queue finds a queue of a connected disk without a load.
func (d *disk) queue(i int) (*blkfront.Queue, error) {
	switch {
	case d.load != nil:
		return nil, errBusy
	case i < 0 || i >= len(d.dev.Queues()):
		return nil, errNoQueues
	}
	return d.dev.Queues()[i], nil
}

func (a *agent) request(ctx context.Context, args RequestArgs) (r RequestResult, err error) {
	err = a.on(ctx, args.DiskArgs, func(d *disk) error {
		q, err := d.queue(args.Queue)
		if err != nil {
			return err
		}
		r, err = request(ctx, q, &args)
		return err
	})
	return r, err
}

// playCase plays one bad or odd request. What the disk then has the model does not know.
func (a *agent) playCase(ctx context.Context, args CaseArgs) (r CaseResult, err error) {
	all := blkcases.All()
	i := slices.IndexFunc(all, func(c blkcases.Case) bool { return c.Name == args.Case })
	if i < 0 {
		return r, fmt.Errorf("no such case: %.80s", args.Case)
	}
	err = a.on(ctx, args.DiskArgs, func(d *disk) error {
		q, err := d.queue(0)
		if err != nil {
			return err
		}
		p, err := d.casePlayer(ctx, q)
		if err != nil {
			return err
		}
		if r.Skipped = !p.Fits(&all[i]); r.Skipped {
			return nil
		}
		if err := p.Play(ctx, &all[i]); err != nil {
			r.Wrong = err.Error()
		}
		return nil
	})
	return r, err
}

// playCases plays all requests that fit the disk and after which the ring goes on.
func (a *agent) playCases(ctx context.Context, args DiskArgs) (r CasesResult, err error) {
	err = a.on(ctx, args, func(d *disk) (err error) {
		q, err := d.queue(0)
		if err != nil {
			return err
		}
		p, err := blkcases.NewPlayer(ctx, d.dev.Host, d.dev.BackendID(), q, blkcases.LimitsOf(d.dev.Offers()))
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, p.Close()) }()
		for _, c := range blkcases.All() {
			if c.Overrun != 0 || !p.Fits(&c) {
				r.Skipped++
				continue
			}
			r.Played++
			if err := p.Play(ctx, &c); err != nil {
				r.Wrong = append(r.Wrong, c.Name+": "+err.Error())
			}
		}
		return nil
	})
	return r, err
}

// casePlayer returns the player of cases, which stays until the queues go.
func (d *disk) casePlayer(ctx context.Context, q *blkfront.Queue) (*blkcases.Player, error) {
	var err error
	if d.player == nil {
		d.player, err = blkcases.NewPlayer(ctx, d.dev.Host, d.dev.BackendID(), q, blkcases.LimitsOf(d.dev.Offers()))
	}
	return d.player, err
}

func (a *agent) quit(ctx context.Context, _ none) (none, error) {
	a.mu.Lock()
	disks := slices.Clone(a.disks)
	a.mu.Unlock()
	var errs []error
	for _, d := range disks {
		_, err := a.detach(ctx, DiskArgs{d.cfg.Name})
		errs = append(errs, err)
	}
	return none{}, errors.Join(errs...)
}

// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/netbackd/netbackd/internal/lab/linerpc"
	"github.com/netbackd/netbackd/internal/lab/netfront"
	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/internal/lab/traffic"
	"github.com/netbackd/netbackd/internal/lab/xenfront"
)

// maxServers bounds the servers of an agent, maxVifs its vifs.
const (
	maxServers = 64
	maxVifs    = 16
)

// agent is a running agent.
type agent struct {
	host netfront.Host
	ctx  context.Context // ends with the agent
	wg   sync.WaitGroup

	mu      sync.Mutex
	vifs    []*vif          // guarded by mu
	virts   []*virt         // guarded by mu
	servers map[int]*server // guarded by mu
	lastID  int             // guarded by mu
}

// server is something that listens.
type server struct {
	tcp  *traffic.TCPServer
	udp  *traffic.UDPServer
	stop func() error
}

// Main runs the agent until the end of the input, the command quit or the end of ctx. The
// guest uses the network namespace of the caller.
func Main(ctx context.Context, cfg Config, in io.Reader, out io.Writer) error {
	var host netfront.Host
	closeHost := func() error { return nil }
	if !cfg.NoXen {
		var err error
		if host, closeHost, err = xenfront.Open(ctx, cfg.Xen, cfg.Domid); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	a := &agent{host: host, ctx: ctx, servers: map[int]*server{}}
	server := linerpc.Server[*agent]{Agent: a, Commands: commands, Out: out}
	defer func() {
		cancel()
		server.Wait()
		a.wg.Wait() // vifs free their resources before the agent leaves the domain
		_ = closeHost()
	}()
	if err := netns.Up("lo"); err != nil {
		return err
	}
	for _, v := range cfg.Vifs {
		c, cancel := context.WithTimeout(ctx, defaultTimeout)
		_, err := a.attach(c, v)
		cancel()
		if err != nil {
			return fmt.Errorf("attach %s: %w", v.withDefaults().Name, err)
		}
	}
	for _, v := range cfg.Virts {
		c, cancel := context.WithTimeout(ctx, defaultTimeout)
		_, err := a.virtAttach(c, v)
		cancel()
		if err != nil {
			return fmt.Errorf("attach %s: %w", v.withDefaults().Name, err)
		}
	}
	return server.Serve(ctx, Hello{PID: os.Getpid()}, in)
}

// commands lists all commands of the agent.
var commands = map[string]linerpc.Command[*agent]{
	"attach":      linerpc.Make((*agent).attach),
	"detach":      linerpc.Make((*agent).detach),
	"disconnect":  linerpc.Make((*agent).disconnect),
	"reconnect":   linerpc.Make((*agent).reconnect),
	"suspend":     linerpc.Make((*agent).suspend),
	"info":        linerpc.Make((*agent).info),
	"stats":       linerpc.Make((*agent).stats),
	"state":       linerpc.Make((*agent).state),
	"key":         linerpc.Make((*agent).key),
	"mcast":       linerpc.Make((*agent).mcast),
	"hash":        linerpc.Make((*agent).hash),
	"xdp":         linerpc.Make((*agent).xdp),
	"static":      linerpc.Make((*agent).static),
	"buffers":     linerpc.Make((*agent).buffers),
	"control":     linerpc.Make((*agent).control),
	"raw":         linerpc.Make((*agent).raw),
	"ping":        linerpc.Make((*agent).ping),
	"tcp-serve":   linerpc.Make((*agent).tcpServe),
	"tcp-send":    linerpc.Make((*agent).tcpSend),
	"tcp-results": linerpc.Make((*agent).tcpResults),
	"udp-serve":   linerpc.Make((*agent).udpServe),
	"udp-send":    linerpc.Make((*agent).udpSend),
	"udp-results": linerpc.Make((*agent).udpResults),
	"join":        linerpc.Make((*agent).join),
	"stop":        linerpc.Make((*agent).stopServer),
	"virt-attach": linerpc.Make((*agent).virtAttach),
	"virt-detach": linerpc.Make((*agent).virtDetach),
	"virt-info":   linerpc.Make((*agent).virtInfo),
	"virt-stats":  linerpc.Make((*agent).virtStats),
	"virt":        linerpc.Make((*agent).virtOp),
	"quit":        linerpc.Make((*agent).quit),
}

// none is the type of missing arguments and missing results.
type none = linerpc.None

func (a *agent) attach(ctx context.Context, cfg VifConfig) (VifInfo, error) {
	if a.host.Store == nil {
		return VifInfo{}, errors.New("this guest is without Xen")
	}
	cfg = cfg.withDefaults()
	a.mu.Lock()
	n := len(a.vifs)
	known := slices.ContainsFunc(a.vifs, func(v *vif) bool { return v.cfg.Name == cfg.Name })
	a.mu.Unlock()
	if known || n >= maxVifs {
		return VifInfo{}, fmt.Errorf("%s: there is one already, or %d others", cfg.Name, maxVifs)
	}
	v, err := newVif(ctx, a.host, cfg)
	if err != nil {
		return VifInfo{}, err
	}
	info, err := v.info(ctx)
	a.mu.Lock()
	a.vifs = append(a.vifs, v)
	a.mu.Unlock()
	a.wg.Go(func() {
		v.serve(a.ctx)
		a.mu.Lock()
		defer a.mu.Unlock()
		a.vifs = slices.DeleteFunc(a.vifs, func(o *vif) bool { return o == v })
	})
	return info, err
}

// vif finds a vif by its name; empty means the first one.
func (a *agent) vif(args VifArgs) (*vif, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, v := range a.vifs {
		if args.Vif == "" || v.cfg.Name == args.Vif {
			return v, nil
		}
	}
	return nil, fmt.Errorf("no vif %q is attached", args.Vif)
}

// onVif runs f on the goroutine of a vif.
func (a *agent) onVif(ctx context.Context, args VifArgs, f func(*vif) error) error {
	v, err := a.vif(args)
	if err != nil {
		return err
	}
	return v.do(ctx, func() error { return f(v) })
}

func (a *agent) detach(ctx context.Context, args VifArgs) (none, error) {
	v, err := a.vif(args)
	if err != nil {
		return none{}, err
	}
	return none{}, v.detach(ctx)
}

func (a *agent) disconnect(ctx context.Context, args VifArgs) (none, error) {
	return none{}, a.onVif(ctx, args, func(v *vif) error { return v.disconnect(ctx) })
}

func (a *agent) reconnect(ctx context.Context, args ConnectArgs) (info VifInfo, err error) {
	err = a.onVif(ctx, args.VifArgs, func(v *vif) (err error) {
		if err := v.reconnect(ctx, args.Front); err != nil {
			return err
		}
		info, err = v.info(ctx)
		return err
	})
	return info, err
}

func (a *agent) suspend(ctx context.Context, args ConnectArgs) (info VifInfo, err error) {
	err = a.onVif(ctx, args.VifArgs, func(v *vif) (err error) {
		if err := v.suspend(ctx, args.Front); err != nil {
			return err
		}
		info, err = v.info(ctx)
		return err
	})
	return info, err
}

func (a *agent) info(ctx context.Context, args VifArgs) (info VifInfo, err error) {
	err = a.onVif(ctx, args, func(v *vif) (err error) {
		info, err = v.info(ctx)
		return err
	})
	return info, err
}

func (a *agent) stats(ctx context.Context, args VifArgs) (s VifStats, err error) {
	err = a.onVif(ctx, args, func(v *vif) (err error) {
		s, err = v.stats()
		return err
	})
	return s, err
}

func (a *agent) state(ctx context.Context, args StateArgs) (none, error) {
	return none{}, a.onVif(ctx, args.VifArgs, func(v *vif) error { return v.dev.SetState(ctx, args.State) })
}

func (a *agent) key(ctx context.Context, args KeyArgs) (value string, err error) {
	err = a.onVif(ctx, args.VifArgs, func(v *vif) (err error) {
		switch args.Op {
		case "read":
			value, err = v.dev.Key(ctx, args.Key)
		case "read-backend":
			value, err = v.dev.BackendKey(ctx, args.Key)
		case "write":
			err = v.dev.WriteKey(ctx, args.Key, args.Value)
		case "remove":
			err = v.dev.RemoveKey(ctx, args.Key)
		default:
			err = fmt.Errorf("no such operation: %.40s", args.Op)
		}
		return err
	})
	return value, err
}

func (a *agent) mcast(ctx context.Context, args McastArgs) (r McastResult, err error) {
	addr, err := net.ParseMAC(args.Addr)
	if err != nil || len(addr) != 6 {
		return r, fmt.Errorf("%q is no Ethernet address", args.Addr)
	}
	err = a.onVif(ctx, args.VifArgs, func(v *vif) (err error) {
		r, err = v.editMulticast(ctx, args.Add, [][6]byte{[6]byte(addr)})
		return err
	})
	return r, err
}

var errNoControl = errors.New("there is no control ring")

func (a *agent) hash(ctx context.Context, args HashArgs) (none, error) {
	return none{}, a.onVif(ctx, args.VifArgs, func(v *vif) error {
		if v.dev.Control() == nil {
			return errNoControl
		}
		return v.setHash(ctx, &args.Hash)
	})
}

func (a *agent) xdp(ctx context.Context, args XDPArgs) (none, error) {
	return none{}, a.onVif(ctx, args.VifArgs, func(v *vif) error { return v.setXDPHeadroom(ctx, args.Headroom) })
}

func (a *agent) static(ctx context.Context, args StaticArgs) (n int, err error) {
	err = a.onVif(ctx, args.VifArgs, func(v *vif) error {
		if v.dev.Control() == nil {
			return errNoControl
		}
		p, err := v.pump(args.Queue)
		if err != nil {
			return err
		}
		if err := p.Do((*netfront.Queue).AllowMapped); err != nil {
			return err
		}
		switch c := v.dev.Control(); {
		case args.Off:
			n, err = c.EndStaticGrants(ctx, p.Queue())
		case args.Most > 0:
			n, err = c.SomeStaticGrants(ctx, p.Queue(), args.Most)
		default:
			n, err = c.StaticGrants(ctx, p.Queue())
		}
		return err
	})
	return n, err
}

func (a *agent) buffers(ctx context.Context, args QueueArgs) (b Buffers, err error) {
	err = a.onVif(ctx, args.VifArgs, func(v *vif) error {
		p, err := v.pump(args.Queue)
		if err != nil {
			return err
		}
		b.Tx, b.Rx = p.Queue().Buffers()
		return nil
	})
	return b, err
}

func (a *agent) control(ctx context.Context, args ControlArgs) (r ControlResult, err error) {
	err = a.onVif(ctx, args.VifArgs, func(v *vif) error {
		c := v.dev.Control()
		if c == nil {
			return errNoControl
		}
		r, err = v.control(ctx, c, args)
		return err
	})
	return r, err
}

func (a *agent) raw(ctx context.Context, args RawArgs) (r RawResult, err error) {
	err = a.onVif(ctx, args.VifArgs, func(v *vif) (err error) {
		r, err = v.raw(args)
		return err
	})
	return r, err
}

func (a *agent) ping(ctx context.Context, args PingArgs) (traffic.PingResult, error) {
	addr, err := netip.ParseAddr(args.Addr)
	if err != nil {
		return traffic.PingResult{}, err
	}
	p, err := traffic.DialPing(addr)
	if err != nil {
		return traffic.PingResult{}, err
	}
	defer func() { _ = p.Close() }()
	return p.Ping(ctx, args.PingOptions)
}

func (a *agent) tcpSend(ctx context.Context, args TCPSendArgs) (traffic.TCPResult, error) {
	c, err := traffic.DialTCP(ctx, args.Addr)
	if err != nil {
		return traffic.TCPResult{}, err
	}
	return traffic.SendTCP(ctx, c, args.TCPSend)
}

func (a *agent) udpSend(ctx context.Context, args UDPSendArgs) (traffic.UDPResult, error) {
	c, err := traffic.DialUDP(ctx, args.Addr, args.Device)
	if err != nil {
		return traffic.UDPResult{}, err
	}
	return traffic.SendUDP(ctx, c, args.UDPSend)
}

func (a *agent) tcpServe(_ context.Context, args ServeArgs) (Server, error) {
	s, err := traffic.ListenTCP(args.Addr)
	if err != nil {
		return Server{}, err
	}
	return a.serve(&server{tcp: s}, s.Addr(), s.Serve, s.Close)
}

func (a *agent) udpServe(_ context.Context, args ServeArgs) (Server, error) {
	s, err := traffic.ListenUDP(args.Addr)
	if err != nil {
		return Server{}, err
	}
	return a.serve(&server{udp: s}, s.Addr(), s.Serve, s.Close)
}

// join has the kernel join a group. If the vif uses multicast control, it also adds the
// group to the backend's list.
func (a *agent) join(ctx context.Context, args JoinArgs) (Server, error) {
	v, err := a.vif(args.VifArgs)
	if err != nil {
		return Server{}, err
	}
	s, err := traffic.ListenMulticast(args.Group, v.cfg.Name)
	if err != nil {
		return Server{}, err
	}
	err = v.do(ctx, func() error {
		if !v.cfg.Front.Features.MulticastControl {
			return nil
		}
		_, err := v.syncMulticast(ctx)
		return err
	})
	if err != nil {
		return Server{}, errors.Join(err, s.Close())
	}
	return a.serve(&server{udp: s}, s.Addr(), s.Serve, s.Close)
}

// serve runs a server until it is stopped or the agent ends.
func (a *agent) serve(s *server, addr net.Addr, run func(context.Context) error, closeIt func() error) (Server, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.servers) >= maxServers {
		return Server{}, errors.Join(fmt.Errorf("%d servers are running already", maxServers), closeIt())
	}
	ctx, cancel := context.WithCancel(a.ctx)
	ended := make(chan error, 1)
	a.wg.Go(func() { ended <- run(ctx) })
	s.stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	a.lastID++
	a.servers[a.lastID] = s
	return Server{ID: a.lastID, Addr: addr.String()}, nil
}

func (a *agent) server(id int) (*server, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s := a.servers[id]; s != nil {
		return s, nil
	}
	return nil, fmt.Errorf("no server %d", id)
}

func (a *agent) tcpResults(_ context.Context, args Server) ([]traffic.TCPResult, error) {
	s, err := a.server(args.ID)
	if err != nil || s.tcp == nil {
		return nil, errors.Join(err, errors.New("no TCP server"))
	}
	return s.tcp.Results(), nil
}

func (a *agent) udpResults(_ context.Context, args Server) ([]traffic.UDPResult, error) {
	s, err := a.server(args.ID)
	if err != nil || s.udp == nil {
		return nil, errors.Join(err, errors.New("no UDP server"))
	}
	return s.udp.Results(), nil
}

func (a *agent) stopServer(_ context.Context, args Server) (none, error) {
	s, err := a.server(args.ID)
	if err != nil {
		return none{}, err
	}
	a.mu.Lock()
	delete(a.servers, args.ID)
	a.mu.Unlock()
	return none{}, s.stop()
}

// quit disconnects every vif and virtio device before the agent ends.
func (a *agent) quit(ctx context.Context, _ none) (none, error) {
	a.mu.Lock()
	vifs, virts := slices.Clone(a.vifs), slices.Clone(a.virts)
	a.mu.Unlock()
	var errs []error
	for _, v := range virts {
		errs = append(errs, v.detach(ctx))
	}
	for _, v := range vifs {
		errs = append(errs, v.detach(ctx))
	}
	return none{}, errors.Join(errs...)
}

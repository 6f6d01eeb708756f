// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/netbackd/netbackd/internal/command"
	"github.com/netbackd/netbackd/internal/control"
	"github.com/netbackd/netbackd/internal/daemon"
	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/loglimit"
	"github.com/netbackd/netbackd/internal/netcontrol"
	"github.com/netbackd/netbackd/internal/sdnotify"
	"github.com/netbackd/netbackd/internal/vhostnet"
	"github.com/netbackd/netbackd/pkg/tap"
)

// vhostFlags are the flags of `netbackd vhost-user`.
type vhostFlags struct {
	socket, group string
	fd            int
	connect       bool
	capabilities  bool
	tap, bridge   string
	name          string
	queues, mtu   int
	xen, rate     string
	hashKey       string
	uring         bool
	coalesce      bool
	workers       int
	priority      string
	drain, stall  time.Duration
	sandbox       bool
	log           daemon.LogFlags
	runDir        string
}

// Values of --xen.
const (
	xenAuto    = "auto"
	xenOff     = "off"
	xenForeign = "foreign"
	xenGrant   = "grant"
)

// maxPairs bounds --queues.
const maxPairs = 8

func newVhostUserCmd() *cobra.Command {
	var f vhostFlags
	c := &cobra.Command{
		Use:   "vhost-user",
		Short: "Serve one network device of a guest whose front end speaks vhost-user",
		Long: `Vhost-user serves one virtio network device: of a guest of QEMU, cloud-hypervisor or
another program that is a front end of vhost-user, or of DPDK. It needs no Xen. Its packets
pass through a TAP of this host.

The front end connects to --socket-path, or, with --connect, listens there. When it has
ended, or was restarted, the next one may connect. Vhost-user can be killed and started
again as well: front ends that reconnect continue with the same rings.

The TAP is --tap. If it does not exist it is made, and removed at the end. With --bridge it
is added to a bridge, and --tap may be left out.

The manual page netbackd(8) and docs/vhost-user.md have lines for each front end.`,
		Example: "  netbackd vhost-user --socket-path /run/vm1.sock --bridge br0\n" +
			"  netbackd vhost-user --socket-path /run/vm1.sock --connect --tap tap1 --queues 2",
		Args: command.Args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			if f.capabilities {
				_, err := fmt.Fprintln(c.OutOrStdout(), `{"type": "net"}`)
				return err
			}
			f.runDir = command.RunDir(c)
			return f.run(c.Context())
		},
	}
	fl := c.Flags()
	fl.StringVar(&f.socket, "socket-path", "", "`path` of the socket")
	fl.IntVar(&f.fd, "fd", -1, "`number` of a socket that was passed, instead of --socket-path: one that is connected, or one that is listened on")
	fl.BoolVar(&f.connect, "connect", false, "connect to the socket, and do so again and again, instead of listening on it")
	fl.StringVar(&f.group, "socket-group", "", "`group` whose members may connect; by default the umask decides")
	fl.BoolVar(&f.capabilities, "print-capabilities", false, "print what the program can do, in JSON, and exit")
	fl.StringVar(&f.tap, "tap", "", "`name` of the TAP")
	fl.StringVar(&f.bridge, "bridge", "", "`bridge` that the TAP is added to")
	fl.StringVar(&f.name, "name", "", "`name` of the device in list and show; by default that of the TAP")
	fl.IntVar(&f.queues, "queues", 0, "`number` of pairs of queues offered; 0: one per CPU, at most 8")
	fl.IntVar(&f.mtu, "mtu", 0, "`MTU` of the interface, also the largest that the guest may have; 0: as it is")
	fl.StringVar(&f.rate, "rate", "", "`limit` of packets from the guest, as rate= of xl, such as 100Mb/s")
	fl.StringVar(&f.hashKey, "hash-key", "", "steer packets to the guest over its pairs by the Toeplitz hash with this `key`: up to 80 hexadecimal digits, or random; needs CAP_BPF")
	fl.StringVar(&f.xen, "xen", xenAuto, "`kind` of memory of Xen's guests that is offered to be mapped: grant, foreign, off, or auto (foreign on Xen)")
	fl.Lookup("xen").NoOptDefVal = xenGrant
	fl.BoolVar(&f.uring, "io-uring", true, "move batches of packets through io_uring if the kernel has it")
	fl.BoolVar(&f.coalesce, "coalesce", true, "merge packets that a guest without segmentation offload sends into larger ones for the host")
	fl.IntVar(&f.workers, "workers", 0, "`number` of threads that move packets; 0: one per pair of queues, at most one per CPU")
	priorityFlag(fl, &f.priority)
	fl.DurationVar(&f.drain, "rx-drain", dataplane.DefaultDrain, "drop packets that a guest has not taken for this long")
	fl.DurationVar(&f.stall, "rx-stall", dataplane.DefaultStall, "take the carrier off the interface of a guest that has taken nothing for this long")
	fl.BoolVar(&f.sandbox, "sandbox", true, "give up all rights and system calls that the device does not need, once it is set up")
	f.log.Add(fl)
	return c
}

// deviceName is the syntax of --name: a file of that name is made.
var deviceName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._+-]{0,63}$`)

// check returns the first mistake in the flags. passed says that the service manager has
// passed a socket.
func (f *vhostFlags) check(passed bool) error {
	var mistake string
	switch {
	case f.socket != "" && f.fd >= 0:
		mistake = "--socket-path and --fd exclude each other"
	case f.socket == "" && f.fd < 0 && !passed:
		mistake = "which socket? Give --socket-path PATH, or --fd NUMBER"
	case f.connect && (f.socket == "" || passed):
		mistake = "--connect needs --socket-path, and no socket that was passed"
	case f.group != "" && (f.socket == "" || f.connect):
		mistake = "--socket-group is for a socket that is made, by --socket-path without --connect"
	case f.tap == "" && f.bridge == "":
		mistake = "which network? Give --tap NAME, or --bridge NAME to have a TAP made and added to it"
	case f.name != "" && !deviceName.MatchString(f.name):
		mistake = fmt.Sprintf("--name is %q, want letters, digits and ._+-, at most 64", f.name)
	case f.queues < 0 || f.queues > maxPairs:
		mistake = fmt.Sprintf("--queues is %d, want 1 to %d, or 0", f.queues, maxPairs)
	case f.mtu != 0 && (f.mtu < 68 || f.mtu > 65521):
		mistake = fmt.Sprintf("--mtu is %d, want 68 to 65521", f.mtu)
	case f.workers < 0 || f.workers > maxWorkers:
		mistake = fmt.Sprintf("--workers is %d, want 0 to %d", f.workers, maxWorkers)
	case badPriority(f.priority):
		mistake = fmt.Sprintf("--worker-priority is %q, want auto or off", f.priority)
	case f.drain <= 0 || f.stall <= 0:
		mistake = "--rx-drain and --rx-stall want times above 0"
	default:
		return nil
	}
	return command.Usagef("%s; see `netbackd vhost-user --help`", mistake)
}

// mode returns what is offered to front ends of Xen's guests.
func (f *vhostFlags) mode() (vhostnet.Xen, error) {
	switch f.xen {
	case xenAuto:
		if b, err := os.ReadFile("/sys/hypervisor/type"); err == nil && strings.TrimSpace(string(b)) == "xen" {
			return vhostnet.XenForeign, nil
		}
		return vhostnet.XenOff, nil
	case xenOff:
		return vhostnet.XenOff, nil
	case xenForeign:
		return vhostnet.XenForeign, nil
	case xenGrant:
		return vhostnet.XenGrant, nil
	}
	return 0, command.Usagef("--xen=%s: want grant, foreign, off or auto", f.xen)
}

// names returns the name of the TAP, and whether no successor could find it by that name.
func (f *vhostFlags) names(e vhostnet.Endpoint) (name string, transient bool) {
	of := e.Path()
	switch {
	case f.tap != "":
		return f.tap, false
	case f.name != "":
		of = f.name
	case of == "":
		of, transient = fmt.Sprintf("process %d", os.Getpid()), true
	default:
		if abs, err := filepath.Abs(of); err == nil {
			of = abs
		}
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(of))
	return fmt.Sprintf("vhu%08x", h.Sum32()), transient
}

// endpoint opens the socket. One that the service manager passed has precedence, so that
// the same arguments do with and without a socket unit.
func (f *vhostFlags) endpoint(log *zap.Logger, passed []sdnotify.File) (vhostnet.Endpoint, error) {
	switch {
	case len(passed) > 0:
		return vhostnet.Inherit(passed[0].FD)
	case f.fd >= 0:
		return vhostnet.Inherit(f.fd)
	case f.connect:
		return vhostnet.Connect(f.socket, func(err error) {
			log.Warn("connect failed; it is tried again", zap.Error(err))
		}), nil
	}
	group := -1
	if f.group != "" {
		g, err := user.LookupGroup(f.group)
		if err == nil {
			group, err = strconv.Atoi(g.Gid)
		}
		if err != nil {
			return nil, command.Usagef("--socket-group: %w", err)
		}
	}
	return vhostnet.Listen(f.socket, group)
}

func (f *vhostFlags) run(ctx context.Context) (err error) {
	// This comes first, so that no child inherits the files.
	notify, passed, envErr := sdnotify.FromEnv()
	if err := f.check(len(passed) > 0); err != nil {
		return err
	}
	if len(passed) > 1 {
		return fmt.Errorf("the service manager passed %d sockets, want one: each device has a unit of its own", len(passed))
	}
	p, end, err := daemon.Begin(f.log)
	if err != nil {
		return err
	}
	defer end()
	if envErr != nil {
		p.Log.Warn("environment from the service manager is not valid", zap.Error(envErr))
	}
	p.Notify, p.Log = notify, loglimit.Wrap(p.Log, rate.NewLimiter(10, 64), nil)
	v := &vhostUser{Process: p, vhostFlags: f}
	defer boundEnd(ctx, endTime, v.giveUp)()
	defer func() { err = errors.Join(err, v.close()) }()
	if err := v.setUp(passed); err != nil {
		return err
	}
	return v.serve(ctx)
}

// vhostUser is `netbackd vhost-user`.
type vhostUser struct {
	*daemon.Process
	*vhostFlags

	endpoint vhostnet.Endpoint
	pool     *dataplane.Pool
	device   *vhostnet.Device
	control  net.Listener // nil: the run directory cannot be written
	status   netcontrol.Daemon
}

// setUp opens all that the device needs. The socket comes first: a process whose socket is
// taken changes nothing on the host. A front end that connects early waits.
func (v *vhostUser) setUp(passed []sdnotify.File) (err error) {
	mode, err := v.mode()
	if err != nil {
		return err
	}
	limit, err := vhostnet.ParseRate(v.rate)
	if err != nil {
		return command.Usagef("--rate: %w", err)
	}
	key, err := vhostnet.ParseHashKey(v.hashKey)
	if err != nil {
		return command.Usagef("--hash-key: %w", err)
	}
	daemon.RaiseFileLimit()
	if v.endpoint, err = v.vhostFlags.endpoint(v.Log, passed); err != nil {
		return err
	}
	if err := v.prepare(); err != nil {
		return err
	}
	auto := min(maxPairs, runtime.NumCPU())
	v.pool, err = dataplane.NewPool(dataplane.Options{
		Workers: v.workers, NoUring: !v.uring, NoPriority: v.priority == priorityOff,
		Warn: func(err error) { v.Log.Warn("data path degraded", zap.Error(err)) },
		Note: func(text string) { v.Log.Info("guests moved", zap.String("why", text)) },
	})
	if err != nil {
		return err
	}
	setProcessors(v.pool.Workers())
	name, transient := v.names(v.endpoint)
	v.device, err = vhostnet.Open(vhostnet.Config{
		Name: v.name,
		Tap:  vhostnet.TapConfig{Name: name, Bridge: v.bridge, MTU: v.mtu, Queues: v.queues, Auto: auto, HashKey: key, Transient: transient},
		Xen:  mode, Rate: limit, Drain: v.drain, Stall: v.stall, Coalesce: v.coalesce, Log: v.Log,
		Open: func(cfg dataplane.VirtConfig) (vhostnet.Rings, error) {
			c, err := v.pool.OpenVirt(cfg)
			if err != nil {
				return nil, err // without the nil pointer
			}
			return c, nil
		},
	})
	if err != nil {
		return err
	}
	v.status = netcontrol.Daemon{
		Version: command.Version(), PID: os.Getpid(), Since: time.Now(), Workers: v.pool.Workers(),
		Uring: daemon.UringState(v.uring), Offload: v.device.Status().VnetHdr, MaxThreads: maxThreads(v.pool.Workers()),
	}
	v.status.Coalesce = dataplane.CoalesceIf(v.coalesce && v.status.Offload, tap.TakesUSO()).String()
	setPriority(&v.status, v.pool)
	if err := v.listenControl(); err != nil {
		return err
	}
	return v.enter(len(key) > 0)
}

// listenControl makes the control socket. A device of a user who may not write the run
// directory is served without.
func (v *vhostUser) listenControl() error {
	l, err := netcontrol.ListenDevice(v.runDir, v.device.Name())
	switch {
	case err == nil:
		v.control = l
	case errors.Is(err, os.ErrPermission), errors.Is(err, unix.EROFS):
		v.Log.Warn("no control socket: `netbackd list` does not show this device; give a --run-dir that this user may write", zap.Error(err))
	case errors.Is(err, control.ErrRunning):
		return fmt.Errorf("a device of the name %s is served by another process: give another --name", v.device.Name())
	default:
		return fmt.Errorf("control socket: %w", err)
	}
	return nil
}

// close closes the resources of setUp. The socket comes first: no front end connects to a
// device that ends.
func (v *vhostUser) close() error {
	var errs []error
	if v.endpoint != nil {
		errs = append(errs, v.endpoint.Close())
	}
	if v.device != nil {
		errs = append(errs, v.device.Close())
	}
	if v.pool != nil {
		v.pool.Close()
	}
	if v.control != nil {
		errs = append(errs, v.control.Close())
	}
	return errors.Join(errs...)
}

// serve serves front ends, and answers at the control socket, until ctx ends.
func (v *vhostUser) serve(ctx context.Context) error {
	s := v.device.Status()
	v.Log.Info("ready", zap.String("version", v.status.Version), zap.String("device", s.Name), zap.String("interface", s.Interface),
		zap.String("socket", v.endpoint.Path()), zap.String("mode", v.endpoint.Mode()), zap.Int("queues", s.Pairs),
		zap.Int("workers", v.status.Workers), zap.String("io_uring", v.status.Uring), zap.String("priority", v.status.Priority))
	err := v.Serve(ctx, daemon.Work{
		Listener: v.control, Handler: netcontrol.DeviceHandler(v.now, v.device),
		Workers: v.pool.Ping, Control: func(context.Context) error { return nil },
		Text: func() string { return string(v.device.State()) },
		Run: func(ctx context.Context, ready func()) error {
			ready()
			return v.device.Run(ctx, v.endpoint)
		},
	})
	v.Log.Info("stopped")
	return err
}

// endTime is less than TimeoutStopSec in the unit.
const endTime = 4 * time.Second

// boundEnd calls late if done is not called within limit after ctx has ended. A worker that
// waits in the kernel for a long time makes each call wait that waits for the worker.
func boundEnd(ctx context.Context, limit time.Duration, late func()) (done func()) {
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		select {
		case <-ended:
		case <-time.After(limit):
			late()
		}
	})
	return func() {
		stop()
		close(ended)
	}
}

// giveUp ends the process at once.
func (v *vhostUser) giveUp() {
	v.Log.Error("not ended in time", zap.Duration("limit", endTime))
	_ = v.Log.Sync()
	os.Exit(1)
}

// now returns the status of the process.
func (v *vhostUser) now() netcontrol.Daemon {
	s := v.status
	s.LogLost, s.Threads, s.Classes = v.LogLost(), daemon.Threads(), v.pool.Classes()
	return s
}

var _ vhostnet.Rings = (*dataplane.VirtConn)(nil)

// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"

	"github.com/netbackd/netbackd/internal/lab/linerpc"
	"github.com/netbackd/netbackd/internal/lab/netfront"
	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/internal/lab/traffic"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// ErrEnded is returned by the methods of a Client whose agent has ended.
var ErrEnded = linerpc.ErrEnded

// RemoteError is an error that the agent answered.
type RemoteError = linerpc.RemoteError

// Client sends commands to an agent; see [linerpc.Client]. Commands for one vif run one after
// the other.
type Client struct {
	*linerpc.Client
	hello Hello
}

// NewClient makes a client for an agent that reads w and writes r. It waits for the
// agent's Hello.
func NewClient(r io.Reader, w io.WriteCloser) (*Client, error) {
	c, err := linerpc.NewClient(r, w)
	return withHello(c, err)
}

func withHello(c *linerpc.Client, err error) (*Client, error) {
	if err != nil {
		return nil, err
	}
	g := &Client{Client: c}
	return g, c.Hello(&g.hello)
}

// StartOptions are the settings of Start.
type StartOptions struct {
	Config Config
	// Exe is the program; empty means this one.
	Exe string
	// Args are the arguments before those of Config.Args, with which the program
	// calls ParseArgs and Main; empty means "guest".
	Args []string
	// Env is added to the environment.
	Env []string
	// Stderr receives the agent's standard error; nil means that of this process.
	Stderr io.Writer
}

// Start starts an agent as a process in a network namespace of its own. It dies
// with this process.
func Start(o StartOptions) (*Client, error) {
	if o.Exe == "" {
		o.Exe = "/proc/self/exe"
	}
	if len(o.Args) == 0 {
		o.Args = []string{"guest"}
	}
	if o.Stderr == nil {
		o.Stderr = os.Stderr
	}
	cmd := exec.Command(o.Exe, slices.Concat(o.Args, o.Config.Args())...)
	cmd.Env = append(os.Environ(), o.Env...)
	cmd.Stderr = o.Stderr
	return withHello(linerpc.Start(cmd, netns.Start))
}

// PID returns the agent's process, whose network namespace is the guest's.
func (c *Client) PID() int { return c.hello.PID }

// Do runs f in the guest's network namespace, as [netns.Do] does. It is for traffic
// that the agent has no command for.
func (c *Client) Do(f func() error) error { return netns.Do(c.PID(), f) }

// ask is like Call, with a typed result.
func ask[R any](ctx context.Context, c *Client, cmd string, args any) (R, error) {
	return linerpc.Ask[R](ctx, c.Client, cmd, args)
}

// Attach connects a vif and makes its network card.
func (c *Client) Attach(ctx context.Context, v VifConfig) (VifInfo, error) {
	return ask[VifInfo](ctx, c, "attach", v)
}

// Detach disconnects a vif and removes its card. Here and below, a vif is named by
// its card; "" is the first one.
func (c *Client) Detach(ctx context.Context, vif string) error {
	return c.Call(ctx, "detach", VifArgs{vif}, nil)
}

// Disconnect closes a vif as unloading the driver does; the card stays, without
// carrier.
func (c *Client) Disconnect(ctx context.Context, vif string) error {
	return c.Call(ctx, "disconnect", VifArgs{vif}, nil)
}

// Reconnect closes a vif, if it is open, and connects it again.
func (c *Client) Reconnect(ctx context.Context, args ConnectArgs) (VifInfo, error) {
	return ask[VifInfo](ctx, c, "reconnect", args)
}

// Suspend reconnects a vif without closing it, as after save and restore.
func (c *Client) Suspend(ctx context.Context, args ConnectArgs) (VifInfo, error) {
	return ask[VifInfo](ctx, c, "suspend", args)
}

// Info describes a vif's connection.
func (c *Client) Info(ctx context.Context, vif string) (VifInfo, error) {
	return ask[VifInfo](ctx, c, "info", VifArgs{vif})
}

// Stats returns a vif's counters and the backend's violations.
func (c *Client) Stats(ctx context.Context, vif string) (VifStats, error) {
	return ask[VifStats](ctx, c, "stats", VifArgs{vif})
}

// SetState writes a vif's state and does not wait for the backend.
func (c *Client) SetState(ctx context.Context, vif string, s xenbus.State) error {
	return c.Call(ctx, "state", StateArgs{VifArgs{vif}, s}, nil)
}

// Key reads or writes xenstore nodes of a vif.
func (c *Client) Key(ctx context.Context, args KeyArgs) (string, error) {
	return ask[string](ctx, c, "key", args)
}

// Mcast edits the backend's multicast list.
func (c *Client) Mcast(ctx context.Context, args McastArgs) (McastResult, error) {
	return ask[McastResult](ctx, c, "mcast", args)
}

// SetHash configures hashing over the control ring.
func (c *Client) SetHash(ctx context.Context, vif string, h netfront.Hash) error {
	return c.Call(ctx, "hash", HashArgs{VifArgs{vif}, h}, nil)
}

// SetXDPHeadroom asks for n bytes of headroom before each packet, as Linux does for an
// XDP program.
func (c *Client) SetXDPHeadroom(ctx context.Context, vif string, n uint16) error {
	return c.Call(ctx, "xdp", XDPArgs{VifArgs{vif}, n}, nil)
}

// StaticGrants asks the backend to keep the buffers of a queue mapped and returns the
// number that it keeps.
func (c *Client) StaticGrants(ctx context.Context, vif string, queue int) (int, error) {
	return ask[int](ctx, c, "static", StaticArgs{QueueArgs: QueueArgs{VifArgs{vif}, queue}})
}

// EndStaticGrants asks the backend to unmap the buffers of StaticGrants, and returns
// their number.
func (c *Client) EndStaticGrants(ctx context.Context, vif string, queue int) (int, error) {
	return ask[int](ctx, c, "static", StaticArgs{QueueArgs: QueueArgs{VifArgs{vif}, queue}, Off: true})
}

// Buffers returns the grant references of a queue's buffers.
func (c *Client) Buffers(ctx context.Context, vif string, queue int) (Buffers, error) {
	return ask[Buffers](ctx, c, "buffers", QueueArgs{VifArgs{vif}, queue})
}

// Control sends any message over the control ring.
func (c *Client) Control(ctx context.Context, args ControlArgs) (ControlResult, error) {
	return ask[ControlResult](ctx, c, "control", args)
}

// Raw runs operations on the rings of a queue without any check. It returns the responses
// to raw requests since the last call. Without Ops it only returns these.
func (c *Client) Raw(ctx context.Context, args RawArgs) (RawResult, error) {
	return ask[RawResult](ctx, c, "raw", args)
}

// Ping sends echo requests. Missing replies are no error.
func (c *Client) Ping(ctx context.Context, args PingArgs) (traffic.PingResult, error) {
	return ask[traffic.PingResult](ctx, c, "ping", args)
}

// TCPServe receives streams in the guest.
func (c *Client) TCPServe(ctx context.Context, args ServeArgs) (Server, error) {
	return ask[Server](ctx, c, "tcp-serve", args)
}

// TCPSend sends a stream from the guest to a [traffic.TCPServer].
func (c *Client) TCPSend(ctx context.Context, args TCPSendArgs) (traffic.TCPResult, error) {
	return ask[traffic.TCPResult](ctx, c, "tcp-send", args)
}

// TCPResults returns the results of the streams that a server has received.
func (c *Client) TCPResults(ctx context.Context, s Server) ([]traffic.TCPResult, error) {
	return ask[[]traffic.TCPResult](ctx, c, "tcp-results", s)
}

// UDPServe receives packets in the guest.
func (c *Client) UDPServe(ctx context.Context, args ServeArgs) (Server, error) {
	return ask[Server](ctx, c, "udp-serve", args)
}

// UDPSend sends packets from the guest to a [traffic.UDPServer].
func (c *Client) UDPSend(ctx context.Context, args UDPSendArgs) (traffic.UDPResult, error) {
	return ask[traffic.UDPResult](ctx, c, "udp-send", args)
}

// UDPResults returns the results of the streams of packets that a server has received.
func (c *Client) UDPResults(ctx context.Context, s Server) ([]traffic.UDPResult, error) {
	return ask[[]traffic.UDPResult](ctx, c, "udp-results", s)
}

// Join receives a multicast group in the guest. A backend with multicast control
// is asked to let it through.
func (c *Client) Join(ctx context.Context, args JoinArgs) (Server, error) {
	return ask[Server](ctx, c, "join", args)
}

// StopServer ends a server of the guest.
func (c *Client) StopServer(ctx context.Context, s Server) error {
	return c.Call(ctx, "stop", s, nil)
}

// Quit disconnects all vifs and ends the agent.
func (c *Client) Quit(ctx context.Context) error {
	return errors.Join(c.Call(ctx, "quit", none{}, nil), c.Close())
}

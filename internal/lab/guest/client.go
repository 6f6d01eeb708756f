// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"sync"
	"time"

	"github.com/netbackd/netbackd/internal/lab/netfront"
	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/internal/lab/traffic"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// ErrEnded is returned by the methods of a Client whose agent has ended.
var ErrEnded = errors.New("guest: the agent has ended")

// RemoteError is an error that the agent answered.
type RemoteError struct {
	Cmd     string
	Message string
}

func (e *RemoteError) Error() string { return fmt.Sprintf("guest: %s: %s", e.Cmd, e.Message) }

// Client sends commands to an agent. Its methods may be called from several goroutines at
// once. Commands run concurrently, except those for one vif, which run one after the
// other. The context bounds a command; the client sends its deadline to the agent.
type Client struct {
	w   io.WriteCloser
	cmd *exec.Cmd // nil if the agent was not started by us

	mu      sync.Mutex
	nextID  uint64                // guarded by mu
	waiting map[uint64]chan reply // guarded by mu

	hello Hello
	ended chan struct{}
	err   error // why; valid once ended is closed
}

// NewClient makes a client for an agent that reads w and writes r. It waits for the
// agent's Hello.
func NewClient(r io.Reader, w io.WriteCloser) (*Client, error) {
	c := newClient(w)
	return c, c.begin(r)
}

func newClient(w io.WriteCloser) *Client {
	return &Client{w: w, waiting: map[uint64]chan reply{}, ended: make(chan struct{})}
}

func (c *Client) begin(r io.Reader) error {
	first := make(chan reply, 1)
	c.waiting[0] = first
	go c.listen(r)
	select {
	case h := <-first:
		return json.Unmarshal(h.Result, &c.hello)
	case <-c.ended:
		return c.err
	}
}

// listen reads replies and passes them to their callers until the agent ends.
func (c *Client) listen(r io.Reader) {
	defer close(c.ended)
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 0, 64*1024), maxLine)
	for s.Scan() {
		var p reply
		if err := json.Unmarshal(s.Bytes(), &p); err != nil {
			c.err = fmt.Errorf("%w: it said %.100q: %w", ErrEnded, s.Bytes(), err)
			return
		}
		c.mu.Lock()
		w := c.waiting[p.ID]
		delete(c.waiting, p.ID)
		c.mu.Unlock()
		if w != nil {
			w <- p
		}
	}
	if c.err = ErrEnded; s.Err() != nil {
		c.err = fmt.Errorf("%w: %w", ErrEnded, s.Err())
	}
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
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := netns.Start(cmd); err != nil {
		return nil, fmt.Errorf("guest: start: %w", err)
	}
	c := newClient(in)
	c.cmd = cmd
	if err := c.begin(out); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// PID returns the agent's process, whose network namespace is the guest's.
func (c *Client) PID() int { return c.hello.PID }

// Do runs f in the guest's network namespace, as [netns.Do] does. It is for traffic
// that the agent has no command for.
func (c *Client) Do(f func() error) error { return netns.Do(c.PID(), f) }

// Done returns a channel that is closed when the agent has ended.
func (c *Client) Done() <-chan struct{} { return c.ended }

// Kill ends the agent as a crash of the guest would, and waits for its end.
func (c *Client) Kill() error {
	if c.cmd == nil {
		return c.Close()
	}
	err := c.cmd.Process.Kill()
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	return errors.Join(err, c.Close())
}

// Close ends the agent's input, which ends the agent without a message to the backend, and
// waits for its end. Close may be called again.
func (c *Client) Close() error {
	err := c.w.Close()
	if errors.Is(err, os.ErrClosed) {
		err = nil
	}
	select {
	case <-c.ended:
	case <-time.After(closeGrace):
		// The agent hangs: a vif may be in an operation that does not end.
		if c.cmd != nil {
			err = errors.Join(err, c.cmd.Process.Kill())
		}
		<-c.ended
	}
	if c.cmd != nil {
		// Callers of commands get the reason; Close does not report it.
		_ = c.cmd.Wait()
	}
	return err
}

// closeGrace is the time an agent has to end by itself before it is killed.
const closeGrace = 10 * time.Second

// Call sends a command and waits for its reply. result may be nil. If the agent replies
// with both a result and an error, Call stores the result and returns the error.
func (c *Client) Call(ctx context.Context, cmd string, args, result any) error {
	r := request{Cmd: cmd}
	if d, ok := ctx.Deadline(); ok {
		r.Timeout = max(time.Until(d), 1)
	}
	var err error
	if r.Args, err = json.Marshal(args); err != nil {
		return err
	}
	answer := make(chan reply, 1)
	c.mu.Lock()
	c.nextID++
	r.ID = c.nextID
	c.waiting[r.ID] = answer
	line, err := json.Marshal(r)
	if err == nil {
		_, err = c.w.Write(append(line, '\n'))
	}
	if err != nil {
		delete(c.waiting, r.ID)
	}
	c.mu.Unlock()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrEnded, err)
	}
	var p reply
	select {
	case p = <-answer:
	case <-c.ended:
		select {
		case p = <-answer: // its last reply
		default:
			return c.err
		}
	case <-ctx.Done():
		// The agent has the same deadline, and its error has more detail.
		select {
		case p = <-answer:
		case <-c.ended:
			return c.err
		case <-time.After(time.Second):
			c.mu.Lock()
			delete(c.waiting, r.ID)
			c.mu.Unlock()
			return fmt.Errorf("guest: %s: %w", cmd, ctx.Err())
		}
	}
	if result != nil && len(p.Result) > 0 {
		if err := json.Unmarshal(p.Result, result); err != nil {
			return fmt.Errorf("guest: %s: %w", cmd, err)
		}
	}
	if p.Error != "" {
		return &RemoteError{Cmd: cmd, Message: p.Error}
	}
	return nil
}

// ask is like Call, with a typed result.
func ask[R any](ctx context.Context, c *Client, cmd string, args any) (R, error) {
	var r R
	err := c.Call(ctx, cmd, args, &r)
	return r, err
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

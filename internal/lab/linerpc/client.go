// SPDX-License-Identifier: Apache-2.0

package linerpc

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"
)

// ErrEnded is returned by the methods of a Client whose agent has ended.
var ErrEnded = errors.New("linerpc: the agent has ended")

// RemoteError is an error that the agent answered.
type RemoteError struct {
	Cmd     string
	Message string
}

func (e *RemoteError) Error() string { return fmt.Sprintf("linerpc: %s: %s", e.Cmd, e.Message) }

// Client sends commands to an agent. Its methods may be called from several goroutines at
// once. Commands run concurrently. The context bounds a command; the client sends its deadline to the agent.
type Client struct {
	w   io.WriteCloser
	cmd *exec.Cmd // nil if the agent was not started by us

	mu      sync.Mutex
	nextID  uint64                // guarded by mu
	waiting map[uint64]chan reply // guarded by mu

	hello json.RawMessage
	ended chan struct{}
	err   error // why; valid once ended is closed
}

// NewClient makes a client for an agent that reads w and writes r. It waits for the
// agent's first line.
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
		c.hello = h.Result
		return nil
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

// Start starts an agent. launch starts the process; it has to die with this one.
func Start(cmd *exec.Cmd, launch func(*exec.Cmd) error) (*Client, error) {
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := launch(cmd); err != nil {
		return nil, fmt.Errorf("linerpc: start: %w", err)
	}
	c := newClient(in)
	c.cmd = cmd
	if err := c.begin(out); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Hello stores the result of the agent's first line.
func (c *Client) Hello(result any) error { return json.Unmarshal(c.hello, result) }

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
		// The agent hangs: a command may be in an operation that does not end.
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
			return fmt.Errorf("linerpc: %s: %w", cmd, ctx.Err())
		}
	}
	if result != nil && len(p.Result) > 0 {
		if err := json.Unmarshal(p.Result, result); err != nil {
			return fmt.Errorf("linerpc: %s: %w", cmd, err)
		}
	}
	if p.Error != "" {
		return &RemoteError{Cmd: cmd, Message: p.Error}
	}
	return nil
}

// Ask sends a command and returns its result. With an error there may be one as well.
func Ask[R any](ctx context.Context, c *Client, cmd string, args any) (R, error) {
	var r R
	err := c.Call(ctx, cmd, args, &r)
	return r, err
}

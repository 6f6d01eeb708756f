// SPDX-License-Identifier: Apache-2.0

package hostile

import (
	"context"
	"os/exec"

	"github.com/netbackd/netbackd/internal/lab/linerpc"
	"github.com/netbackd/netbackd/internal/lab/netns"
)

// Client sends commands to a process.
type Client struct {
	*linerpc.Client
	PID int
}

// Start starts a process that calls [Main], in the namespaces of the caller.
func Start(cmd *exec.Cmd) (*Client, error) {
	c, err := linerpc.Start(cmd, netns.StartHere)
	if err != nil {
		return nil, err
	}
	return &Client{c, cmd.Process.Pid}, nil
}

// Join has the process play the frontends of vifs, and waits until they are connected.
func (c *Client) Join(ctx context.Context, a JoinArgs) error { return c.Call(ctx, "join", a, nil) }

// Begin begins a load, which runs until [Client.End].
func (c *Client) Begin(ctx context.Context, a LoadArgs) error { return c.Call(ctx, "begin", a, nil) }

// End ends the load and returns its strength.
func (c *Client) End(ctx context.Context) (s Strength, err error) {
	err = c.Call(ctx, "end", nil, &s)
	return s, err
}

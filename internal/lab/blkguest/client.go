// SPDX-License-Identifier: Apache-2.0

package blkguest

import (
	"context"
	"io"
	"os"
	"os/exec"
	"slices"

	"github.com/netbackd/netbackd/internal/lab/diskcheck"
	"github.com/netbackd/netbackd/internal/lab/linerpc"
	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// Client sends commands to an agent; see [linerpc.Client]. Commands for one disk run one
// after the other, beside a load.
type Client struct{ *linerpc.Client }

// StartOptions are the settings of Start.
type StartOptions struct {
	Config Config
	Exe    string   // the program, whose first argument is "guest"
	Env    []string // added to the environment
	// Stderr receives the agent's standard error; nil means that of this process.
	Stderr io.Writer
}

// Start starts an agent as a process that dies with this one.
func Start(o StartOptions) (*Client, error) {
	if o.Stderr == nil {
		o.Stderr = os.Stderr
	}
	cmd := exec.Command(o.Exe, slices.Concat([]string{"guest"}, o.Config.Args())...)
	cmd.Env = append(os.Environ(), o.Env...)
	cmd.Stderr = o.Stderr
	c, err := linerpc.Start(cmd, netns.StartHere)
	if err != nil {
		return nil, err
	}
	return &Client{c}, nil
}

// Attach connects a disk, whose content must be zeros.
func (c *Client) Attach(ctx context.Context, d DiskConfig) (Info, error) {
	return linerpc.Ask[Info](ctx, c.Client, "attach", d)
}

// Detach disconnects a disk and forgets it.
func (c *Client) Detach(ctx context.Context, disk string) error {
	return c.Call(ctx, "detach", DiskArgs{disk}, nil)
}

// Disconnect closes a disk as unloading the driver does. Requests of a load under way may
// have happened or not.
func (c *Client) Disconnect(ctx context.Context, disk string) error {
	return c.Call(ctx, "disconnect", DiskArgs{disk}, nil)
}

// Reconnect closes a disk, if it is connected, and connects it again.
func (c *Client) Reconnect(ctx context.Context, a ConnectArgs) (Info, error) {
	return linerpc.Ask[Info](ctx, c.Client, "reconnect", a)
}

// Suspend connects a disk again from Initialising, without closing it.
func (c *Client) Suspend(ctx context.Context, a ConnectArgs) (Info, error) {
	return linerpc.Ask[Info](ctx, c.Client, "suspend", a)
}

// Replace connects a disk again without any state between, as Linux does when it resumes.
func (c *Client) Replace(ctx context.Context, a ConnectArgs) (Info, error) {
	return linerpc.Ask[Info](ctx, c.Client, "replace", a)
}

// Info describes a disk.
func (c *Client) Info(ctx context.Context, disk string) (Info, error) {
	return linerpc.Ask[Info](ctx, c.Client, "info", DiskArgs{disk})
}

// Stats returns the counters of a disk.
func (c *Client) Stats(ctx context.Context, disk string) (StatsResult, error) {
	return linerpc.Ask[StatsResult](ctx, c.Client, "stats", DiskArgs{disk})
}

// SetState writes any state of the frontend.
func (c *Client) SetState(ctx context.Context, disk string, s xenbus.State) error {
	return c.Call(ctx, "state", StateArgs{DiskArgs{disk}, s}, nil)
}

// Key reads, writes or removes a node.
func (c *Client) Key(ctx context.Context, a KeyArgs) (string, error) {
	return linerpc.Ask[string](ctx, c.Client, "key", a)
}

// AwaitSize waits until the disk has a number of sectors. There must be no load.
func (c *Client) AwaitSize(ctx context.Context, disk string, sectors uint64) error {
	return c.Call(ctx, "size", SizeArgs{DiskArgs{disk}, sectors}, nil)
}

// Run runs a load to its end, or until Stop or a command that ends the connection.
func (c *Client) Run(ctx context.Context, a LoadArgs) (diskcheck.Result, error) {
	return linerpc.Ask[diskcheck.Result](ctx, c.Client, "run", a)
}

// Scan reads and checks every sector.
func (c *Client) Scan(ctx context.Context, disk string) error {
	return c.Call(ctx, "scan", DiskArgs{disk}, nil)
}

// Stop ends a load once all its requests are answered.
func (c *Client) Stop(ctx context.Context, disk string) error {
	return c.Call(ctx, "stop", DiskArgs{disk}, nil)
}

// Request makes one request and returns its answer.
func (c *Client) Request(ctx context.Context, a RequestArgs) (RequestResult, error) {
	return linerpc.Ask[RequestResult](ctx, c.Client, "request", a)
}

// Cases plays all cases that fit the disk and after which the ring goes on.
func (c *Client) Cases(ctx context.Context, a DiskArgs) (CasesResult, error) {
	return linerpc.Ask[CasesResult](ctx, c.Client, "cases", a)
}

// Case plays a case of package blkcases.
func (c *Client) Case(ctx context.Context, a CaseArgs) (CaseResult, error) {
	return linerpc.Ask[CaseResult](ctx, c.Client, "case", a)
}

// Quit disconnects all disks and ends the agent.
func (c *Client) Quit(ctx context.Context) error {
	return c.Call(ctx, linerpc.Quit, nil, nil)
}

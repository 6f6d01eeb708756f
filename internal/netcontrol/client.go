// SPDX-License-Identifier: Apache-2.0

package netcontrol

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"github.com/netbackd/netbackd/internal/control"
	"github.com/netbackd/netbackd/internal/vif"
)

// Client sends requests to the daemon at a socket.
type Client struct{ *control.Client }

// NewClient makes a client. It connects with the first request.
func NewClient(path string) *Client { return &Client{control.NewClient(Program, path)} }

// Daemon returns the status of the daemon.
func (c *Client) Daemon(ctx context.Context) (Daemon, error) {
	var d Daemon
	if err := c.Do(ctx, http.MethodGet, "/v1/daemon", &d); err != nil {
		return Daemon{}, err
	}
	return d, Program.CheckSchema(d.Schema, Schema)
}

// Names returns the names of all vifs.
func (c *Client) Names(ctx context.Context) ([]string, error) {
	var n Names
	if err := c.Do(ctx, http.MethodGet, "/v1/names", &n); err != nil {
		return nil, err
	}
	return n.Names, Program.CheckSchema(n.Schema, Schema)
}

// Vif returns the status of one vif, by its name or by the present name of its interface.
// If after is not 0, the daemon answers when the status has another revision than after, or
// after some seconds.
func (c *Client) Vif(ctx context.Context, name string, after uint64) (vif.Status, error) {
	if name == "" { // the path would be that of another request
		return vif.Status{}, control.NotFound(`"": no such vif`)
	}
	path := vifPath(name)
	if after != 0 {
		path += "?after=" + strconv.FormatUint(after, 10)
	}
	var v Vif
	if err := c.Do(ctx, http.MethodGet, path, &v); err != nil {
		return vif.Status{}, err
	}
	return v.Vif, Program.CheckSchema(v.Schema, Schema)
}

// Vifs returns the status of all vifs.
func (c *Client) Vifs(ctx context.Context) ([]vif.Status, error) {
	var v Vifs
	if err := c.Do(ctx, http.MethodGet, "/v1/vifs", &v); err != nil {
		return nil, err
	}
	return v.Vifs, Program.CheckSchema(v.Schema, Schema)
}

// Lines returns the part of the status of all vifs that a list shows.
func (c *Client) Lines(ctx context.Context) ([]vif.Line, error) {
	var l Lines
	if err := c.Do(ctx, http.MethodGet, "/v1/vifs?brief", &l); err != nil {
		return nil, err
	}
	return l.Vifs, Program.CheckSchema(l.Schema, Schema)
}

// Reset ends the quarantine of a vif.
func (c *Client) Reset(ctx context.Context, name string) error {
	return c.Do(ctx, http.MethodPost, vifPath(name)+"/reset", nil)
}

// CanAdopt returns nil if Adopt would succeed for a vif that the kernel serves now, and
// otherwise an error with the reason.
func (c *Client) CanAdopt(ctx context.Context, name string) error {
	return c.Do(ctx, http.MethodGet, vifPath(name)+"/adopt", nil)
}

// Adopt makes the daemon serve a vif that was unbound from the kernel's driver. It returns
// when the vif has its TAP.
func (c *Client) Adopt(ctx context.Context, name string) error {
	return c.Do(ctx, http.MethodPost, vifPath(name)+"/adopt", nil)
}

// Release makes the daemon stop serving a vif, so that the kernel's driver can be bound to
// it. lost counts packets to the guest that were in netbackd or its TAP.
func (c *Client) Release(ctx context.Context, name string) (lost int, err error) {
	var r Released
	err = c.Do(ctx, http.MethodPost, vifPath(name)+"/release", &r)
	return r.Lost, err
}

func vifPath(name string) string { return "/v1/vifs/" + url.PathEscape(name) }

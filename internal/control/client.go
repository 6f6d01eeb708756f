// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/netbackd/netbackd/internal/vif"
)

// Client sends requests to the daemon at a socket.
type Client struct {
	path string
	http http.Client
}

// NewClient makes a client. It connects with the first request.
func NewClient(path string) *Client {
	c := &Client{path: path}
	c.http = http.Client{
		Timeout: 20 * time.Second, // longer than the daemon takes to adopt
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		}},
	}
	return c
}

// ErrNotRunning is returned when no process listens at the socket.
var ErrNotRunning = errors.New("netbackd is not running")

// ErrNotFound is returned for a vif that the daemon does not know.
var ErrNotFound = errors.New("no such vif")

// notFoundError is an ErrNotFound with the daemon's text.
type notFoundError string

func (e notFoundError) Error() string { return string(e) }
func (e notFoundError) Unwrap() error { return ErrNotFound }

// Daemon returns the status of the daemon.
func (c *Client) Daemon(ctx context.Context) (Daemon, error) {
	var d Daemon
	if err := c.do(ctx, http.MethodGet, "/v1/daemon", &d); err != nil {
		return Daemon{}, err
	}
	return d, checkSchema(d.Schema)
}

// Names returns the names of all vifs.
func (c *Client) Names(ctx context.Context) ([]string, error) {
	var n Names
	if err := c.do(ctx, http.MethodGet, "/v1/names", &n); err != nil {
		return nil, err
	}
	return n.Names, checkSchema(n.Schema)
}

// Vif returns the status of one vif, by its name or by the present name of its interface.
// If after is not 0, the daemon answers when the status has another revision than after, or
// after some seconds.
func (c *Client) Vif(ctx context.Context, name string, after uint64) (vif.Status, error) {
	if name == "" { // the path would be that of another request
		return vif.Status{}, notFoundError(`"": ` + ErrNotFound.Error())
	}
	path := vifPath(name)
	if after != 0 {
		path += "?after=" + strconv.FormatUint(after, 10)
	}
	var v Vif
	if err := c.do(ctx, http.MethodGet, path, &v); err != nil {
		return vif.Status{}, err
	}
	return v.Vif, checkSchema(v.Schema)
}

// Vifs returns the status of all vifs.
func (c *Client) Vifs(ctx context.Context) ([]vif.Status, error) {
	var v Vifs
	if err := c.do(ctx, http.MethodGet, "/v1/vifs", &v); err != nil {
		return nil, err
	}
	return v.Vifs, checkSchema(v.Schema)
}

// checkSchema returns an error for answers whose fields may have another meaning.
func checkSchema(theirs int) error {
	if theirs == Schema {
		return nil
	}
	return fmt.Errorf("the daemon speaks version %d of the control protocol, this command version %d; restart the daemon, or use the netbackd it was started from", theirs, Schema)
}

// Reset ends the quarantine of a vif.
func (c *Client) Reset(ctx context.Context, name string) error {
	return c.do(ctx, http.MethodPost, vifPath(name)+"/reset", nil)
}

// CanAdopt returns nil if Adopt would succeed for a vif that the kernel serves now, and
// otherwise an error with the reason.
func (c *Client) CanAdopt(ctx context.Context, name string) error {
	return c.do(ctx, http.MethodGet, vifPath(name)+"/adopt", nil)
}

// Adopt makes the daemon serve a vif that was unbound from the kernel's driver. It returns
// when the vif has its TAP.
func (c *Client) Adopt(ctx context.Context, name string) error {
	return c.do(ctx, http.MethodPost, vifPath(name)+"/adopt", nil)
}

// Release makes the daemon stop serving a vif, so that the kernel's driver can be bound to
// it. lost counts packets to the guest that were in netbackd or its TAP.
func (c *Client) Release(ctx context.Context, name string) (lost int, err error) {
	var r Released
	err = c.do(ctx, http.MethodPost, vifPath(name)+"/release", &r)
	return r.Lost, err
}

func vifPath(name string) string { return "/v1/vifs/" + url.PathEscape(name) }

// Close closes the idle connection.
func (c *Client) Close() { c.http.CloseIdleConnections() }

func (c *Client) do(ctx context.Context, method, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://netbackd"+path, nil)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.explain(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode/100 != 2 {
		var e Error
		if err := json.NewDecoder(resp.Body).Decode(&e); err != nil {
			// The path is unknown, so the daemon is another version.
			return fmt.Errorf("the daemon answers %s to %s %s: `netbackd check` compares its version with this command's", resp.Status, method, path)
		}
		if resp.StatusCode == http.StatusNotFound {
			return notFoundError(e.Message)
		}
		return errors.New(e.Message)
	}
	if into == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(into)
}

// explain adds a remedy to an error from connecting to the socket.
func (c *Client) explain(err error) error {
	switch {
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("no permission to open %s: run as root, or as a member of its group", c.path)
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: no process listens at %s; start it with `systemctl start netbackd`, or `netbackd run` by hand", ErrNotRunning, c.path)
	}
	return err
}

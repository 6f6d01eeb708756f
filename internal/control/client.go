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
	"syscall"
	"time"

	"github.com/netbackd/netbackd/internal/vif"
)

// Client asks the daemon at a socket.
type Client struct {
	path string
	http http.Client
}

// NewClient makes a client. It connects with the first question.
func NewClient(path string) *Client {
	c := &Client{path: path}
	c.http = http.Client{
		Timeout: 20 * time.Second, // longer than the daemon takes for a claim
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		}},
	}
	return c
}

// ErrNotRunning: nobody answers at the socket.
var ErrNotRunning = errors.New("netbackd is not running")

// ErrNotFound: the daemon knows nothing of that name.
var ErrNotFound = errors.New("not found")

// Daemon asks the daemon about itself.
func (c *Client) Daemon(ctx context.Context) (Daemon, error) {
	var d Daemon
	if err := c.do(ctx, http.MethodGet, "/v1/daemon", &d); err != nil {
		return Daemon{}, err
	}
	return d, checkSchema(d.Schema)
}

// Vifs asks for all vifs.
func (c *Client) Vifs(ctx context.Context) ([]vif.Status, error) {
	var v Vifs
	if err := c.do(ctx, http.MethodGet, "/v1/vifs", &v); err != nil {
		return nil, err
	}
	return v.Vifs, checkSchema(v.Schema)
}

// checkSchema refuses answers whose fields may mean something else.
func checkSchema(theirs int) error {
	if theirs == Schema {
		return nil
	}
	return fmt.Errorf("the daemon speaks version %d of the control protocol, this command version %d; restart the daemon, or use the netbackd it was started from", theirs, Schema)
}

// Reset lets a quarantined vif try again.
func (c *Client) Reset(ctx context.Context, name string) error {
	return c.do(ctx, http.MethodPost, vifPath(name, "reset"), nil)
}

// CanClaim asks whether a vif that another back end serves could be claimed: nil, or
// what stands against it.
func (c *Client) CanClaim(ctx context.Context, name string) error {
	return c.do(ctx, http.MethodGet, vifPath(name, "claim"), nil)
}

// Claim has the daemon serve a vif that nobody serves any more. It returns when the
// vif has its TAP.
func (c *Client) Claim(ctx context.Context, name string) error {
	return c.do(ctx, http.MethodPost, vifPath(name, "claim"), nil)
}

// Release has the daemon give a vif up for another back end. Lost is how many
// packets to the guest were on the way.
func (c *Client) Release(ctx context.Context, name string) (lost int, err error) {
	var r Released
	err = c.do(ctx, http.MethodPost, vifPath(name, "release"), &r)
	return r.Lost, err
}

func vifPath(name, what string) string { return "/v1/vifs/" + url.PathEscape(name) + "/" + what }

// Close drops the connection.
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
			e.Message = resp.Status
		}
		if resp.StatusCode == http.StatusNotFound {
			return fmt.Errorf("%s: %w", e.Message, ErrNotFound)
		}
		return errors.New(e.Message)
	}
	if into == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(into)
}

// explain says what to do about a socket that cannot be reached.
func (c *Client) explain(err error) error {
	switch {
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("no permission to open %s: run as root, or as a member of its group", c.path)
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: nobody answers at %s; start it with `systemctl start netbackd`, or `netbackd run` by hand", ErrNotRunning, c.path)
	}
	return err
}

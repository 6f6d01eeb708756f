// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"
)

// Program is the name of a daemon, and of the command that starts it and of its unit.
type Program string

// Client sends requests to the daemon at a socket.
type Client struct {
	program Program
	path    string
	http    http.Client
}

// NewClient makes a client. It connects with the first request.
func NewClient(program Program, path string) *Client {
	c := &Client{program: program, path: path}
	c.http = http.Client{
		Timeout: 20 * time.Second, // longer than a daemon takes to adopt a device
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		}},
	}
	return c
}

var (
	// ErrRunning is returned if another daemon holds the socket.
	ErrRunning = errors.New("another daemon is running")
	// ErrNotRunning is returned when no process listens at the socket.
	ErrNotRunning = errors.New("the daemon is not running")
	// ErrNotFound is returned for a device that the daemon does not know.
	ErrNotFound = errors.New("no such device")
)

// kindError is one of the errors above with the text for users.
type kindError struct {
	kind error
	text string
}

func (e kindError) Error() string { return e.text }
func (e kindError) Unwrap() error { return e.kind }

// NotFound returns an ErrNotFound with a text.
func NotFound(text string) error { return kindError{ErrNotFound, text} }

// CheckSchema returns an error for answers whose version of the JSON is not the command's:
// their fields may have another meaning.
func (p Program) CheckSchema(theirs, ours int) error {
	if theirs == ours {
		return nil
	}
	return fmt.Errorf("the daemon speaks version %d of the control protocol, this command version %d; restart the daemon, or use the %s it was started from", theirs, ours, p)
}

// Close closes the idle connection.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Do sends a request, and decodes the answer into the variable that into points to, unless
// into is nil.
func (c *Client) Do(ctx context.Context, method, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+string(c.program)+path, nil)
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
			return fmt.Errorf("the daemon answers %s to %s %s: `%s check` compares its version with this command's", resp.Status, method, path, c.program)
		}
		if resp.StatusCode == http.StatusNotFound {
			return NotFound(e.Message)
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
		return kindError{ErrNotRunning, fmt.Sprintf("%s is not running: no process listens at %s; start it with `systemctl start %[1]s`, or `%[1]s run` by hand", c.program, c.path)}
	}
	return err
}

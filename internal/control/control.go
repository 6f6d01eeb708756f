// SPDX-License-Identifier: Apache-2.0

// Package control is how the commands talk to the daemon: HTTP with JSON over a
// unix socket that only its owner and its group may open.
//
//	GET  /v1/daemon             -> Daemon
//	GET  /v1/vifs               -> Vifs
//	POST /v1/vifs/{name}/reset  -> 204
//
// Every answer that is not 2xx is an Error. The package knows the protocol; what
// the answers mean it must not know.
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
	"path/filepath"
	"time"

	"github.com/netbackd/netbackd/pkg/vif"
)

// Schema is the version of the JSON. It changes when a field changes its
// meaning or goes; new fields do not change it.
const Schema = 1

// Daemon is what the daemon says of itself.
type Daemon struct {
	Schema  int       `json:"schema"`
	Version string    `json:"version"`
	PID     int       `json:"pid"`
	Since   time.Time `json:"since"`
	Workers int       `json:"workers"`
	Uring   string    `json:"io_uring"` // "in use", or why not
	Offload bool      `json:"offload"`
}

// Vifs is the list of vifs.
type Vifs struct {
	Schema int          `json:"schema"`
	Vifs   []vif.Status `json:"vifs"`
}

// Error is the body of an answer that is not 2xx.
type Error struct {
	Message string `json:"error"`
}

// Source is what the server answers from.
type Source interface {
	List() []vif.Status
	Reset(name string) error
}

// Handler serves the protocol.
func Handler(d Daemon, src Source, notFound error) http.Handler {
	d.Schema = Schema
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/daemon", func(w http.ResponseWriter, _ *http.Request) { answer(w, d) })
	mux.HandleFunc("GET /v1/vifs", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, Vifs{Schema: Schema, Vifs: src.List()})
	})
	mux.HandleFunc("POST /v1/vifs/{name}/reset", func(w http.ResponseWriter, r *http.Request) {
		err := src.Reset(r.PathValue("name"))
		switch {
		case err == nil:
			w.WriteHeader(http.StatusNoContent)
		case errors.Is(err, notFound):
			refuse(w, http.StatusNotFound, err)
		default:
			refuse(w, http.StatusConflict, err)
		}
	})
	return mux
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

func refuse(w http.ResponseWriter, code int, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(Error{err.Error()})
}

// ErrRunning: another daemon answers at the socket.
var ErrRunning = errors.New("another netbackd is running")

// Listen makes the socket. One that a dead daemon left is replaced; one that is
// answered is not.
func Listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = c.Close()
		return nil, fmt.Errorf("%w (it answers at %s)", ErrRunning, path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o660); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Serve answers at l until ctx ends.
func Serve(ctx context.Context, l net.Listener, h http.Handler) error {
	s := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Client asks the daemon at a socket.
type Client struct {
	path string
	http http.Client
}

// NewClient makes a client. It connects with the first question.
func NewClient(path string) *Client {
	c := &Client{path: path}
	c.http = http.Client{
		Timeout: 10 * time.Second,
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
func (c *Client) Daemon(ctx context.Context) (d Daemon, err error) {
	return d, c.do(ctx, http.MethodGet, "/v1/daemon", &d)
}

// Vifs asks for all vifs.
func (c *Client) Vifs(ctx context.Context) ([]vif.Status, error) {
	var v Vifs
	err := c.do(ctx, http.MethodGet, "/v1/vifs", &v)
	return v.Vifs, err
}

// Reset lets a quarantined vif try again.
func (c *Client) Reset(ctx context.Context, name string) error {
	return c.do(ctx, http.MethodPost, "/v1/vifs/"+url.PathEscape(name)+"/reset", nil)
}

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
	case errors.Is(err, os.ErrNotExist), isRefused(err):
		return fmt.Errorf("%w: nobody answers at %s; start it with `systemctl start netbackd`, or `netbackd run` by hand", ErrNotRunning, c.path)
	}
	return err
}

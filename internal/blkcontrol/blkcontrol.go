// SPDX-License-Identifier: Apache-2.0

// Package blkcontrol is the protocol between blkbackd and the commands that administer it,
// over the transport of package control:
//
//	GET  /v1/daemon                -> Daemon
//	GET  /v1/names                 -> Names
//	GET  /v1/vbds                  -> Vbds
//	GET  /v1/vbds/{name}           -> Vbd
//	GET  /v1/vbds/{name}?after=N   -> Vbd, once its revision is not N, or after 4 s
//	POST /v1/vbds/{name}/reset     -> 204
//	POST /v1/vbds/{name}/resize    -> 204: the size of its disk was read again
//	GET  /v1/vbds/{name}/adopt     -> 204: it can be adopted
//	POST /v1/vbds/{name}/adopt     -> 204: it is adopted and shows InitWait
//
// A name is that of a vbd, such as vbd-3-51712, or its domain and its name in the guest,
// such as 3/xvda.
//
// The package knows the protocol. It must not know how the daemon makes the answers.
package blkcontrol

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/netbackd/netbackd/internal/control"
	"github.com/netbackd/netbackd/internal/vbd"
)

// Program is the name of the daemon.
const Program control.Program = "blkbackd"

// Schema is the version of the JSON. It changes when a field is removed or changes its
// meaning. It does not change with new fields.
const Schema = 1

// Daemon is the status of the daemon.
type Daemon struct {
	Schema  int       `json:"schema"`
	Version string    `json:"version"`
	PID     int       `json:"pid"`
	Since   time.Time `json:"since"`
	Uring   string    `json:"io_uring"` // "in use", or the reason for not using it

	MaxQueues   int    `json:"queues_max"`   // of each vbd
	MaxSegments int    `json:"segments_max"` // of an indirect request
	Persistent  bool   `json:"persistent"`   // persistent grants are offered
	Cache       string `json:"cache"`
	MaxVbds     int    `json:"vbds_per_guest_max"`
	GuestMemory int64  `json:"guest_memory_max"` // bytes of a guest's data in flight

	Queues    int `json:"queues"`     // present number of queues, each with a thread
	AllQueues int `json:"queues_all"` // bound of that number
	Maps      int `json:"maps"`       // pages of guests that stay mapped, by persistent grants
	MaxMaps   int `json:"maps_max"`   // bound of that number; further pages are copied

	Threads    int `json:"threads"`     // present number of threads of the process
	MaxThreads int `json:"threads_max"` // bound of that number

	LogLost uint64 `json:"log_lines_lost"` // lines lost because the reader of the log did not keep up

	Isolation string        `json:"isolate,omitempty"` // which vbds share a disk process; empty: there are none
	Processes []DiskProcess `json:"disk_processes,omitempty"`
}

// DiskProcess describes a process that serves vbds.
type DiskProcess struct {
	For       string `json:"for"`
	PID       int    `json:"pid"` // 0: it does not run
	Vbds      int    `json:"vbds"`
	Uring     string `json:"io_uring"`
	Restarts  int    `json:"restarts"`
	LastDeath string `json:"last_death,omitempty"`
}

// Vbds is the list of vbds.
type Vbds struct {
	Schema int          `json:"schema"`
	Vbds   []vbd.Status `json:"vbds"`
}

// Vbd is one vbd.
type Vbd struct {
	Schema int        `json:"schema"`
	Vbd    vbd.Status `json:"vbd"`
}

// Names are the names of all vbds.
type Names struct {
	Schema int      `json:"schema"`
	Names  []string `json:"names"`
}

// Source answers the requests. *blkbackend.Backend is one.
type Source interface {
	Names() []string
	List() []vbd.Status
	Status(ctx context.Context, name string, after uint64) (vbd.Status, error)
	Reset(name string) error
	Resize(name string) error
	CanAdopt(name string) error
	Adopt(name string) error
}

// Handler serves the protocol. daemon returns the daemon's own status. An error of src
// that is notFound is answered with status 404.
func Handler(daemon func() Daemon, src Source, notFound error) http.Handler {
	r := control.NewRoutes(notFound)
	r.Get("/v1/daemon", func() any {
		d := daemon()
		d.Schema = Schema
		return d
	})
	r.Get("/v1/names", func() any { return Names{Schema: Schema, Names: src.Names()} })
	r.List("/v1/vbds", func(*http.Request) any { return Vbds{Schema: Schema, Vbds: src.List()} })
	r.Call("GET /v1/vbds/{name}", func(q *http.Request) (any, error) {
		after, err := control.Revision(q)
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(q.Context(), control.MaxWait)
		defer cancel()
		s, err := src.Status(ctx, q.PathValue("name"), after)
		return Vbd{Schema: Schema, Vbd: s}, err
	})
	about := func(pattern string, f func(name string) error) {
		r.Call(pattern, func(q *http.Request) (any, error) { return nil, f(q.PathValue("name")) })
	}
	about("POST /v1/vbds/{name}/reset", src.Reset)
	about("POST /v1/vbds/{name}/resize", src.Resize)
	about("GET /v1/vbds/{name}/adopt", src.CanAdopt)
	about("POST /v1/vbds/{name}/adopt", src.Adopt)
	return r
}

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

// Names returns the names of all vbds.
func (c *Client) Names(ctx context.Context) ([]string, error) {
	var n Names
	if err := c.Do(ctx, http.MethodGet, "/v1/names", &n); err != nil {
		return nil, err
	}
	return n.Names, Program.CheckSchema(n.Schema, Schema)
}

// Vbd returns the status of one vbd. If after is not 0, the daemon answers when the status
// has another revision than after, or after some seconds.
func (c *Client) Vbd(ctx context.Context, name string, after uint64) (vbd.Status, error) {
	if name == "" { // the path would be that of another request
		return vbd.Status{}, control.NotFound(`"": no such vbd`)
	}
	path := vbdPath(name)
	if after != 0 {
		path += "?after=" + strconv.FormatUint(after, 10)
	}
	var v Vbd
	if err := c.Do(ctx, http.MethodGet, path, &v); err != nil {
		return vbd.Status{}, err
	}
	return v.Vbd, Program.CheckSchema(v.Schema, Schema)
}

// Vbds returns the status of all vbds.
func (c *Client) Vbds(ctx context.Context) ([]vbd.Status, error) {
	var v Vbds
	if err := c.Do(ctx, http.MethodGet, "/v1/vbds", &v); err != nil {
		return nil, err
	}
	return v.Vbds, Program.CheckSchema(v.Schema, Schema)
}

// Reset ends the quarantine of a vbd, and makes it try again to open its disk.
func (c *Client) Reset(ctx context.Context, name string) error {
	return c.Do(ctx, http.MethodPost, vbdPath(name)+"/reset", nil)
}

// Resize makes a vbd read the size of its disk again, and tell its guest.
func (c *Client) Resize(ctx context.Context, name string) error {
	return c.Do(ctx, http.MethodPost, vbdPath(name)+"/resize", nil)
}

// CanAdopt returns nil if Adopt would succeed for a vbd that the kernel serves now, and
// otherwise an error with the reason.
func (c *Client) CanAdopt(ctx context.Context, name string) error {
	return c.Do(ctx, http.MethodGet, vbdPath(name)+"/adopt", nil)
}

// Adopt makes the daemon serve a vbd that was unbound from the kernel's driver. It returns
// when the vbd shows InitWait.
func (c *Client) Adopt(ctx context.Context, name string) error {
	return c.Do(ctx, http.MethodPost, vbdPath(name)+"/adopt", nil)
}

func vbdPath(name string) string { return "/v1/vbds/" + url.PathEscape(name) }

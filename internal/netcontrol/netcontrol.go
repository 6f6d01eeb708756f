// SPDX-License-Identifier: Apache-2.0

// Package netcontrol is the protocol between netbackd and the commands that administer it,
// over the transport of package control:
//
//	GET  /v1/daemon                -> Daemon
//	GET  /v1/names                 -> Names
//	GET  /v1/vifs                  -> Vifs
//	GET  /v1/vifs?brief            -> Lines; an older daemon answers with Vifs, which has all of it
//	GET  /v1/vifs/{name}           -> Vif
//	GET  /v1/vifs/{name}?after=N   -> Vif, once its revision is not N, or after 4 s
//	POST /v1/vifs/{name}/reset     -> 204
//	GET  /v1/vifs/{name}/adopt     -> 204: it can be adopted
//	POST /v1/vifs/{name}/adopt     -> 204: it is adopted and has its TAP
//	POST /v1/vifs/{name}/release   -> Released
//
// The package knows the protocol. It must not know how the daemon makes the answers.
package netcontrol

import (
	"context"
	"net/http"
	"time"

	"github.com/netbackd/netbackd/internal/control"
	"github.com/netbackd/netbackd/internal/vif"
)

// Program is the name of the daemon.
const Program control.Program = "netbackd"

// Schema is the version of the JSON. It changes when a field is removed or changes its
// meaning. It does not change with new fields.
const Schema = 1

// Daemon is the status of the daemon.
type Daemon struct {
	Schema  int       `json:"schema"`
	Version string    `json:"version"`
	PID     int       `json:"pid"`
	Since   time.Time `json:"since"`
	Workers int       `json:"workers"`
	Uring   string    `json:"io_uring"` // "in use", or the reason for not using it
	Offload bool      `json:"offload"`

	Coalesce string `json:"coalesce,omitempty"` // packets of guests that are merged: TCP and UDP, TCP, or off

	OwnPages *OwnPages `json:"own_pages,omitempty"`              // of the daemon for vifs
	Priority string    `json:"worker_priority"`                  // of workers' threads, or the reason for not changing it
	Classes  []string  `json:"worker_classes,omitempty"`         // the present scheduling class of each worker's thread
	Denied   string    `json:"worker_priority_denied,omitempty"` // the error of a process without the right

	Threads    int `json:"threads"`     // present number of threads of the process
	MaxThreads int `json:"threads_max"` // bound of that number

	Isolation  string          `json:"isolation,omitempty"`  // which vifs share a packet process
	Unconfined string          `json:"unconfined,omitempty"` // why the default of Isolation is "none" on this host
	Processes  []PacketProcess `json:"packet_processes,omitempty"`

	Memory *Memory `json:"memory,omitempty"` // of the daemon for vifs

	LogLost uint64 `json:"log_lines_lost"` // lines lost because the reader of the log did not keep up
}

// PacketProcess is a process that moves packets.
type PacketProcess struct {
	For       string `json:"for"` // its vifs: all, a guest, or a group
	PID       int    `json:"pid"` // 0: it does not run
	Vifs      int    `json:"vifs"`
	Workers   int    `json:"workers"`
	Threads   int    `json:"threads"`
	MemoryKB  int    `json:"memory_kb"` // resident
	Restarts  int    `json:"restarts"`  // processes before this one that have died
	LastDeath string `json:"last_death,omitempty"`
}

// Memory tells what the daemon may take of the host's memory, in bytes, and what it takes.
// Pages of guests that are mapped are the guests'.
type Memory struct {
	Resident int64 `json:"resident"`
	Max      int64 `json:"max"` // the sum of the bounds below, with the present number of vifs

	Heap        int64 `json:"heap_max"`         // soft limit of Go's heap
	Waiting     int64 `json:"waiting_max"`      // packets that wait for rx slots
	WaitShared  int64 `json:"waiting_shared"`   // of it, what vifs share beyond their own parts
	WaitUsed    int64 `json:"waiting_used"`     // of the shared part
	Buffers     int64 `json:"buffers"`          // of the present workers and slow lanes
	BuffersMax  int64 `json:"buffers_max"`      // with as many slow lanes as may be
	VifMax      int64 `json:"vif_max"`          // what one vif with all its queues may take of all that
	StaticPages int   `json:"static_pages_max"` // of a guest that stay mapped, for each queue
}

// OwnPages is the state of the pages that this domain has granted to itself, so that copies
// between them and the pages of guests need only grefs. Packets elsewhere are copied by
// address.
type OwnPages struct {
	Granted int    `json:"granted"`
	Wanted  int    `json:"wanted"`           // for the workers that have had a vif
	Reason  string `json:"reason,omitempty"` // why there are none
}

// Vifs is the list of vifs.
type Vifs struct {
	Schema int          `json:"schema"`
	Vifs   []vif.Status `json:"vifs"`
}

// Lines is the list of vifs with the part that `netbackd list` shows.
type Lines struct {
	Schema int        `json:"schema"`
	Vifs   []vif.Line `json:"vifs"`
}

// Vif is one vif.
type Vif struct {
	Schema int        `json:"schema"`
	Vif    vif.Status `json:"vif"`
}

// Names are the names of all vifs.
type Names struct {
	Schema int      `json:"schema"`
	Names  []string `json:"names"`
}

// Released is the result of a release.
type Released struct {
	Lost int `json:"lost_packets"` // packets to the guest that were in netbackd and its TAP
}

// Source answers the requests. *backend.Backend is one.
type Source interface {
	Names() []string
	List() []vif.Status
	Lines() []vif.Line
	Status(ctx context.Context, name string, after uint64) (vif.Status, error)
	Reset(name string) error
	CanAdopt(name string) error
	Adopt(name string) error
	Release(name string) (lost int, err error)
}

// Handler serves the protocol. daemon returns the daemon's own status. An error of src
// that is notFound is answered with status 404.
func Handler(daemon func() Daemon, src Source, notFound error) http.Handler {
	r := control.NewRoutes(notFound)
	r.Get("/v1/daemon", func() any { return withSchema(daemon()) })
	r.Get("/v1/names", func() any { return Names{Schema: Schema, Names: src.Names()} })
	r.List("/v1/vifs", func(q *http.Request) any {
		if q.URL.Query().Has("brief") {
			return Lines{Schema: Schema, Vifs: src.Lines()}
		}
		return Vifs{Schema: Schema, Vifs: src.List()}
	})
	r.Call("GET /v1/vifs/{name}", func(q *http.Request) (any, error) {
		after, err := control.Revision(q)
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(q.Context(), control.MaxWait)
		defer cancel()
		s, err := src.Status(ctx, q.PathValue("name"), after)
		return Vif{Schema: Schema, Vif: s}, err
	})
	about := func(pattern string, f func(name string) error) {
		r.Call(pattern, func(q *http.Request) (any, error) { return nil, f(q.PathValue("name")) })
	}
	about("POST /v1/vifs/{name}/reset", src.Reset)
	about("GET /v1/vifs/{name}/adopt", src.CanAdopt)
	about("POST /v1/vifs/{name}/adopt", src.Adopt)
	r.Call("POST /v1/vifs/{name}/release", func(q *http.Request) (any, error) {
		lost, err := src.Release(q.PathValue("name"))
		return Released{Lost: lost}, err
	})
	return r
}

func withSchema(d Daemon) Daemon {
	d.Schema = Schema
	return d
}

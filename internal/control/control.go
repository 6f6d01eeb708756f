// SPDX-License-Identifier: Apache-2.0

// Package control is the protocol between the commands and the daemon: HTTP with JSON over
// a unix socket that only its owner and its group may open.
//
//	GET  /v1/daemon                -> Daemon
//	GET  /v1/names                 -> Names
//	GET  /v1/vifs                  -> Vifs
//	GET  /v1/vifs/{name}           -> Vif
//	GET  /v1/vifs/{name}?after=N   -> Vif, once its revision is not N, or after 4 s
//	POST /v1/vifs/{name}/reset     -> 204
//	GET  /v1/vifs/{name}/adopt     -> 204: it can be adopted
//	POST /v1/vifs/{name}/adopt     -> 204: it is adopted and has its TAP
//	POST /v1/vifs/{name}/release   -> Released
//
// The body of an answer that is not 2xx is an Error. The package knows the protocol. It
// must not know how the daemon makes the answers.
package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/netbackd/netbackd/internal/vif"
)

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

	Threads    int `json:"threads"`     // present number of threads of the process
	MaxThreads int `json:"threads_max"` // bound of that number

	LogLost uint64 `json:"log_lines_lost"` // lines lost because the reader of the log did not keep up
}

// Vifs is the list of vifs.
type Vifs struct {
	Schema int          `json:"schema"`
	Vifs   []vif.Status `json:"vifs"`
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

// Error is the body of an answer that is not 2xx.
type Error struct {
	Message string `json:"error"`
}

// Source answers the requests. *backend.Backend is one.
type Source interface {
	Names() []string
	List() []vif.Status
	Status(ctx context.Context, name string, after uint64) (vif.Status, error)
	Reset(name string) error
	CanAdopt(name string) error
	Adopt(name string) error
	Release(name string) (lost int, err error)
}

// maxLists bounds the lists that are being made, or held for slow clients. A list of a
// thousand vifs takes some megabytes.
const maxLists = 4

// maxWait bounds the time that a request for a vif waits for another revision. It is less
// than served.read, after which the server cancels the request's context. Tests change it.
var maxWait = 4 * time.Second

// answerTime bounds the time that a client takes to read an answer.
const answerTime = 2 * time.Second

// Handler serves the protocol. daemon returns the daemon's own status. An error of src
// that is notFound is answered with status 404.
func Handler(daemon func() Daemon, src Source, notFound error) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/daemon", func(w http.ResponseWriter, _ *http.Request) {
		d := daemon()
		d.Schema = Schema
		answer(w, d)
	})
	mux.HandleFunc("GET /v1/names", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, Names{Schema: Schema, Names: src.Names()})
	})
	lists := make(chan struct{}, maxLists)
	mux.HandleFunc("GET /v1/vifs", func(w http.ResponseWriter, r *http.Request) {
		select {
		case lists <- struct{}{}:
			defer func() { <-lists }()
			answer(w, Vifs{Schema: Schema, Vifs: src.List()})
		case <-r.Context().Done():
		}
	})
	// about answers a request about one vif, with the result as the body if there is one.
	about := func(pattern string, f func(name string, r *http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			v, err := f(r.PathValue("name"), r)
			switch {
			case errors.Is(err, notFound):
				refuse(w, http.StatusNotFound, err)
			case err != nil:
				refuse(w, http.StatusConflict, err)
			case v == nil:
				w.WriteHeader(http.StatusNoContent)
			default:
				answer(w, v)
			}
		})
	}
	about("GET /v1/vifs/{name}", func(name string, r *http.Request) (any, error) {
		after, err := revision(r)
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(r.Context(), maxWait)
		defer cancel()
		s, err := src.Status(ctx, name, after)
		return Vif{Schema: Schema, Vif: s}, err
	})
	about("POST /v1/vifs/{name}/reset", func(name string, _ *http.Request) (any, error) { return nil, src.Reset(name) })
	about("GET /v1/vifs/{name}/adopt", func(name string, _ *http.Request) (any, error) { return nil, src.CanAdopt(name) })
	about("POST /v1/vifs/{name}/adopt", func(name string, _ *http.Request) (any, error) { return nil, src.Adopt(name) })
	about("POST /v1/vifs/{name}/release", func(name string, _ *http.Request) (any, error) {
		lost, err := src.Release(name)
		return Released{Lost: lost}, err
	})
	return mux
}

// revision returns the revision that a request has and whose successor it waits for, or 0.
func revision(r *http.Request) (uint64, error) {
	text := r.URL.Query().Get("after")
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("after is %q, want a revision", text)
	}
	return n, nil
}

// answer sends v. The client has answerTime to read it, which starts now.
func answer(w http.ResponseWriter, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		refuse(w, http.StatusInternalServerError, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(answerTime))
	_, _ = w.Write(append(b, '\n'))
}

func refuse(w http.ResponseWriter, code int, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(Error{err.Error()})
}

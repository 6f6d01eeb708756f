// SPDX-License-Identifier: Apache-2.0

// Package control is how the commands talk to the daemon: HTTP with JSON over a
// unix socket that only its owner and its group may open.
//
//	GET  /v1/daemon               -> Daemon
//	GET  /v1/vifs                 -> Vifs
//	POST /v1/vifs/{name}/reset    -> 204
//	GET  /v1/vifs/{name}/claim    -> 204: it could be claimed
//	POST /v1/vifs/{name}/claim    -> 204: it is claimed and has its TAP
//	POST /v1/vifs/{name}/release  -> Released
//
// An answer to these that is not 2xx is an Error. The package knows the protocol; what
// the answers mean it must not know.
package control

import (
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/netbackd/netbackd/internal/vif"
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

	Threads    int `json:"threads"`     // of the process now
	MaxThreads int `json:"threads_max"` // that it has at most

	LogLost uint64 `json:"log_lines_lost"` // that the reader of the log did not take
}

// Vifs is the list of vifs.
type Vifs struct {
	Schema int          `json:"schema"`
	Vifs   []vif.Status `json:"vifs"`
}

// Released is what releasing a vif cost.
type Released struct {
	Lost int `json:"lost_packets"` // to the guest, on the way in netbackd and its TAP
}

// Error is the body of an answer that is not 2xx.
type Error struct {
	Message string `json:"error"`
}

// Source is what the server answers from.
type Source interface {
	List() []vif.Status
	Reset(name string) error
	CanClaim(name string) error
	Claim(name string) error
	Release(name string) (lost int, err error)
}

// maxLists bounds how many lists are made, and held for clients that read slowly, at a
// time. One of a thousand vifs takes some megabytes.
const maxLists = 4

// answerTime bounds the time that a client takes to read an answer.
const answerTime = 2 * time.Second

// Handler serves the protocol. daemon says how the daemon is now.
func Handler(daemon func() Daemon, src Source, notFound error) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/daemon", func(w http.ResponseWriter, _ *http.Request) {
		d := daemon()
		d.Schema = Schema
		answer(w, d)
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
	// about answers what is about one vif: with a body of the result, if any.
	about := func(pattern string, f func(name string) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			v, err := f(r.PathValue("name"))
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
	about("POST /v1/vifs/{name}/reset", func(name string) (any, error) { return nil, src.Reset(name) })
	about("GET /v1/vifs/{name}/claim", func(name string) (any, error) { return nil, src.CanClaim(name) })
	about("POST /v1/vifs/{name}/claim", func(name string) (any, error) { return nil, src.Claim(name) })
	about("POST /v1/vifs/{name}/release", func(name string) (any, error) {
		lost, err := src.Release(name)
		return Released{Lost: lost}, err
	})
	return mux
}

// answer sends v. The client has answerTime to read it, however long others have made
// it wait before.
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

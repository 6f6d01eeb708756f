// SPDX-License-Identifier: Apache-2.0

// Package control is how the commands talk to the daemon: HTTP with JSON over a
// unix socket that only its owner and its group may open.
//
//	GET  /v1/daemon             -> Daemon
//	GET  /v1/vifs               -> Vifs
//	POST /v1/vifs/{name}/reset  -> 204
//
// An answer to these that is not 2xx is an Error. The package knows the protocol; what
// the answers mean it must not know.
package control

import (
	"encoding/json"
	"errors"
	"net/http"
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

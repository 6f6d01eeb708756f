// SPDX-License-Identifier: Apache-2.0

// Package control is the transport between a daemon and the commands that administer it:
// HTTP with JSON over a unix socket that only its owner and its group may open. The body of
// an answer that is not 2xx is an [Error].
//
// The package knows sockets, bounds of clients, and errors with their remedies. What is asked
// and answered is known to each daemon's own package: netcontrol and blkcontrol.
package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// Error is the body of an answer that is not 2xx.
type Error struct {
	Message string `json:"error"`
}

// MaxLists bounds the lists that are being made, or held for slow clients. A list of a
// thousand devices takes some megabytes.
const MaxLists = 4

// answerTime bounds the time that a client takes to read an answer.
const answerTime = 2 * time.Second

// Routes is the handler of a daemon's protocol.
type Routes struct {
	mux      *http.ServeMux
	notFound error
	lists    chan struct{}
}

// NewRoutes makes a handler without routes. Errors that are notFound are answered with
// status 404, and all others with 409.
func NewRoutes(notFound error) *Routes {
	return &Routes{mux: http.NewServeMux(), notFound: notFound, lists: make(chan struct{}, MaxLists)}
}

// ServeHTTP serves a request.
func (r *Routes) ServeHTTP(w http.ResponseWriter, q *http.Request) { r.mux.ServeHTTP(w, q) }

// Get answers GET requests for a path with the result of f.
func (r *Routes) Get(path string, f func() any) {
	r.mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) { answer(w, f()) })
}

// List is Get for answers that may be large: at most MaxLists are made at a time.
func (r *Routes) List(path string, f func(q *http.Request) any) {
	r.mux.HandleFunc("GET "+path, func(w http.ResponseWriter, q *http.Request) {
		select {
		case r.lists <- struct{}{}:
			defer func() { <-r.lists }()
			answer(w, f(q))
		case <-q.Context().Done():
		}
	})
}

// Call answers requests that match a pattern with the result of f, or with status 204 if
// the result is nil.
func (r *Routes) Call(pattern string, f func(q *http.Request) (any, error)) {
	r.mux.HandleFunc(pattern, func(w http.ResponseWriter, q *http.Request) {
		v, err := f(q)
		switch {
		case r.notFound != nil && errors.Is(err, r.notFound):
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

// Revision returns the revision that a request has and whose successor it waits for, or 0.
func Revision(q *http.Request) (uint64, error) {
	text := q.URL.Query().Get("after")
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("after is %q, want a revision", text)
	}
	return n, nil
}

// MaxWait bounds the time that a request waits for another revision. It is less than
// served.read, after which the server cancels the request's context. Tests change it.
var MaxWait = 4 * time.Second

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

// SPDX-License-Identifier: Apache-2.0

// Package linerpc is the protocol between a test and a process that obeys it: commands, one
// JSON object per line, on its standard input, and a reply to each on its standard output, in
// any order.
//
//	{"id":1,"cmd":"ping","timeout_ns":5000000000,"args":{"count":3}}
//	{"id":1,"result":{"sent":3}}
//	{"id":2,"cmd":"nonsense"}
//	{"id":2,"error":"no such command: nonsense"}
//
// The first line of the process has the id 0 and a result that describes it. A reply has both
// a result and an error if the command succeeded in part. The process ends with its input, or
// after the command quit.
//
// [Serve] is the side of the process, [Client] that of the test. The package knows no
// command but quit.
package linerpc

import (
	"encoding/json"
	"time"
)

// request is a line to the agent.
type request struct {
	ID      uint64          `json:"id"`
	Cmd     string          `json:"cmd"`
	Timeout time.Duration   `json:"timeout_ns,omitempty"` // 0: DefaultTimeout
	Args    json.RawMessage `json:"args,omitempty"`
}

// reply is a line from the agent.
type reply struct {
	ID     uint64          `json:"id"`
	Result json.RawMessage `json:"result,omitempty"`
	Error  string          `json:"error,omitempty"`
}

// DefaultTimeout bounds a command that names no bound of its own.
const DefaultTimeout = time.Minute

// maxLine bounds a line in either direction.
const maxLine = 4 << 20

// maxCommands bounds the commands under way.
const maxCommands = 64

// Quit is the command that ends the process after its reply.
const Quit = "quit"

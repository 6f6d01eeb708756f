// SPDX-License-Identifier: Apache-2.0

package tracekill

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"
)

// Order says whom to kill, and when.
type Order struct {
	// PIDs are the victims. The first that reaches the call is killed.
	PIDs []int `json:"pids"`
	// Starting means that the victim has stopped itself and will execute its program. Calls are
	// counted from then on.
	Starting bool `json:"starting,omitempty"`
	// Call is the number of the call, counted from 1 over all threads. Calls that Go's runtime
	// makes for itself do not count.
	Call int `json:"call"`
	// Kind counts the calls of this kind only.
	Kind *Call `json:"kind,omitempty"`
	// Exit kills at the end of the call. If the call does not end while the other threads make
	// blockedAfter more, the victim is killed within it.
	Exit bool `json:"exit,omitempty"`
	// Steps is the number of instructions that the thread carries out after the end of the call.
	Steps int `json:"steps,omitempty"`
}

// Point is a place where a victim was killed.
type Point struct {
	Call Call   `json:"call"`
	When string `json:"when"` // "entry", "exit", "inside", or "after", some instructions
}

// Seen is the number of calls of a kind that were counted.
type Seen struct {
	Call  Call `json:"call"`
	Count int  `json:"count"`
}

// Result says what became of an order.
type Result struct {
	// Died tells that the victim was killed, at Point, at the time At of the real clock.
	Died  bool   `json:"died"`
	PID   int    `json:"pid,omitempty"`
	Point Point  `json:"point"`
	At    int64  `json:"at_ns,omitempty"`
	Calls int    `json:"calls"` // that were counted
	Seen  []Seen `json:"seen"`  // the same by kind
	Error string `json:"error,omitempty"`
}

// envOrder has the order in the tracer's environment.
const envOrder = "NETBACKD_TRACEKILL"

// Enter turns a process that was started as a tracer into one. It returns in all others.
func Enter() {
	text := os.Getenv(envOrder)
	if text == "" {
		return
	}
	var o Order
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		report(Result{Error: err.Error()})
	}
	trace(o)
}

// report prints the result and ends the tracer, which lets go of all threads.
func report(r Result) {
	b, err := json.Marshal(r)
	if err != nil {
		os.Exit(1)
	}
	_, _ = os.Stdout.Write(append(b, '\n'))
	os.Exit(0)
}

// Killer is a running tracer.
type Killer struct {
	cmd   *exec.Cmd
	stdin io.Closer
	lines *bufio.Reader
}

// Start starts a tracer. It returns when the victims are traced.
func Start(o Order) (*Killer, error) {
	text, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	k := &Killer{cmd: exec.Command("/proc/self/exe")}
	k.cmd.Env = append(os.Environ(), envOrder+"="+string(text))
	k.cmd.Stderr = os.Stderr
	if k.stdin, err = k.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := k.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	k.lines = bufio.NewReader(out)
	if err := k.cmd.Start(); err != nil {
		return nil, err
	}
	line, err := k.lines.ReadString('\n')
	if err == nil && line == readyLine {
		return k, nil
	}
	var r Result
	if json.Unmarshal([]byte(line), &r) == nil && r.Error != "" {
		err = errors.New(r.Error)
	}
	_ = k.cmd.Process.Kill()
	_ = k.cmd.Wait()
	return nil, fmt.Errorf("tracekill: %w", err)
}

// readyLine is the tracer's first line.
const readyLine = "traced\n"

// Abandon lets the victim go on, unless it was killed before. Wait returns then.
func (k *Killer) Abandon() { _ = k.stdin.Close() }

// Stop is Abandon and Wait.
func (k *Killer) Stop() (Result, error) { return k.Wait(0) }

// Wait waits until the victim has been killed, or has ended, or until the time is over. Then the
// victim goes on, untraced.
func (k *Killer) Wait(d time.Duration) (r Result, err error) {
	t := time.AfterFunc(d, func() { _ = k.stdin.Close() })
	defer t.Stop()
	line, err := k.lines.ReadString('\n')
	if err == nil {
		err = json.Unmarshal([]byte(line), &r)
	}
	_ = k.stdin.Close()
	if werr := k.cmd.Wait(); err == nil {
		err = werr
	}
	if err == nil && r.Error != "" {
		err = errors.New(r.Error)
	}
	if err != nil {
		return r, fmt.Errorf("tracekill: %w", err)
	}
	return r, nil
}

// SPDX-License-Identifier: Apache-2.0

package linerpc

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"sync"
)

// Command carries out a command of an A.
type Command[A any] func(a A, ctx context.Context, args json.RawMessage) (result any, err error)

// Make makes a command from a function with typed arguments.
func Make[A, Args, R any](f func(A, context.Context, Args) (R, error)) Command[A] {
	return func(a A, ctx context.Context, raw json.RawMessage) (any, error) {
		var args Args
		if len(raw) > 0 {
			if err := json.Unmarshal(raw, &args); err != nil {
				return nil, fmt.Errorf("arguments: %w", err)
			}
		}
		r, err := f(a, ctx, args)
		if err != nil && reflect.ValueOf(r).IsZero() {
			return nil, err
		}
		return r, err
	}
}

// None is the type of missing arguments and missing results.
type None struct{}

// Server obeys commands.
type Server[A any] struct {
	Agent    A
	Commands map[string]Command[A]
	Out      io.Writer

	mu sync.Mutex // one line at a time
	wg sync.WaitGroup
}

// Wait waits for the end of all commands.
func (s *Server[A]) Wait() { s.wg.Wait() }

// Serve says hello, and reads and runs commands until the input, ctx or the command quit ends
// it. Commands may still be under way then: they end with ctx.
func (s *Server[A]) Serve(ctx context.Context, hello any, in io.Reader) error {
	s.say(0, hello, nil)
	lines := make(chan []byte)
	failed := make(chan error, 1)
	// A read cannot be interrupted, so the goroutine ends with the input or with
	// the process.
	go func() {
		scan := bufio.NewScanner(in)
		scan.Buffer(make([]byte, 0, 64*1024), maxLine)
		for scan.Scan() {
			select {
			case lines <- slices.Clone(scan.Bytes()):
			case <-ctx.Done():
				return
			}
		}
		failed <- scan.Err()
	}()
	room := make(chan struct{}, maxCommands)
	quit := make(chan struct{})
	stopObeying := sync.OnceFunc(func() { close(quit) })
	for {
		var line []byte
		select {
		case <-ctx.Done():
			return nil
		case <-quit:
			return nil
		case err := <-failed:
			return err
		case line = <-lines:
		}
		var r request
		if err := json.Unmarshal(line, &r); err != nil {
			s.say(r.ID, nil, fmt.Errorf("not a command: %w", err))
			continue
		}
		select {
		case room <- struct{}{}:
		default:
			s.say(r.ID, nil, fmt.Errorf("%d commands are under way already", maxCommands))
			continue
		}
		s.wg.Go(func() {
			defer func() { <-room }()
			if r.Timeout <= 0 {
				r.Timeout = DefaultTimeout
			}
			c, cancel := context.WithTimeout(ctx, r.Timeout)
			defer cancel()
			result, err := s.run(c, r)
			s.say(r.ID, result, err)
			if r.Cmd == Quit {
				stopObeying()
			}
		})
	}
}

// say writes a reply. An error cannot be reported; the input then ends too.
func (s *Server[A]) say(id uint64, result any, err error) {
	r := reply{ID: id}
	if result != nil {
		b, merr := json.Marshal(result)
		err = errors.Join(err, merr)
		r.Result = b
	}
	if err != nil {
		r.Error = err.Error()
	}
	line, err := json.Marshal(r)
	if err != nil {
		line = fmt.Appendf(nil, `{"id":%d,"error":%q}`, id, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_, _ = s.Out.Write(append(line, '\n'))
}

func (s *Server[A]) run(ctx context.Context, r request) (any, error) {
	f := s.Commands[r.Cmd]
	if f == nil {
		return nil, fmt.Errorf("no such command: %.40s", r.Cmd)
	}
	return f(s.Agent, ctx, r.Args)
}

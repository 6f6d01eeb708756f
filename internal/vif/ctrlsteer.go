// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"github.com/netbackd/netbackd/internal/steer"
	"github.com/netbackd/netbackd/pkg/toeplitz"
)

// steering has each frame for the guest appear on the queue that its hashing says,
// while hashing is on: the host puts it into the TAP queue of the same number, by a
// program in its kernel, or the data path hands it on where the kernel takes none.
// Frames of a flow keep their order when that changes. It belongs to the control
// ring's goroutine.
type steering struct {
	set  func(program int) error // of the TAP; nil: it has one queue, nothing is to be chosen
	conn steered
	user error // why the kernel has no program; nil: it takes one

	program *steer.Program
	hashing hashing       // that frames follow, if they do
	config  *steer.Config // of it; nil: the host chooses
}

// steered is the part of the data path that follows. *dataplane.Conn is one.
type steered interface {
	SetSteering(c *steer.Config) error
	Resteer(from, to *steer.Config, change func() error) error
}

// on is whether frames follow the guest's hashing.
func (s *steering) on() bool { return s.config != nil }

// follow has frames follow h.
func (s *steering) follow(h *hashing) error {
	if s.set == nil || !s.on() && !h.on() || s.on() && h.sameQueues(&s.hashing) {
		return nil
	}
	var c *steer.Config
	if h.on() {
		hasher, err := toeplitz.New(h.key)
		if err != nil {
			return err
		}
		c = &steer.Config{Types: toeplitz.Types(h.types), Hasher: hasher, Mapping: h.mapping}
	}
	if err := s.install(c); err != nil {
		return err
	}
	s.config, s.hashing = c, *h
	return nil
}

// install puts a configuration in force; nil has the host choose.
func (s *steering) install(c *steer.Config) (err error) {
	if s.user != nil {
		return s.conn.SetSteering(c)
	}
	if s.program == nil {
		if s.program, err = steer.New(); err != nil {
			return err
		}
	}
	return s.conn.Resteer(s.config, c, func() error { return s.change(c) })
}

// change has the kernel steer by another configuration. When it returns the last
// frame has been steered by the one before.
func (s *steering) change(c *steer.Config) (err error) {
	switch {
	case c == nil:
		err = s.set(-1)
		c = new(steer.Config)
	case s.on():
		return s.program.Set(c)
	default:
		if err = s.program.Set(c); err == nil {
			err = s.set(s.program.FD())
		}
	}
	if err != nil {
		return err
	}
	// The TAP does not wait for frames that it is just steering, Set does. Without
	// memory for that the change is made all the same.
	_ = s.program.Set(c)
	return nil
}

// close gives the program up. The TAP keeps it, until it is told otherwise or a
// successor takes it over.
func (s *steering) close() {
	if s.program != nil {
		_ = s.program.Close()
		s.program = nil
	}
}

// by says who chooses the queue of a packet to the guest, for people.
func (s *steering) by() string {
	switch {
	case !s.on():
		return "host"
	case s.user != nil:
		return "hash, in netbackd: " + s.user.Error()
	}
	return "hash, in the kernel"
}

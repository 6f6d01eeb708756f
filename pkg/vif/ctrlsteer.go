// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"go.uber.org/zap"

	"github.com/netbackd/netbackd/pkg/steer"
	"github.com/netbackd/netbackd/pkg/toeplitz"
)

// steering has the host put each frame into the TAP queue that the guest's
// hashing says, while hashing is on. It belongs to the control ring's goroutine.
type steering struct {
	log *zap.Logger
	set func(program int) error // of the TAP; nil: it has one queue, nothing is to be chosen

	program *steer.Program
	on      bool
	failed  error // why the host chooses nevertheless
}

// follow has frames follow h. Where the kernel takes no program hashing works all
// the same, but for the host's choice of queues.
func (s *steering) follow(h *hashing) error {
	switch {
	case s.set == nil || s.failed != nil:
		return nil
	case !h.on():
		if s.on {
			s.on = false
			return s.set(-1)
		}
		return nil
	}
	if s.program == nil {
		if s.program, s.failed = steer.New(); s.failed != nil {
			s.log.Warn("the host chooses the queues of packets, though the guest has said which", errField(s.failed))
			return nil
		}
	}
	hasher, err := toeplitz.New(h.key)
	if err != nil {
		return err
	}
	if err := s.program.Set(&steer.Config{Types: toeplitz.Types(h.types), Hasher: hasher, Mapping: h.mapping}); err != nil {
		return err
	}
	if s.on {
		return nil
	}
	if err := s.set(s.program.FD()); err != nil {
		return err
	}
	s.on = true
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
	case s.failed != nil:
		return "host: " + s.failed.Error()
	case s.on:
		return "hash"
	}
	return "host"
}

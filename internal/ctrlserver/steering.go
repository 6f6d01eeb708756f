// SPDX-License-Identifier: Apache-2.0

package ctrlserver

import "github.com/netbackd/netbackd/internal/steer"

// steering steers each packet for the guest to the queue of its hash, while hashing is on.
// The kernel puts the packet into the TAP queue of that number. If the kernel refuses
// steering programs, the data path moves the packet. Packets of a flow stay in order across
// a change.
type steering struct {
	kernel    Steering // nil if userspace is set, or if there is one queue only
	userspace error    // error with which the kernel refuses programs: the data path steers
	conn      steered

	config *steer.Config // in force; nil: the host chooses the queue
}

// steered is the data path. *dataplane.Conn is one.
type steered interface {
	SetSteering(c *steer.Config) error
	Resteer(from, to *steer.Config, change func() error) error
}

// follow steers packets by the settings h.
func (s *steering) follow(h *hashing) error {
	if s.kernel == nil && s.userspace == nil {
		return nil // one queue
	}
	next := h.steering()
	if s.config == nil && next == nil || s.config != nil && next != nil && *s.config == *next {
		return nil
	}
	var err error
	if s.kernel != nil {
		err = s.conn.Resteer(s.config, next, func() error { return s.kernel.Set(next) })
	} else {
		err = s.conn.SetSteering(next)
	}
	if err == nil {
		s.config = next
	}
	return err
}

// close closes the program. The TAP keeps it, until the vif removes it or a successor sets
// another one.
func (s *steering) close() error {
	if s.kernel == nil {
		return nil
	}
	return s.kernel.Close()
}

// by describes how the queue of a packet to the guest is chosen: by the host or by its
// hash, and by which part of the host.
func (s *steering) by() string {
	switch {
	case s.config == nil:
		return "host"
	case s.userspace != nil:
		return "hash, in netbackd: " + s.userspace.Error()
	}
	return "hash, in the kernel"
}

// SPDX-License-Identifier: Apache-2.0

package store

import (
	"syscall"

	"github.com/netbackd/netbackd/pkg/xenstore"
)

// domidSelf is DOMID_SELF, always introduced.
const domidSelf = 0x7ff0

// introduced returns a domain that xenstored talks to.
func (s *state) introduced(domid uint32) (*domain, error) {
	if d := s.domains[domid]; d != nil && d.introduced {
		return d, nil
	}
	return nil, syscall.ENOENT
}

// oneGuest returns the introduced domain that the whole payload names.
func (s *state) oneGuest(r *request) (*domain, error) {
	arg, ok := oneString(r.payload)
	if !ok || atoi(arg) == 0 {
		return nil, syscall.EINVAL
	}
	return s.introduced(atoi(arg))
}

// serveIntroduce takes domid, gfn and event channel. The gfn has not been looked
// at since Xen gave domains a reserved grant for the ring. Xen could not map the
// ring of a domain that does not exist.
func (s *state) serveIntroduce(r *request) error {
	args := allStrings(r.payload)
	if len(args) < 3 {
		return syscall.EINVAL
	}
	d, port := s.domains[atoi(args[0])], atoi(args[2])
	if d == nil || port == 0 {
		return syscall.EINVAL
	}
	s.introduce(d)
	s.ack(r)
	return nil
}

// serveRelease disconnects a domain as if it had died. If the domain still exists, it may
// be introduced again, and owns no node.
func (s *state) serveRelease(r *request) error {
	d, err := s.oneGuest(r)
	if err != nil {
		return err
	}
	s.died(d, ErrReleased)
	s.created(d.id)
	s.ack(r)
	return nil
}

func (s *state) serveResume(r *request) error {
	d, err := s.oneGuest(r)
	if err != nil {
		return err
	}
	d.shutdown = false
	s.ack(r)
	return nil
}

// serveSetTarget lets a domain act for another one, as a device model must.
func (s *state) serveSetTarget(r *request) error {
	args := allStrings(r.payload)
	if len(args) < 2 {
		return syscall.EINVAL
	}
	d, err := s.introduced(atoi(args[0]))
	if err != nil {
		return err
	}
	target, err := s.introduced(atoi(args[1]))
	if err != nil {
		return err
	}
	d.target = target
	s.ack(r)
	return nil
}

func (s *state) serveGetDomainPath(r *request) error {
	arg, ok := oneString(r.payload)
	if !ok {
		return syscall.EINVAL
	}
	s.answer(r, xenstore.AppendStrings(nil, homePath(atoi(arg))))
	return nil
}

func (s *state) serveIsDomainIntroduced(r *request) error {
	arg, ok := oneString(r.payload)
	if !ok {
		return syscall.EINVAL
	}
	answer := "F"
	if _, err := s.introduced(atoi(arg)); err == nil || atoi(arg) == domidSelf {
		answer = "T"
	}
	s.answer(r, xenstore.AppendStrings(nil, answer))
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"errors"
	"fmt"
)

// Errors of messages that make sense and are not allowed.
var (
	ErrFeatures = errors.New("features were accepted that were not offered")
	ErrRing     = errors.New("the ring does not exist")
	ErrRingSize = errors.New("the size of a ring is not a power of 2, or out of bounds")
	ErrRunning  = errors.New("a ring that runs cannot be changed like this")
	ErrProtocol = errors.New("the protocol feature was not accepted")
	ErrFlags    = errors.New("unknown flags")
	ErrEvent    = errors.New("the descriptor is no eventfd, pipe or socket")
	ErrConfig   = errors.New("the device has no such configuration")
)

// state holds the agreement with the front end. Its methods check and remember, and do
// nothing else.
type state struct {
	offered, offeredProtocol uint64
	features, protocol       uint64 // accepted
	status                   uint64
	rings                    []ringState
}

// ringState holds the settings of a ring. Started and enabled are independent: a ring that is
// started and disabled discards what the guest sends and gives it nothing.
type ringState struct {
	num     uint32
	base    uint32
	addr    VringAddr
	hasAddr bool
	hasKick bool
	started bool // the handler has it
	enabled bool
}

// ready reports whether the ring can be started.
func (r *ringState) ready() bool { return !r.started && r.hasKick && r.hasAddr && r.num > 0 }

func newState(features, protocol uint64, rings int) *state {
	return &state{
		offered:         features | featureProtocol,
		offeredProtocol: protocol & protocolSupported,
		rings:           make([]ringState, rings),
	}
}

// has reports whether protocol features were accepted.
func (s *state) has(bits uint64) bool { return s.protocol&bits == bits }

// suspended reports whether no ring is started: then nothing may be written to guest memory.
func (s *state) suspended() bool {
	for i := range s.rings {
		if s.rings[i].started {
			return false
		}
	}
	return true
}

// ring returns the ring of an index.
func (s *state) ring(index uint32) (*ringState, error) {
	if uint64(index) >= uint64(len(s.rings)) {
		return nil, fmt.Errorf("%w: %d", ErrRing, index)
	}
	return &s.rings[index], nil
}

// setFeatures accepts virtio features. While rings run only the log can be switched.
func (s *state) setFeatures(v uint64) error {
	if v&^s.offered != 0 {
		return fmt.Errorf("%w: %#x", ErrFeatures, v&^s.offered)
	}
	if (v^s.features)&^featureLogAll != 0 && !s.suspended() {
		return ErrRunning
	}
	s.features = v
	if v&featureProtocol == 0 {
		for i := range s.rings {
			s.rings[i].enabled = true
		}
	}
	return nil
}

func (s *state) setProtocol(v uint64) error {
	if v&^s.offeredProtocol != 0 {
		return fmt.Errorf("%w: %#x", ErrFeatures, v&^s.offeredProtocol)
	}
	s.protocol = v
	return nil
}

// setNum sets the size of a ring.
func (s *state) setNum(v VringState) error {
	r, err := s.ring(v.Index)
	if err != nil {
		return err
	}
	if v.Num == 0 || v.Num > maxRing || v.Num&(v.Num-1) != 0 && s.features&featureRingPacked == 0 {
		return fmt.Errorf("%w: %d", ErrRingSize, v.Num)
	}
	if r.started {
		return ErrRunning
	}
	r.num = v.Num
	return nil
}

func (s *state) setBase(v VringState) error {
	r, err := s.ring(v.Index)
	if err != nil {
		return err
	}
	if r.started {
		return ErrRunning
	}
	r.base = v.Num
	return nil
}

// setAddr sets the addresses of a ring. While it runs only the flag of the log can change.
func (s *state) setAddr(a VringAddr) error {
	r, err := s.ring(a.Index)
	if err != nil {
		return err
	}
	if a.Flags&^vringLog != 0 {
		return ErrFlags
	}
	old := r.addr
	if r.started && (a.Descriptor != old.Descriptor || a.Used != old.Used || a.Available != old.Available) {
		return ErrRunning
	}
	r.addr, r.hasAddr = a, true
	return nil
}

// setEnabled enables or disables a ring, which may come before all else.
func (s *state) setEnabled(v VringState) error {
	r, err := s.ring(v.Index)
	if err != nil {
		return err
	}
	if v.Num > 1 {
		return ErrFlags
	}
	r.enabled = v.Num == 1
	return nil
}

// file decodes the word of a message with the descriptor of an event: the ring, and
// whether there is one.
func (s *state) file(v uint64, files int) (index uint32, err error) {
	index = uint32(v & vringIndexMask)
	if _, err := s.ring(index); err != nil {
		return 0, err
	}
	if v&^(vringIndexMask|vringNoFD) != 0 {
		return 0, ErrFlags
	}
	if (files == 1) == (v&vringNoFD != 0) {
		return 0, ErrFiles
	}
	return index, nil
}

// stop stops a ring: what it was told about memory and kicks has to be told again.
func (r *ringState) stop(base uint32) {
	r.base, r.started, r.hasAddr, r.hasKick = base, false, false, false
}

// reset is RESET_DEVICE: rings that are stopped and disabled, and no features. The
// protocol's own features and the memory stay, as the front end does not send them again.
func (s *state) reset() {
	s.features, s.status = 0, 0
	clear(s.rings)
}

// SPDX-License-Identifier: Apache-2.0

package ctrlring

import "github.com/netbackd/netbackd/pkg/netif"

// MaxPerWake is how many messages are carried out before others have a turn:
// a slot ring's worth.
const MaxPerWake = netif.CtrlRingSize

// Server serves a ring in a goroutine that may block.
type Server struct {
	Ring   Back
	Do     func(Request) Response // Calls.Do
	Save   func(State) error      // nil: nothing outlives the process
	Notify func() error           // sends the frontend an event

	// Stop is asked after Do whether service ends here; nil: never. Then the
	// message stays on the ring without a response, for a successor, which
	// carries it out as if it had just come.
	Stop func() bool
}

// Serve carries out what there is, but no more than [MaxPerWake] messages. It is
// called after each event, and again if it reports that there may be more. Once
// it has failed with an [Error] there is no point in calling it.
func (s *Server) Serve() (more bool, err error) {
	for range MaxPerWake {
		if more, err = s.ServeOne(); err != nil || !more {
			return false, err
		}
	}
	return true, nil
}

// ServeOne is Serve for one message at most, for those who want to look around
// between any two.
func (s *Server) ServeOne() (more bool, err error) {
	// A response that could not be recorded is still to be sent.
	if err := s.flush(); err != nil {
		return false, err
	}
	r, ok, err := s.Ring.Next()
	if err != nil {
		return false, err
	}
	if ok {
		rsp := s.Do(r)
		if s.Stop != nil && s.Stop() {
			return false, nil
		}
		s.Ring.Reply(rsp)
	}
	if err := s.flush(); err != nil || !ok {
		return false, err
	}
	return true, nil
}

func (s *Server) flush() error {
	notify, err := s.Ring.Flush(s.Save)
	if err != nil || !notify {
		return err
	}
	return s.Notify()
}

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
}

// Serve carries out what there is, but no more than [MaxPerWake] messages. It is
// called after each event, and again if it reports that there may be more. Once
// it has failed with an [Error] there is no point in calling it.
func (s *Server) Serve() (more bool, err error) {
	// A response that could not be recorded is still to be sent.
	if err := s.flush(); err != nil {
		return false, err
	}
	for range MaxPerWake {
		r, ok, err := s.Ring.Next()
		if err != nil {
			return false, err
		}
		if ok {
			s.Ring.Reply(s.Do(r))
		}
		if err := s.flush(); err != nil || !ok {
			return false, err
		}
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

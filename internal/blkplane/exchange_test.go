// SPDX-License-Identifier: Apache-2.0

package blkplane

import (
	"encoding/binary"
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/xentest"
)

// portSocket is an event channel device whose FD is a socket: what is read from it are ports
// that fired, and what is written are ports to unmask.
type portSocket struct {
	*xentest.Evtchn
	fds   [2]int // the queue's end and the double's
	calls atomic.Int32
	ends  sync.WaitGroup
}

func (p *portSocket) portFile() {}
func (p *portSocket) FD() int   { return p.fds[0] }

// Pending reads the socket, as the device does.
func (p *portSocket) Pending(ports []evtchn.Port) (int, error) {
	p.calls.Add(1)
	var b [4]byte
	if _, err := unix.Read(p.fds[0], b[:]); err != nil {
		return 0, nil //nolint:nilerr // there is none
	}
	ports[0] = evtchn.Port(binary.NativeEndian.Uint32(b[:]))
	return 1, nil
}

func (p *portSocket) Unmask(ports []evtchn.Port) error {
	p.calls.Add(1)
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], uint32(ports[0]))
	_, err := unix.Write(p.fds[0], b[:])
	return err
}

func (p *portSocket) Close() error {
	err := errors.Join(unix.Shutdown(p.fds[1], unix.SHUT_RDWR), unix.Close(p.fds[0]))
	p.ends.Wait()
	return errors.Join(err, unix.Close(p.fds[1]), p.Evtchn.Close())
}

// pass passes events and unmaskings on until Close.
func (p *portSocket) pass() {
	poll := []unix.PollFd{{Fd: int32(p.Evtchn.FD()), Events: unix.POLLIN}, {Fd: int32(p.fds[1]), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(poll, -1); err != nil && err != unix.EINTR {
			return
		}
		if poll[0].Revents != 0 {
			var ports [4]evtchn.Port
			n, _ := p.Evtchn.Pending(ports[:])
			for _, port := range ports[:n] {
				var b [4]byte
				binary.NativeEndian.PutUint32(b[:], uint32(port))
				_, _ = unix.Write(p.fds[1], b[:])
			}
		}
		if poll[1].Revents != 0 {
			var b [4]byte
			if n, err := unix.Read(p.fds[1], b[:]); n <= 0 && err != unix.EINTR {
				return
			}
			_ = p.Evtchn.Unmask([]evtchn.Port{evtchn.Port(binary.NativeEndian.Uint32(b[:]))})
		}
	}
}

// socketHost opens such devices.
type socketHost struct {
	doubles
	last *portSocket
}

func (h *socketHost) OpenEvents() (Events, error) {
	e, err := h.g.OpenEvtchn()
	if err != nil {
		return nil, err
	}
	h.last = &portSocket{Evtchn: e}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	h.last.fds = fds
	h.last.ends.Go(h.last.pass)
	return h.last, nil
}

// TestExchange: ports are read and unmasked without system calls of their own, no event is
// lost, and if the kernel refuses that the calls are made.
func TestExchange(t *testing.T) {
	for name, refuse := range map[string]bool{"works": false, "refused": true} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, bedConfig{})
			h := &socketHost{doubles: doubles{b.guest}}
			b.cfg.Host = h
			if err := b.tryConnect(); err != nil {
				t.Fatal(err)
			}
			q := b.conn.queues[0]
			if refuse {
				q.failed = true // as after a completion that says so
			}
			b.conn.Start()
			for i := range 300 {
				if st := b.do(b.request(blkif.Op(i%2), uint64(i), 0, 2, 0)); st != blkif.StatusOkay {
					t.Fatal(st)
				}
			}
			b.drain()
			if used := h.last.calls.Load() == 0; used == refuse {
				t.Errorf("%d calls", h.last.calls.Load())
			}
		})
	}
}

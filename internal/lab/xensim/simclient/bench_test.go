// SPDX-License-Identifier: Apache-2.0

package simclient_test

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntdev"
)

func BenchmarkCopy(b *testing.B) {
	for _, dir := range []gntdev.Direction{gntdev.GuestIsSource, gntdev.GuestIsDest} {
		for _, size := range []int{64, 1500, 4096} {
			for _, n := range []int{1, 64} {
				b.Run(fmt.Sprintf("%v/%dx%d", dir, n, size), func(b *testing.B) {
					s := simProcess(b)
					guest := s.guest(simclient.DomainConfig{})
					pages := must(s.pages(guest).Alloc(0, n, true))(b)
					dev := s.grants(s.dom0)
					arena := must(gntdev.NewPopulatedArena(n * gntdev.PageSize))(b)
					segs := make([]gntdev.Segment, n)
					b.SetBytes(int64(n * size))
					for b.Loop() {
						for i := range segs {
							if dir == gntdev.GuestIsSource {
								segs[i].FromGuest(guest.Domid(), pages.Refs()[i], 0, arena.Bytes()[i*4096:][:size])
							} else {
								segs[i].ToGuest(guest.Domid(), pages.Refs()[i], 0, arena.Bytes()[i*4096:][:size])
							}
						}
						if err := dev.Copy(segs); err != nil {
							b.Fatal(err)
						}
					}
					for i := range segs {
						if err := segs[i].Status().Err(); err != nil {
							b.Fatal(err)
						}
					}
				})
			}
		}
	}
}

func BenchmarkEventRoundTrip(b *testing.B) {
	s := simProcess(b)
	guest := s.guest(simclient.DomainConfig{})
	ge, be := s.events(guest), s.events(s.dom0)
	gp := must(ge.BindUnbound(0))(b)
	bp := must(be.BindInterdomain(guest.Domid(), gp))(b)
	wait := func(e *simclient.Events) {
		var buf [4]evtchn.Port
		for {
			n, err := e.Pending(buf[:])
			if err != nil {
				b.Fatal(err)
			}
			if n > 0 {
				e.Unmask(buf[:n])
				return
			}
			unix.Poll([]unix.PollFd{{Fd: int32(e.FD()), Events: unix.POLLIN}}, -1)
		}
	}
	wait(be)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range b.N {
			wait(ge)
			ge.Notify(gp)
		}
	}()
	b.ResetTimer()
	for range b.N {
		be.Notify(bp)
		wait(be)
	}
	<-done
}

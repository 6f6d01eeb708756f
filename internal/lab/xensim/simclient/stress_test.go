// SPDX-License-Identifier: Apache-2.0

package simclient_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
)

// TestStress repeatedly destroys guests while their backends work. Afterwards no page,
// port or domain is left.
func TestStress(t *testing.T) {
	s := startSim(t)
	const workers, lives = 4, 12
	var wg sync.WaitGroup
	errs := make(chan error, workers)
	for w := range workers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(w)))
			for range lives {
				if err := oneLife(s, rng); err != nil {
					errs <- fmt.Errorf("worker %d: %w", w, err)
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	s.until("only dom0 is left, and holds nothing", func() bool {
		all := must(s.ctl.Domains())(t)
		return len(all) == 1 && all[0].Ports == 0 && all[0].Maps == 0 && all[0].Pins == 0
	})
	c := s.info(0).Counters
	if c.GrantMaps != c.GrantUnmaps || c.GrantMaps == 0 || c.GrantCopyOps == 0 {
		t.Errorf("%d maps, %d unmaps, %d copies", c.GrantMaps, c.GrantUnmaps, c.GrantCopyOps)
	}
}

// oneLife makes a guest and a backend for it, and destroys the guest at some
// point.
func oneLife(s *sim, rng *rand.Rand) error {
	domid, err := s.ctl.CreateDomain(simclient.DomainConfig{Pages: 64})
	if err != nil {
		return err
	}
	guest, err := simclient.Dial(s.dir, domid)
	if err != nil {
		return err
	}
	defer guest.Close()
	alloc, err := guest.Pages()
	if err != nil {
		return err
	}
	defer alloc.Close()
	pages, err := alloc.Alloc(0, 16, true)
	if err != nil {
		return err
	}
	defer pages.Free()
	fe, err := guest.Events()
	if err != nil {
		return err
	}
	defer fe.Close()
	port, err := fe.BindUnbound(0)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { floods(fe, port) }) // until its domain is gone
	destroy := make(chan struct{})
	destroyed := make(chan error, 1)
	go func() {
		<-destroy
		destroyed <- s.ctl.Destroy(domid)
	}()
	err = backend(s, rng, domid, pages.Refs(), port, destroy)
	return errors.Join(err, <-destroyed)
}

// floods sends events as fast as it can.
func floods(e *simclient.Events, port evtchn.Port) {
	for e.Notify(port) == nil {
	}
}

// backend maps, copies and notifies; meanwhile the guest dies.
func backend(s *sim, rng *rand.Rand, domid xen.Domid, refs []xen.Gref, remote evtchn.Port, destroy chan<- struct{}) error {
	defer func() {
		if destroy != nil {
			close(destroy)
		}
	}()
	dev, err := s.dom0.Grants()
	if err != nil {
		return err
	}
	defer dev.Close()
	be, err := s.dom0.Events()
	if err != nil {
		return err
	}
	defer be.Close()
	port, err := be.BindInterdomain(domid, remote)
	if err != nil {
		return err
	}
	arena, err := gntdev.NewArena(16 * gntdev.PageSize)
	if err != nil {
		return err
	}
	defer arena.Close()
	segs := make([]gntdev.Segment, 16)
	buf := make([]evtchn.Port, 4)
	last := rng.IntN(60)
	for i := range 80 {
		if i == last {
			close(destroy)
			destroy = nil
		}
		switch rng.IntN(3) {
		case 0:
			m, err := dev.Map(domid, refs[:1+rng.IntN(16)], gntdev.ReadWrite)
			if err != nil {
				if !errors.Is(err, unix.EINVAL) {
					return err
				}
				continue
			}
			defer m.Unmap()
			for j := 0; j < len(m.Bytes()); j += 512 {
				m.Bytes()[j]++
			}
		case 1:
			for j := range segs {
				if rng.IntN(2) == 0 {
					segs[j].FromGuest(domid, refs[j], 7, arena.Bytes()[j*4096:][:rng.IntN(4090)])
				} else {
					segs[j].ToGuest(domid, refs[j], 7, arena.Bytes()[j*4096:][:rng.IntN(4090)])
				}
			}
			if err := dev.Copy(segs); err != nil {
				return err
			}
			for j := range segs {
				switch st := segs[j].Status(); st {
				case gntdev.StatusOkay, gntdev.StatusBadPage, gntdev.StatusBadDomain:
				default:
					return fmt.Errorf("copy: %v", st)
				}
			}
		case 2:
			n, err := be.Pending(buf)
			if err != nil {
				return err
			}
			if err := errors.Join(be.Unmask(buf[:n]), be.Notify(port)); err != nil {
				return err
			}
		}
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/foreign"
)

// window is how many frames are under way. The queue of a TAP holds more.
const window = 256

// An idle device is watched for a time, and again until nothing wakes: after a load the Go
// runtime frees memory for some seconds.
const (
	idle      = 3 * time.Second
	idleSpans = 10
)

// echo measures frames that go from the TAP to a front end that reflects them, and back,
// and then how often an idle back end wakes.
func (b *bed) echo() error {
	back, err := b.startNetbackd("enb", true)
	if err != nil {
		return err
	}
	n := &peer{name: "netbackd", tap: "enb", back: back}
	if err := b.reflects(n); err != nil {
		return err
	}
	back, err = b.startBack("bare loop", "ebl", true, b.bare, b.path("ebl"), "ebl")
	if err != nil {
		return err
	}
	if err := b.reflects(&peer{name: "bare loop", tap: "ebl", back: back}); err != nil {
		return err
	}
	wall, cpu, err := b.rounds("64 B echo", b.reflect)
	if err != nil {
		return err
	}
	b.report.AtMost("E1", "64 B echo, processor time against a bare loop", cpu.Figures[0].Median/cpu.Figures[1].Median, 1.3, cpu.Void)
	b.note("64 B echo: netbackd %.0f ns of CPU and %s, bare loop %.0f ns and %s",
		cpu.Figures[0].Median, perSecond(wall.Figures[0].Median), cpu.Figures[1].Median, perSecond(wall.Figures[1].Median))

	n.signal(unix.SIGCONT)
	time.Sleep(settle)
	least := uint64(math.MaxUint64)
	for range idleSpans {
		before, err := n.usage()
		if err != nil {
			return err
		}
		time.Sleep(idle)
		after, err := n.usage()
		if err != nil {
			return err
		}
		if least = min(least, after.Sub(before).Wakes); least == 0 {
			break
		}
	}
	b.report.AtMost("I1", fmt.Sprintf("wakes of an idle device in %v", idle), float64(least), 0, false)
	return nil
}

// reflects gives a peer a front end that reflects.
func (b *bed) reflects(p *peer) (err error) {
	b.add(p)
	p.signal(unix.SIGCONT)
	p.front, err = b.startTestpmd(p.tap, "io")
	p.signal(unix.SIGSTOP)
	return err
}

// reflect measures one run.
func (b *bed) reflect(p *peer) (s sample, err error) {
	f, err := foreign.OpenFrames(p.tap, window)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Reflect(b.ctx, 2000, 64); err != nil {
		return s, err
	}
	before, err := p.usage()
	if err != nil {
		return s, err
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(b.ctx, span)
	defer cancel()
	r, err := f.Reflect(ctx, 1<<30, 64)
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return s, err
	}
	s.wall = time.Since(began)
	after, err := p.usage()
	s.packets, s.used = uint64(r.Returned), after.Sub(before)
	return s, err
}

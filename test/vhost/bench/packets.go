// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/foreign"
	"github.com/netbackd/netbackd/internal/lab/packettest"
	"github.com/netbackd/netbackd/internal/rawio"
)

// span is how long a run measures.
const span = time.Second

// flood measures packets from testpmd to the TAP.
func (b *bed) flood() error {
	if err := b.addTestpmd("txonly", "--txpkts=64"); err != nil {
		return err
	}
	wall, cpu, err := b.rounds("64 B, front end to TAP", func(p *peer) (sample, error) {
		time.Sleep(settle)
		return between(p, func(at func() error) error {
			if err := at(); err != nil {
				return err
			}
			time.Sleep(span)
			return at()
		}, func() (uint64, error) {
			n, _, err := tapPackets(p.tap)
			return n, err
		})
	})
	if err != nil {
		return err
	}
	b.report.AtLeast("F1", "64 B to the TAP, packets per CPU second against DPDK vhost + TAP", cpu.Figures[1].Median/cpu.Figures[0].Median, 1, cpu.Void)
	b.note("64 B to the TAP: netbackd %s per CPU second and %s, DPDK %s and %s",
		perSecond(cpu.Figures[0].Median), perSecond(wall.Figures[0].Median), perSecond(cpu.Figures[1].Median), perSecond(wall.Figures[1].Median))
	return nil
}

// receive measures packets from the TAP to testpmd. A sender of this process fills the TAP's
// queue.
func (b *bed) receive() error {
	if err := b.addTestpmd("rxonly"); err != nil {
		return err
	}
	wall, cpu, err := b.rounds("64 B, TAP to front end", func(p *peer) (sample, error) {
		stop, err := pump(p.tap)
		if err != nil {
			return sample{}, err
		}
		defer stop()
		time.Sleep(settle)
		var counts []foreign.Counts
		return between(p, func(at func() error) (err error) {
			ctx, cancel := context.WithTimeout(b.ctx, 20*time.Second)
			defer cancel()
			for range 2 {
				if counts, err = foreign.NextCounts(ctx, p.front, 1); err != nil {
					return err
				}
				if err = at(); err != nil {
					return err
				}
			}
			return nil
		}, func() (uint64, error) { return counts[0].Received, nil })
	})
	if err != nil {
		return err
	}
	b.report.AtLeast("R1", "64 B to the front end, packets per CPU second against DPDK vhost + TAP", cpu.Figures[1].Median/cpu.Figures[0].Median, 1, cpu.Void)
	b.note("64 B to the front end: netbackd %s per CPU second and %s, DPDK %s and %s",
		perSecond(cpu.Figures[0].Median), perSecond(wall.Figures[0].Median), perSecond(cpu.Figures[1].Median), perSecond(wall.Figures[1].Median))
	return nil
}

// between has wait call at twice, and returns what happened in between.
func between(p *peer, wait func(at func() error) error, count func() (uint64, error)) (sample, error) {
	var n [2]uint64
	var u [2]foreign.Usage
	var t [2]time.Time
	i := 0
	err := wait(func() (err error) {
		if u[i], err = p.usage(); err == nil {
			n[i], err = count()
		}
		t[i] = time.Now()
		i++
		return err
	})
	return sample{n[1] - n[0], t[1].Sub(t[0]), u[1].Sub(u[0])}, err
}

// note adds a line for the reader.
func (b *bed) note(format string, args ...any) {
	b.report.Method = append(b.report.Method, fmt.Sprintf(format, args...))
}

// burst is how many frames are sent with one loop of system calls.
const burst = 64

// full is how long the sender waits when the queue of the TAP is full. That has 1000 places.
const full = 200 * time.Microsecond

// pump sends frames of 64 bytes through an interface until the returned function is called.
// Frames that the interface has no room for are dropped.
func pump(ifname string) (stop func(), err error) {
	ifi, err := net.InterfaceByName(ifname)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1); err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: ifi.Index}); err != nil {
		return nil, err
	}
	mem, err := unix.Mmap(-1, 0, unix.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	n := copy(mem, packettest.Frame{IPv4: &packettest.IPv4{}, UDP: &packettest.UDP{}, Payload: packettest.Pattern(22)}.Bytes())
	calls := make([]rawio.Call, burst)
	for i := range calls {
		calls[i] = rawio.Call{Addr: addressOf(mem), Len: uint32(n)}
	}
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		// The thread has the priority of the front ends and back ends. It is not unlocked,
		// and so ends here.
		runtime.LockOSThread()
		_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), priority)
		for {
			select {
			case <-end:
				return
			default:
			}
			rawio.All(unix.SYS_WRITE, fd, calls)
			if slices.ContainsFunc(calls, func(c rawio.Call) bool { return c.Res < 0 }) {
				time.Sleep(full)
			}
		}
	}()
	return func() {
		close(end)
		<-ended
		_ = unix.Close(fd)
		_ = unix.Munmap(mem)
	}, nil
}

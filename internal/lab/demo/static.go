// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"context"
	"fmt"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// price holds a step's cost for the host, and the first guest's packets in it.
type price struct {
	packets, ops uint64
	cpu          time.Duration // of the daemon
}

// priced runs a step and appends its price.
func (s *show) priced(ctx context.Context, step func() error) error {
	before, err := s.price(ctx)
	if err != nil {
		return err
	}
	if err := step(); err != nil {
		return err
	}
	after, err := s.price(ctx)
	if err != nil {
		return err
	}
	s.prices = append(s.prices, price{after.packets - before.packets, after.ops - before.ops, after.cpu - before.cpu})
	return nil
}

func (s *show) price(ctx context.Context) (p price, err error) {
	st, err := s.lab.Vif(ctx, s.guests[0].VifName())
	if err != nil {
		return p, err
	}
	for i := range st.Queues {
		n := st.Queues[i].Counters
		p.packets += n["tx_packets"] + n["rx_packets"]
		p.ops += n["grant_ops"]
	}
	p.cpu, err = cpuTime(s.lab.Daemon().PID())
	return p, err
}

// cpuTime returns the exact CPU time that a process has used, read from the clock
// CPUCLOCK_SCHED of linux/posix-timers.h.
func cpuTime(pid int) (time.Duration, error) {
	const sched = 2
	var t unix.Timespec
	err := unix.ClockGettime(int32(^pid)<<3|sched, &t)
	return time.Duration(t.Nano()), err
}

func (p price) opsPerPacket() string { return per(p.ops, p.packets) }

func (p price) nsPerPacket() string {
	if p.packets == 0 {
		return "-"
	}
	return fmt.Sprint(uint64(p.cpu) / p.packets)
}

// staticGrants has the first guest's buffers kept mapped, repeats the steps of before, and
// prints the saving.
func (s *show) staticGrants(ctx context.Context) error {
	web := s.guests[0]
	err := s.step("static grants", func() (string, error) {
		n := 0
		for q := range s.Queues {
			k, err := web.StaticGrants(ctx, "", q)
			if err != nil {
				return "", err
			}
			n += k
		}
		return fmt.Sprintf("%d buffers of %d queues stay mapped", n, s.Queues), nil
	})
	if err != nil {
		return err
	}
	copied := s.prices
	s.prices = nil
	steps := s.pricedSteps()
	for _, step := range steps {
		if err := s.priced(ctx, func() error { return step.run(ctx, step.name) }); err != nil {
			return err
		}
	}
	s.say("\nCost per packet of web, copied and with static grants. On Xen a grant operation is a\nhypercall, and the difference is larger:\n")
	t := tabwriter.NewWriter(s.Out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "\tGRANT OPS COPIED\tSTATIC\tNETBACKD'S CPU NS COPIED\tSTATIC\tRATIO\t")
	for i, step := range steps {
		a, b := copied[i], s.prices[i]
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t\n", step.name, a.opsPerPacket(), b.opsPerPacket(), a.nsPerPacket(), b.nsPerPacket(),
			per(uint64(b.cpu)*a.packets, uint64(a.cpu)*b.packets))
	}
	return t.Flush()
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/netcontrol"
)

// label identifies a record's phase.
type label struct {
	Boot    string `json:"boot"`
	Dom0    string `json:"dom0_kernel,omitempty"` // the release, if it is not the usual one
	Setup   string `json:"setup,omitempty"`       // of the guest, if it is not the usual one
	Phase   int    `json:"phase"`
	Backend string `json:"backend"`
	Item    string `json:"item"`
}

// record is one measurement: of the whole machine, for Units units.
type record struct {
	label
	Units  int           `json:"units"`
	Ran    cpuTime       `json:"ran_ns"`
	Daemon uint64        `json:"daemon_ns,omitempty"` // run time of its threads
	Took   time.Duration `json:"took_ns"`
	RTT    time.Duration `json:"rtt_ns,omitempty"` // median, of pings

	RTTs []time.Duration `json:"rtts_ns,omitempty"` // all of them, of latencyItems

	Dom0  kernelCounts `json:"dom0"`
	Guest kernelCounts `json:"guest"`
	// Interrupts of dom0 by device.
	Interrupts map[string]uint64 `json:"dom0_interrupts,omitempty"`

	// Of a measurement with tracing, whose times are not valid.
	Traced     bool       `json:"traced,omitempty"`
	Hypercalls hypercalls `json:"hypercalls,omitzero"`
	Calls      uint64     `json:"calls,omitempty"` // system calls of the daemon
	// The daemon's counters.
	Counters map[string]uint64 `json:"counters,omitempty"`
}

// phase measures all items with the present back end.
type phase struct {
	label
	scale  float64
	reps   int
	daemon int
	only   string
	trace  bool
	beside bool
	addr   string
	vif    string
	socket string

	to    peer
	items []item
	xen   *hypervisor
	guest counter
}

// counter asks the guest for the counters of its kernel.
type counter interface{ counts() (kernelCounts, error) }

func (p *phase) run(path string) (err error) {
	if p.xen, err = openHypervisor(); err != nil {
		return err
	}
	quiet()
	if err := p.find(); err != nil {
		return err
	}
	if p.to.wire != nil {
		// The back end has to find a whole window of frames at once. The number must
		// not depend on the scheduler.
		if err := unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0); err != nil {
			return fmt.Errorf("sched_setattr: %w", err)
		}
	}
	out := os.Stdout
	if path != "" {
		if out, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644); err != nil {
			return err
		}
	}
	enc := json.NewEncoder(out)
	for i := range p.items {
		it := &p.items[i]
		if !strings.Contains(it.Name, p.only) {
			continue
		}
		records, err := p.item(it)
		if err != nil {
			return fmt.Errorf("%s: %w", it.Name, err)
		}
		for _, r := range records {
			if err := enc.Encode(r); err != nil {
				return err
			}
		}
	}
	return out.Close()
}

// find determines the kind of guest.
func (p *phase) find() (err error) {
	if p.addr == "" {
		p.items = frameItems
		p.to.wire, err = openWire(p.vif)
		p.guest = p.to.wire
		return err
	}
	if p.to.addr, err = netip.ParseAddr(p.addr); err != nil {
		return err
	}
	p.items = networkItems
	if p.beside {
		p.items = latencyItems
	}
	p.guest, err = openStat(p.to.addr)
	return err
}

// item warms up and measures.
func (p *phase) item(it *item) (records []record, err error) {
	time.Sleep(100 * time.Millisecond) // the guest may still be busy with the item before
	w, err := it.open(p.to)
	if err != nil {
		return nil, err
	}
	defer w.close()
	units := it.units(p.scale)
	// As much work as the measurement: a Go process that wakes from a long sleep is busy
	// with runtime work for some 20 ms.
	warm := units
	if p.beside {
		warm = 16 // they take a long time
	}
	if err := w.do(warm); err != nil {
		return nil, err
	}
	for range p.reps {
		r := record{label: p.label, Units: units}
		r.Item = it.Name
		if err := p.measure(w, &r, func() error { return w.do(units) }); err != nil {
			return nil, err
		}
		records = append(records, r)
		fmt.Printf("%d %-4s %-24s %10.0f ns/%s, %.0f wall\n", p.Phase, p.Backend, it.Name,
			float64(r.Ran.All)/float64(units), it.Unit, float64(r.Took)/float64(units))
	}
	if p.trace {
		r := record{label: p.label, Units: units, Traced: true}
		r.Item = it.Name
		if err := p.measureTraced(w, &r); err != nil {
			return nil, err
		}
		records = append(records, r)
	}
	return records, nil
}

func (p *phase) measure(w work, r *record, do func() error) error {
	guest, err := p.guest.counts()
	if err != nil {
		return err
	}
	devices, err := readInterrupts()
	if err != nil {
		return err
	}
	dom0, err := readKernel()
	if err != nil {
		return err
	}
	daemon, err := p.daemonRan()
	if err != nil {
		return err
	}
	ran, err := p.xen.ran()
	if err != nil {
		return err
	}
	began := time.Now()
	if err := do(); err != nil {
		return err
	}
	r.Took = time.Since(began)
	after, err := p.xen.ran()
	if err != nil {
		return err
	}
	daemonAfter, err := p.daemonRan()
	if err != nil {
		return err
	}
	dom0After, err := readKernel()
	if err != nil {
		return err
	}
	if r.Interrupts, err = readInterrupts(); err != nil {
		return err
	}
	for name := range r.Interrupts {
		if r.Interrupts[name] -= devices[name]; r.Interrupts[name] == 0 {
			delete(r.Interrupts, name)
		}
	}
	guestAfter, err := p.guest.counts()
	if err != nil {
		return err
	}
	r.Ran = cpuTime{after.All - ran.All, after.Dom0 - ran.Dom0}
	r.Daemon = daemonAfter - daemon
	r.Dom0 = dom0After.since(dom0)
	r.Guest = guestAfter.since(guest)
	switch w := w.(type) {
	case *pinger:
		r.RTT = percentile(slices.Sorted(slices.Values(w.rtt)), 0.5)
	case *besides:
		r.RTTs = slices.Sorted(slices.Values(w.rtt))
	}
	return nil
}

func (k kernelCounts) since(b kernelCounts) kernelCounts {
	return kernelCounts{k.Interrupts - b.Interrupts, k.Switches - b.Switches}
}

// daemonRan returns the run time of the daemon's threads in ns, if there is a daemon.
func (p *phase) daemonRan() (uint64, error) {
	if p.daemon == 0 {
		return 0, nil
	}
	return threadsRan(p.daemon)
}

// measureTraced measures once more, with the results of tracing and without the figures
// that it disturbs.
func (p *phase) measureTraced(w work, r *record) (err error) {
	r.Hypercalls, err = traced(func() error {
		if p.daemon == 0 {
			return p.measure(w, r, func() error { return w.do(r.Units) })
		}
		before, err := p.daemonCounters()
		if err != nil {
			return err
		}
		calls, err := countCalls(p.daemon)
		if err != nil {
			return err
		}
		defer calls.close()
		if err := p.measure(w, r, func() error { return w.do(r.Units) }); err != nil {
			return err
		}
		if r.Calls, err = calls.read(); err != nil {
			return err
		}
		r.Counters, err = p.daemonCounters()
		for name := range r.Counters {
			r.Counters[name] -= before[name]
		}
		return err
	})
	if err == nil && r.Hypercalls.Lost > 0 {
		err = errors.New("xentrace lost records")
	}
	return err
}

// daemonCounters asks the daemon for the counters of the vif.
func (p *phase) daemonCounters() (map[string]uint64, error) {
	vifs, err := netcontrol.NewClient(p.socket).Vifs(context.Background())
	if err != nil {
		return nil, err
	}
	for i := range vifs {
		if vifs[i].Name == p.vif {
			return vifs[i].Counters, nil
		}
	}
	return nil, fmt.Errorf("the daemon does not serve %s", p.vif)
}

// stat is a UDP connection to the guest.
type stat struct{ fd int }

func openStat(addr netip.Addr) (stat, error) {
	fd, err := connect(unix.SOCK_DGRAM, addr, statPort)
	return stat{fd}, err
}

func (s stat) counts() (kernelCounts, error) {
	var buf [64]byte
	if _, err := send(s.fd, buf[:1]); err != nil {
		return kernelCounts{}, err
	}
	n, err := recv(s.fd, buf[:])
	if err != nil || n != kernelCountsLen {
		return kernelCounts{}, fmt.Errorf("counters of the guest: %d bytes, %w", n, err)
	}
	return parseKernel(buf[:]), nil
}

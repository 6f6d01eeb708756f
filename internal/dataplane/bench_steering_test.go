// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/iouring"
	"github.com/netbackd/netbackd/internal/lab/bench"
	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/internal/lab/packettest"
	"github.com/netbackd/netbackd/internal/steer"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/toeplitz"
)

// The groups about hashing and steering have their own TAP, with several queues.
const (
	steerQueues = 4
	steerFlows  = 512
)

// Peers of these groups.
const (
	hashNow      = "netbackd"
	hashPortable = "netbackd, without assembly"
	hashBitwise  = "bit by bit"

	byHost   = "the host's choice"
	byKernel = "by hash, in the kernel"
	byUser   = "by hash, in netbackd"
)

// measureHash measures the hash of different inputs of n bytes. With one input a
// processor would learn to predict its bits, which favours the peer.
func measureHash(rep *bench.Report, lim bench.Limits, n int, atMost float64) error {
	h, err := toeplitz.New(hashKey)
	if err != nil {
		return err
	}
	random := rand.New(rand.NewPCG(3, 4))
	inputs := make([][]byte, 1024)
	for i := range inputs {
		inputs[i] = make([]byte, n)
		for j := range inputs[i] {
			inputs[i][j] = byte(random.Uint32())
		}
	}
	want := uint32(0)
	for _, in := range inputs {
		want ^= bitwise(hashKey, in)
	}
	// Slow methods run less often.
	run := func(times int, all func() uint32) func() (time.Duration, error) {
		return func() (time.Duration, error) {
			sum := uint32(0)
			start := time.Now()
			for range times {
				sum ^= all()
			}
			took := time.Since(start) / time.Duration(times)
			if sum != want { // times is odd
				return 0, fmt.Errorf("hashes of %d bytes are wrong", n)
			}
			return took, nil
		}
	}
	of := func(h *toeplitz.Hasher) func() uint32 {
		return func() (sum uint32) {
			for _, in := range inputs {
				sum ^= h.Hash(in)
			}
			return sum
		}
	}
	g := bench.Group{Name: fmt.Sprintf("hash of %d bytes", n), Packets: len(inputs), Peers: []bench.Peer{
		{Name: hashBitwise, Run: run(1, func() (sum uint32) {
			for _, in := range inputs {
				sum ^= bitwise(hashKey, in)
			}
			return sum
		})},
		{Name: hashPortable, Run: run(7, of(h.Portable()))},
		{Name: hashNow, Run: run(7, of(h))},
	}}
	res, err := g.Measure(lim)
	if err != nil {
		return err
	}
	rep.Results = append(rep.Results, res)
	rep.AtMost("P15", g.Name+", ns", res.Figure(hashNow).Median, atMost, res.Void)
	rep.AtLeast("P15", g.Name+", without assembly against bit by bit", res.Figure(hashPortable).Ratio, 20, res.Void)
	return nil
}

// bitwise is the algorithm as netif.h describes it.
func bitwise(key, input []byte) (hash uint32) {
	window := uint64(0)
	for i := range 8 {
		window |= uint64(key[i]) << (56 - 8*i)
	}
	for i, b := range input {
		for bit := range 8 {
			if b&(0x80>>bit) != 0 {
				hash ^= uint32(window >> 32)
			}
			window <<= 1
		}
		if i+8 < len(key) {
			window |= uint64(key[i+8])
		}
	}
	return hash
}

// steerBed is a vif of several queues, all of one worker, whose pages are all
// static grants.
type steerBed struct {
	bed
	h       *filler
	program *steer.Program
	config  *steer.Config
	frames  [steerFlows][]byte // one of each flow, as they are sent
}

func newSteerBed() (*steerBed, error) {
	d, err := tap.Create(tap.Config{Name: "steered", Queues: steerQueues, VnetHdr: true})
	if err != nil {
		return nil, err
	}
	s := &steerBed{bed: bed{tb: benchTB{}, tap: d}}
	if err := netns.Up("steered"); err != nil {
		return s, err
	}
	if s.h, err = newFiller(d.Index()); err != nil {
		return s, err
	}
	// The host's own ways to choose a queue are measured, so the socket must not bypass them.
	if err := unix.SetsockoptInt(s.h.fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 0); err != nil {
		return s, err
	}
	if s.program, err = steer.New(); err != nil {
		return s, err
	}
	hasher, err := toeplitz.New(hashKey)
	if err != nil {
		return s, err
	}
	s.config = &steer.Config{Types: toeplitz.AllTypes, Hasher: hasher, Mapping: toeplitz.NewMapping(steerQueues)}
	table := make([]uint32, toeplitz.MaxMapping)
	for i := range table {
		table[i] = uint32(i*i) % steerQueues
	}
	if err := s.config.Mapping.SetSize(toeplitz.MaxMapping); err != nil {
		return s, err
	}
	if err := s.config.Mapping.Set(0, table); err != nil {
		return s, err
	}
	if err := s.program.Set(s.config); err != nil {
		return s, err
	}
	for i := range s.frames {
		f := packettest.Frame{IPv4: &packettest.IPv4{}, TCP: &packettest.TCP{SrcPort: uint16(2000 + i)}, PadTo: 64}
		s.frames[i] = append(make([]byte, packetHdrLen), f.Bytes()...)
	}
	s.newWorker(iouring.Supported() == nil)
	s.w.clock = time.Now
	return s, s.serve()
}

// serve connects the guest.
func (s *steerBed) serve() error {
	var queues []QueueConfig
	for i := range steerQueues {
		f := newFront(s.tb, testDomid)
		f.allStatic()
		q := f.config()
		q.Tap = s.tap.Queue(i)
		efd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err != nil {
			return err
		}
		peer, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err != nil {
			return err
		}
		q.Events = notifyOnly{noEvents{efd}, peer, []byte{1, 0, 0, 0, 0, 0, 0, 0}}
		s.fronts = append(s.fronts, f)
		queues = append(queues, q)
	}
	cfg := full
	cfg.Domid, cfg.VnetHdr = testDomid, true
	var err error
	if s.conn, err = newConn(cfg, queues); err != nil {
		return err
	}
	for _, q := range s.conn.queues {
		q.worker.Store(s.w)
		if err := s.w.attach(q); err != nil {
			return err
		}
	}
	return nil
}

func (s *steerBed) close() {
	if s.program != nil {
		_ = s.program.Close()
	}
	if s.h != nil {
		_ = unix.Close(s.h.fd)
	}
	_ = s.tap.Close()
}

// send sends a packet of each flow from from to to-1.
func (s *steerBed) send(from, to int) error {
	for _, frame := range s.frames[from:to] {
		if _, err := unix.Write(s.h.fd, frame); err != nil {
			return err
		}
	}
	return nil
}

// drain reads the packets in the TAP without the worker, and counts them by queue.
func (s *steerBed) drain() (n [steerQueues]int) {
	buf := make([]byte, 2048)
	for i := range n {
		for {
			if _, err := s.tap.Queue(i).Read(buf); err != nil {
				break
			}
			n[i]++
		}
	}
	return n
}

// way selects the way in which packets find their queue.
func (s *steerBed) way(name string) error {
	prog, c := -1, (*steer.Config)(nil)
	switch name {
	case byKernel:
		prog = s.program.FD()
	case byUser:
		c = s.config
	}
	for _, q := range s.conn.queues {
		q.steer = c
	}
	return s.tap.SetSteering(prog)
}

// measureSteering measures the cost, for the host and for the worker, of steering packets
// to the queue of their hash, and checks that they arrive there.
func measureSteering(rep *bench.Report, lim bench.Limits, s *steerBed) error {
	const frames = 256 // fit into one TAP queue, and into one ring
	send := bench.Group{Name: fmt.Sprintf("the host sends, 64 B, %d queues", steerQueues), Packets: frames}
	for _, name := range []string{byHost, byKernel} {
		send.Peers = append(send.Peers, bench.Peer{Name: name, Run: func() (time.Duration, error) {
			if err := s.way(name); err != nil {
				return 0, err
			}
			if err := s.send(0, frames); err != nil { // to get warm
				return 0, err
			}
			s.drain()
			start := time.Now()
			err := s.send(0, frames)
			took := time.Since(start)
			got := 0
			for _, n := range s.drain() {
				got += n
			}
			if err == nil && got != frames {
				err = fmt.Errorf("%d frames of %d are in the TAP", got, frames)
			}
			return took, err
		}})
	}
	res, err := send.Measure(lim)
	if err != nil {
		return err
	}
	rep.Results = append(rep.Results, res)
	for _, way := range []string{byKernel, byUser} {
		right, err := s.right(way)
		if err != nil {
			return err
		}
		rep.AtLeast("P16", fmt.Sprintf("%s: of %d flows on the queue that table and hash say", way, steerFlows), right, 1, false)
	}
	rep.AtMost("P16", "cost of sending by hash, against the host's choice", res.Figure(byKernel).Median/res.Figure(byHost).Median, 1.05, res.Void)

	take := bench.Group{Name: fmt.Sprintf("host to guest, 64 B, %d queues of one worker", steerQueues), Packets: frames}
	for _, name := range []string{byKernel, byUser} {
		take.Peers = append(take.Peers, bench.Peer{Name: name, Run: func() (time.Duration, error) {
			if err := s.way(name); err != nil {
				return 0, err
			}
			return s.take(0, frames)
		}})
	}
	if res, err = take.Measure(lim); err != nil {
		return err
	}
	rep.Results = append(rep.Results, res)
	// Reading takes most of the time. Steering adds a hash, a copy and a turn.
	rep.AtMost("own", "steering in netbackd, ns per packet beyond what the kernel steered",
		res.Figure(byUser).Median-res.Figure(byKernel).Median, 100, res.Void)
	return nil
}

// take makes the worker deliver packets, and returns the time that it took.
func (s *steerBed) take(from, to int) (took time.Duration, err error) {
	before := s.delivered()
	for i, f := range s.fronts {
		n, err := f.rx.Responses()
		if err != nil {
			return 0, err
		}
		f.rx.Take(n)
		f.post(int(f.rx.Free()))
		s.conn.queues[i].tapIn.ready = true
	}
	if err := s.send(from, to); err != nil {
		return 0, err
	}
	for _, q := range s.conn.queues {
		s.w.sched.schedule(q)
	}
	start := time.Now()
	for s.w.sched.waits() {
		s.w.round()
		if !s.w.sched.waits() {
			must(s.tb, s.w.poll(0)) // a queue that found one packet waits for an event for more
		}
	}
	took = time.Since(start)
	if n := s.delivered() - before; n != uint64(to-from) {
		return 0, fmt.Errorf("%d packets of %d reached the guest", n, to-from)
	}
	return took, nil
}

// delivered returns the number of packets delivered to the guest.
func (s *steerBed) delivered() (n uint64) {
	for i := range s.conn.queues {
		n += s.conn.Stats(i).Load(RxPackets)
	}
	return n
}

// right returns the fraction of flows that arrive on their right queue.
func (s *steerBed) right(way string) (float64, error) {
	if err := s.way(way); err != nil {
		return 0, err
	}
	right, all := 0, 0
	const part = 128
	for from := 0; from < steerFlows; from += part {
		if _, err := s.take(from, from+part); err != nil {
			return 0, err
		}
		for i, f := range s.fronts {
			for _, d := range f.received() {
				all++
				if s.config.Choose(d.Frame).Queue == i {
					right++
				}
			}
		}
	}
	if all != steerFlows {
		return 0, fmt.Errorf("%d packets of %d flows", all, steerFlows)
	}
	return float64(right) / steerFlows, nil
}

// measureControl measures requests that guests make over their control rings.
func measureControl(rep *bench.Report, lim bench.Limits, only string) error {
	lim.Until = time.Now().Add(10 * time.Second)
	if strings.Contains("hash", only) {
		if err := measureHash(rep, lim, 12, 4); err != nil {
			return err
		}
		if err := measureHash(rep, lim, 36, 6); err != nil {
			return err
		}
	}
	if !strings.Contains("steering", only) {
		return nil
	}
	if err := steer.Probe(); err != nil {
		fmt.Fprintln(os.Stderr, "bench: no steering:", err)
		return nil
	}
	s, err := newSteerBed()
	if s != nil {
		defer s.close()
	}
	if err != nil {
		return err
	}
	return measureSteering(rep, lim, s)
}

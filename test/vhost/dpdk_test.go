// SPDX-License-Identifier: Apache-2.0

package vhost

import (
	"context"
	"testing"

	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/internal/lab/foreign"
	"github.com/netbackd/netbackd/internal/lab/netns"
)

// The judge is checked with a back end that is not netbackd.
func TestReflectionOnDPDK(t *testing.T) {
	b := newBed(t).all()
	back, err := b.programs.StartDPDKBackend(b.ctx, "be", b.path("front"), b.tap, -1)
	b.ok(err)
	b.ends(back)
	b.ok(netns.Up(b.tap))
	front := b.testpmd("io", 1, "")
	b.reflect(5000)
	ports, err := foreign.StopTestpmd(front)
	b.ok(err)
	if ports[0].Received < 5000 || ports[0].Sent < 5000 {
		t.Errorf("testpmd counted %+v", ports[0])
	}
}

// Bits of virtio's features that the tests look at.
const (
	featureMTU      = 1 << 3
	featureMrgRxbuf = 1 << 15
	featureMQ       = 1 << 22
	featureVersion1 = 1 << 32
	featurePacked   = 1 << 34
	featureInOrder  = 1 << 35
)

// dpdkVersion heads transcripts: testpmd does not print its version.
const dpdkVersion = "DPDK 22.11 of Debian 12, testpmd with net_virtio_user"

// testpmd starts testpmd as a front end that reflects frames.
func (b *bed) testpmd(mode string, queues int, options string) *lab.Process {
	b.Helper()
	p, err := b.programs.StartTestpmd(b.ctx, foreign.Testpmd{
		Name: "fe", Devices: []string{foreign.VirtioUser(b.path("front"), queues, options)}, Mode: mode, Queues: queues, CPU: -1,
	})
	b.ok(err)
	return b.ends(p)
}

// reflect has the front end reflect frames and looks at each byte of them.
func (b *bed) reflect(n int) {
	b.Helper()
	f, err := foreign.OpenFrames(b.tap, 64)
	b.ok(err)
	defer f.Close()
	r, err := f.Reflect(b.ctx, n, 60, 61, 300, 1514)
	b.ok(err)
	if r.Lost() > 0 || r.Corrupt > 0 || r.Reordered > 0 {
		b.Errorf("%d of %d frames lost, %d corrupt, %d reordered", r.Lost(), r.Sent, r.Corrupt, r.Reordered)
	}
}

func TestTestpmd(t *testing.T) {
	const always = featureVersion1
	for _, c := range []struct {
		name    string
		core    bool
		queues  int
		options string
		has     uint64 // features that testpmd then accepts
		lacks   uint64

		transcript string
	}{
		{"split", true, 1, "", always | featureMrgRxbuf | featureInOrder, featurePacked, "dpdk-22.11"},
		{"split, no mergeable buffers", false, 1, ",mrg_rxbuf=0", always | featureInOrder, featureMrgRxbuf | featurePacked, ""},
		{"split, not in order", false, 1, ",in_order=0", always | featureMrgRxbuf, featureInOrder | featurePacked, ""},
		{"split, neither", false, 1, ",mrg_rxbuf=0,in_order=0", always, featureMrgRxbuf | featureInOrder | featurePacked, ""},
		{"packed", true, 1, ",packed_vq=1", always | featureMrgRxbuf | featureInOrder | featurePacked, 0, "dpdk-22.11-packed"},
		{"packed, no mergeable buffers", false, 1, ",packed_vq=1,mrg_rxbuf=0", always | featurePacked, featureMrgRxbuf, ""},
		{"packed, not in order", false, 1, ",packed_vq=1,in_order=0", always | featurePacked, featureInOrder, ""},
		{"two pairs", true, 2, "", always | featureMQ, 0, "dpdk-22.11-two-pairs"},
		{"two pairs, packed", false, 2, ",packed_vq=1", always | featureMQ | featurePacked, 0, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBed(t)
			if !c.core {
				b.all()
			}
			s := b.serve(c.queues, false)
			front := b.testpmd("io", c.queues, c.options)
			b.reflect(20000)
			ports, err := foreign.StopTestpmd(front)
			b.ok(err)
			if ports[0].Received < 20000 || ports[0].Sent < 20000 {
				t.Errorf("testpmd counted %+v", ports[0])
			}
			if c.transcript != "" {
				b.compare(c.transcript, dpdkVersion, untilStarted(s.transcript(0)))
			}
			if f := accepted(s.transcript(0)); f&c.has != c.has || f&c.lacks != 0 {
				t.Errorf("testpmd accepted %#x", f)
			}
		})
	}
}

// DPDK listens, and the back end is killed under traffic and connects again.
func TestTestpmdServer(t *testing.T) {
	for _, c := range []struct {
		name    string
		core    bool
		options string
	}{
		{"split", true, ",server=1"},
		{"packed", false, ",server=1,packed_vq=1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBed(t)
			if !c.core {
				b.all()
			}
			s := b.serve(1, true)
			b.testpmd("io", 1, c.options)
			b.reflect(5000)
			for i := range 2 {
				f, err := foreign.OpenFrames(b.tap, 64)
				b.ok(err)
				ctx, cancel := context.WithCancel(b.ctx)
				done := make(chan struct{})
				go func() { defer close(done); _, _ = f.Reflect(ctx, 1<<30, 300) }()
				b.moves(1 << 20)
				s.restart()
				cancel()
				<-done
				b.ok(f.Close())
				b.await("connection", func() bool { return len(s.recorder.Transcripts()) > i+1 })
				b.awaitReflection()
				b.reflect(5000)
			}
			b.compare("dpdk-22.11-server-"+c.name, dpdkVersion, untilStarted(s.transcript(1)))
		})
	}
}

// awaitReflection waits until a frame comes back. Those that were under way when the back end
// was killed may be lost, or come first.
func (b *bed) awaitReflection() {
	b.Helper()
	f, err := foreign.OpenFrames(b.tap, 1)
	b.ok(err)
	defer f.Close()
	b.await("a frame that comes back", func() bool {
		r, err := f.Reflect(b.ctx, 1, 60)
		return err == nil && r.Lost() == 0
	})
}

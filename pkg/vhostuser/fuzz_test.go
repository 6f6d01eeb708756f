// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"context"
	"io"
	"maps"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
	"github.com/netbackd/netbackd/pkg/virtqueue"
)

// strict is a handler that checks the order in which it is called.
type strict struct {
	recorder
	t       *testing.T
	started map[int]bool
}

func (s *strict) StartRing(r Ring, t *Table, _ *virtqueue.Log) error {
	if s.started[r.Index] || t == nil {
		s.t.Errorf("ring %d is started twice, or without memory", r.Index)
	}
	s.started[r.Index] = true
	for _, p := range []Part{r.Desc, r.Avail, r.Used} {
		p.Mem[0]++
		p.Mem[len(p.Mem)-1]++
	}
	if r.Packed {
		_, _ = virtqueue.NewPacked(r.Config(t), r.PackedRings())
	} else {
		_, _ = virtqueue.NewSplit(r.Config(t), r.SplitRings())
	}
	return nil
}

func (s *strict) UpdateRing(r Ring) error {
	if !s.started[r.Index] {
		s.t.Errorf("ring %d is changed and not started", r.Index)
	}
	return nil
}

func (s *strict) StopRing(i int) (uint32, error) {
	if !s.started[i] {
		s.t.Errorf("ring %d is stopped and not started", i)
	}
	delete(s.started, i)
	return 0, nil
}

func (s *strict) SetMemory(t *Table, rings []Ring) error {
	if len(rings) != len(s.started) || t == nil && len(rings) > 0 {
		s.t.Errorf("memory for %d rings of %d", len(rings), len(s.started))
	}
	for _, r := range rings {
		r.Used.Mem[0]++
	}
	return nil
}

// play makes messages of fuzzed bytes: a byte for the request, one for flags and files, one
// for the length of the payload, and the payload.
func play(c *conn, files [3]int, data []byte) {
	requests := slices.Sorted(maps.Keys(layouts))
	for len(data) >= 3 {
		r, bits, n := requests[int(data[0])%len(requests)], data[1], int(data[2])
		data = data[3:]
		n = min(n, len(data))
		b := native.AppendUint32(nil, uint32(r))
		b = native.AppendUint32(b, flagVersion|uint32(bits&1)<<3)
		b = native.AppendUint32(b, uint32(n))
		b = append(b, data[:n]...)
		data = data[n:]
		var oob []byte
		if k := bits >> 1 & 3; k > 0 {
			oob = unix.UnixRights(files[k-1])
		}
		if _, _, err := c.c.WriteMsgUnix(b, oob, nil); err != nil {
			return
		}
	}
}

// script encodes a message for play. File is 1 for a memfd, 2 for an eventfd, 3 for a
// directory.
func script(file byte, m Message) []byte {
	requests := slices.Sorted(maps.Keys(layouts))
	b := m.Append(nil)[headerSize:]
	return append([]byte{byte(slices.Index(requests, m.Request)), 1 | file<<1, byte(len(b))}, b...)
}

// FuzzSession sends arbitrary messages with descriptors to a back end. Its handler is
// called in order, and nothing is left started.
func FuzzSession(f *testing.F) {
	head := func(r Request) Header { return Header{Request: r} }
	start := slices.Concat(
		script(0, Message{Header: head(SetProtocolFeatures), U64: ProtocolNet | ProtocolConfig | ProtocolXenMmap}),
		script(0, Message{Header: head(SetFeatures), U64: featureProtocol | featureEventIdx | 1<<32}),
		script(1, Message{Header: head(SetMemTable), Regions: []Region{guestRegion}}),
		script(0, Message{Header: head(SetVringNum), State: VringState{0, 8}}),
		script(0, Message{Header: head(SetVringAddr), Addr: ringAddr(0)}),
		script(2, Message{Header: head(SetVringKick)}),
		script(2, Message{Header: head(SetVringCall)}),
		script(0, Message{Header: head(SetVringEnable), State: VringState{0, 1}}))
	f.Add(start)
	f.Add(slices.Concat(start, script(0, Message{Header: head(GetVringBase)}),
		script(0, Message{Header: head(ResetDevice)}), start))
	f.Add(slices.Concat(start, script(1, Message{Header: head(SetLogBase), Log: Area{4096, 0}}),
		script(1, Message{Header: head(AddMemReg), Regions: []Region{{Guest: 1 << 30, Size: 4096}}}),
		script(0, Message{Header: head(RemMemReg), Regions: []Region{{Guest: 1 << 30, Size: 4096}}})))
	dir, err := unix.Open(f.TempDir(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		f.Fatal(err)
	}
	defer unix.Close(dir)
	files := [3]int{memfd(f, guestSize), eventfd(f), dir}
	fuzzloop.Fuzz(f, func(t *testing.T, data []byte) {
		front, back := socketPair(t)
		h := &strict{recorder: recorder{rings: map[int]Ring{}}, t: t, started: map[int]bool{}}
		b := NewBackend(back, BackendConfig{Features: allFeatures, ProtocolFeatures: protocolSupported, Rings: 4,
			Timeout: 100 * time.Millisecond}, h)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = b.Serve(context.Background()) // most messages are errors
		}()
		read := make(chan struct{})
		go func() {
			defer close(read)
			_, _ = io.Copy(io.Discard, front)
		}()
		play(&conn{c: front}, files, data)
		_ = front.CloseWrite()
		<-ended
		<-read
		front.Close()
		if len(h.started) > 0 {
			t.Errorf("rings %v are still started", h.started)
		}
	})
}

// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// TestOrderOfQEMU sends what QEMU 10 sends, in its order: rings are enabled before features
// and memory, and a second pair is disabled first.
func TestOrderOfQEMU(t *testing.T) {
	b := newBed(t)
	before := openFiles(t)
	if v, err := b.f.Get(GetQueueNum); v != 2 || err != nil {
		t.Errorf("%d pairs, %v", v, err)
	}
	if v, err := b.f.Get(GetMaxMemSlots); v != 32 || err != nil {
		t.Errorf("%d slots, %v", v, err)
	}
	b.must(b.f.U64(SetProtocolFeatures, ProtocolNet))
	b.must(b.f.U64(SetOwner, 0))
	call, kick := eventfd(t), eventfd(t)
	for i := range uint32(4) {
		for _, r := range []Request{SetVringCall, SetVringErr} {
			_, err := b.f.Do(eventMessage(r, i, call))
			b.must(err)
		}
	}
	enable := func(i, on uint32) {
		_, err := b.f.Do(Message{Header: Header{Request: SetVringEnable}, State: VringState{i, on}})
		b.must(err)
	}
	b.must(b.f.U64(ResetDevice, 0))
	enable(0, 1)
	enable(1, 1)
	enable(2, 0)
	b.must(b.f.U64(NetSetMTU, 1500))
	b.must(b.f.U64(SetFeatures, 1<<32|featureProtocol))
	b.must(b.f.U64(SetStatus, 0xb))
	if v, err := b.f.Get(GetStatus); v != 0xb || err != nil {
		t.Errorf("status %#x, %v", v, err)
	}
	_, err := b.f.Do(Message{Header: Header{Request: AddMemReg}, Regions: []Region{guestRegion}, Files: []int{memfd(t, guestSize)}})
	b.must(err)
	for i := range uint32(2) {
		b.must(b.f.StartRing(ringAddr(i), 8, 5, kick, call))
	}
	b.rec.set(func(r *recorder) { r.base = 7 })
	if base, err := b.f.StopRing(0); base != 7 || err != nil {
		t.Errorf("base %d, %v", base, err)
	}
	b.must(b.f.U64(SetStatus, 0))
	b.must(b.f.U64(SendRARP, 0x060504030201))
	b.must(b.f.Close())
	b.must(b.end())
	if diff := cmp.Diff([]string{
		"reset", "mtu 1500", "features 0x140000000", "status 0xb",
		"memory of 1 regions for 0 rings",
		"start 0: 8 at 5, enabled true", "update 0: enabled true, log false", "update 0: enabled true, log false",
		"start 1: 8 at 5, enabled true", "update 1: enabled true, log false", "update 1: enabled true, log false",
		"stop 0", "status 0x0", "rarp 010203040506",
		"stop 1", "memory of 0 regions for 0 rings",
	}, b.rec.took()); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	if after := openFiles(t); after > before+1 { // the call and kick of the test, less the sockets
		t.Errorf("%d descriptors are open, were %d", after, before)
	}
}

// TestSecondConnectionOfDPDK begins with rings, before features and memory.
func TestSecondConnectionOfDPDK(t *testing.T) {
	b := newBed(t)
	for i := range uint32(2) {
		_, err := b.f.Do(Message{Header: Header{Request: SetVringEnable}, State: VringState{i, 0}})
		b.must(err)
		m, err := b.f.Do(Message{Header: Header{Request: GetVringBase}, State: VringState{i, 0xdead}})
		if err != nil || m.State != (VringState{i, 0}) {
			t.Errorf("base %+v, %v", m.State, err)
		}
	}
	if calls := b.rec.took(); calls != nil {
		t.Errorf("calls %v", calls)
	}
}

// TestEnabledIsNotStarted: both states are kept apart.
func TestEnabledIsNotStarted(t *testing.T) {
	for _, tc := range []struct {
		name     string
		features uint64
		enable   bool
		want     string
	}{
		{"not enabled", featureProtocol, false, "start 0: 8 at 0, enabled false"},
		{"enabled", featureProtocol, true, "start 0: 8 at 0, enabled true"},
		{"a front end without protocol features", 0, false, "start 0: 8 at 0, enabled true"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBed(t)
			b.must(b.f.U64(SetProtocolFeatures, ProtocolReplyAck))
			b.must(b.f.U64(SetFeatures, tc.features))
			if tc.enable {
				_, err := b.f.Do(Message{Header: Header{Request: SetVringEnable}, State: VringState{0, 1}})
				b.must(err)
			}
			b.must(b.f.SetMemory([]Region{guestRegion}, []int{memfd(t, guestSize)}))
			b.rec.took()
			// The address before the size, and the kick last.
			_, err := b.f.Do(Message{Header: Header{Request: SetVringAddr}, Addr: ringAddr(0)})
			b.must(err)
			_, err = b.f.Do(Message{Header: Header{Request: SetVringNum}, State: VringState{0, 8}})
			b.must(err)
			if calls := b.rec.took(); calls != nil {
				t.Errorf("calls %v before the kick", calls)
			}
			_, err = b.f.Do(eventMessage(SetVringKick, 0, -1))
			b.must(err)
			if diff := cmp.Diff([]string{tc.want}, b.rec.took()); diff != "" {
				t.Errorf("calls (-want +got):\n%s", diff)
			}
			if r := b.rec.ring(0); r.Kick != -1 || r.Call != -1 {
				t.Errorf("ring %+v", r)
			}
		})
	}
}

// TestMemoryChangesWhileRingsRun: the ring is found in the new table, and a table without
// it is refused.
func TestMemoryChangesWhileRingsRun(t *testing.T) {
	b := newBed(t)
	b.negotiate()
	fd := memfd(t, 2*guestSize)
	b.must(b.f.SetMemory([]Region{guestRegion}, []int{fd}))
	b.must(b.f.StartRing(ringAddr(1), 8, 0, -1, -1))
	ring := b.rec.ring(1)
	if ring.Desc.Guest != guestAddr+0x1000 {
		t.Errorf("guest address %#x", ring.Desc.Guest)
	}
	b.rec.took()
	other := Region{Guest: 0x900000, Size: guestSize, User: 0x900000, Offset: guestSize}
	for range 2 { // QEMU 7.2 adds and removes each region once per pair of queues
		_, err := b.f.Do(Message{Header: Header{Request: AddMemReg}, Regions: []Region{other}, Files: []int{fd}})
		b.must(err)
	}
	for range 2 {
		_, err := b.f.Do(Message{Header: Header{Request: RemMemReg}, Regions: []Region{other}, Files: []int{fd}}) // with a stray one
		b.must(err)
	}
	if diff := cmp.Diff([]string{"memory of 2 regions for 1 rings", "memory of 1 regions for 1 rings"}, b.rec.took()); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	if err := b.f.SetMemory([]Region{other}, []int{fd}); !errors.Is(err, ErrRefused) {
		t.Errorf("a table without the ring: %v", err)
	}
	if err := b.end(); !errors.Is(err, ErrAddress) {
		t.Errorf("the session ends with %v", err)
	}
}

// TestMigration switches the log on while a ring runs, as QEMU does.
func TestMigration(t *testing.T) {
	b := newBed(t)
	b.negotiate()
	b.must(b.f.SetMemory([]Region{guestRegion}, []int{memfd(t, guestSize)}))
	b.must(b.f.StartRing(ringAddr(0), 8, 0, -1, -1))
	b.rec.took()
	fd := memfd(t, 0x3000)
	_, err := b.f.Do(Message{Header: Header{Request: SetLogBase}, Log: Area{0x2000, 0x1000}, Files: []int{fd}})
	b.must(err)
	b.must(b.f.U64(SetFeatures, allFeatures&^featureRingPacked|featureProtocol))
	a := ringAddr(0)
	a.Flags, a.Log = vringLog, guestAddr+0x42
	_, err = b.f.Do(Message{Header: Header{Request: SetVringAddr}, Addr: a})
	b.must(err)
	if diff := cmp.Diff([]string{"log true", "features 0x174000000", "update 0: enabled true, log false",
		"update 0: enabled true, log true"}, b.rec.took()); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	r := b.rec.ring(0)
	if l := r.Logging(b.rec.logged()); l.Log == nil || !l.Ring || l.RingAddr != guestAddr+0x42 {
		t.Errorf("logging %+v", l)
	}
	if !b.rec.logged().Mark(0, 1) {
		t.Error("page 0 has no bit")
	}
	got := make([]byte, 1)
	if _, err := unix.Pread(fd, got, 0x1000); err != nil || got[0] != 1 {
		t.Errorf("log %x, %v", got, err)
	}
	short := Message{Header: Header{Request: SetLogBase}, Log: Area{0x3000, 0x1000}, Files: []int{fd}}
	if _, err := b.f.Do(short); !errors.Is(err, ErrRefused) {
		t.Errorf("a log that its file does not hold: %v", err)
	}
}

func TestConfig(t *testing.T) {
	b := newBed(t)
	b.negotiate()
	b.rec.set(func(r *recorder) { r.config = [8]byte{1, 2, 3, 4, 5, 6} })
	get := func(off, n uint32) []byte {
		m, err := b.f.Do(Message{Header: Header{Request: GetConfig}, Config: ConfigSpace{Offset: off, Data: make([]byte, n)}})
		b.must(err)
		return m.Config.Data
	}
	if diff := cmp.Diff([]byte{2, 3, 4}, get(1, 3)); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
	if got := get(4, 8); len(got) != 0 {
		t.Errorf("configuration that does not exist: %x", got)
	}
	_, err := b.f.Do(Message{Header: Header{Request: SetConfig}, Config: ConfigSpace{Offset: 3, Flags: 1, Data: []byte{9}}})
	b.must(err)
	if diff := cmp.Diff([]string{"config 09 at 3, migration true"}, b.rec.took()); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
}

// TestInflightRegion: the back end makes it, and gets it back from the front end.
func TestInflightRegion(t *testing.T) {
	b := newBed(t)
	b.negotiate()
	b.must(b.f.SetMemory([]Region{guestRegion}, []int{memfd(t, guestSize)}))
	m, err := b.f.Do(Message{Header: Header{Request: GetInflightFD}, Inflight: Inflight{Queues: 2, QueueSize: 8}})
	b.must(err)
	if len(m.Files) != 1 || m.Inflight.Size == 0 {
		t.Fatalf("answer %+v", m)
	}
	defer closeAll(m.Files)
	_, err = b.f.Do(Message{Header: Header{Request: SetInflightFD}, Inflight: m.Inflight, Files: m.Files})
	b.must(err)
	for i := range uint32(3) {
		b.must(b.f.StartRing(ringAddr(i), 8, 0, -1, -1))
	}
	b.rec.ring(1).Inflight[0] = 42
	got := make([]byte, 1)
	if _, err := unix.Pread(m.Files[0], got, int64(m.Inflight.Size/2)); err != nil || got[0] != 42 {
		t.Errorf("byte %d, %v", got, err)
	}
	if b.rec.ring(2).Inflight != nil {
		t.Error("a ring beyond the region has a part of it")
	}
	set := Message{Header: Header{Request: SetInflightFD}, Inflight: m.Inflight, Files: m.Files}
	if _, err := b.f.Do(set); !errors.Is(err, ErrRefused) {
		t.Errorf("while rings run: %v", err)
	}
}

// TestReset stops and disables rings, drops the inflight region, and keeps the memory.
func TestReset(t *testing.T) {
	b := newBed(t)
	b.negotiate()
	b.must(b.f.SetMemory([]Region{guestRegion}, []int{memfd(t, guestSize)}))
	m, err := b.f.Do(Message{Header: Header{Request: GetInflightFD}, Inflight: Inflight{Queues: 2, QueueSize: 8}})
	b.must(err)
	defer closeAll(m.Files)
	_, err = b.f.Do(Message{Header: Header{Request: SetInflightFD}, Inflight: m.Inflight, Files: m.Files})
	b.must(err)
	b.must(b.f.StartRing(ringAddr(0), 8, 3, -1, -1))
	if b.rec.ring(0).Inflight == nil {
		t.Error("the ring has no inflight region")
	}
	b.rec.took()
	b.must(b.f.U64(ResetDevice, 0))
	b.must(b.f.U64(SetFeatures, featureProtocol))
	for _, m := range []Message{
		{Header: Header{Request: SetVringNum}, State: VringState{0, 8}},
		{Header: Header{Request: SetVringAddr}, Addr: ringAddr(0)},
		eventMessage(SetVringKick, 0, -1),
	} {
		_, err := b.f.Do(m)
		b.must(err)
	}
	if diff := cmp.Diff([]string{"stop 0", "reset", "features 0x40000000", "start 0: 8 at 0, enabled false"}, b.rec.took()); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	if b.rec.ring(0).Inflight != nil {
		t.Error("the ring has the inflight region from before")
	}
}

// TestRefusedByHandler: the front end is told, and may go on.
func TestRefusedByHandler(t *testing.T) {
	b := newBed(t)
	b.negotiate()
	b.rec.set(func(r *recorder) { r.refuse = "mtu 100" })
	if err := b.f.U64(NetSetMTU, 100); !errors.Is(err, ErrRefused) {
		t.Errorf("error %v", err)
	}
	b.must(b.f.U64(NetSetMTU, 1500))
	if _, err := b.f.Do(Message{Header: Header{Request: 41}}); !errors.Is(err, ErrRefused) {
		t.Errorf("request 41: %v", err)
	}
	b.must(b.f.U64(SetOwner, 0))
}

// TestRefusedWithoutAnswer: a front end that asks for no acknowledgement is told by the end
// of the connection.
func TestRefusedWithoutAnswer(t *testing.T) {
	for name, send := range map[string]func(b *bed) error{
		"handler": func(b *bed) error { return b.f.U64(SetFeatures, 1<<32) },
		"unknown": func(b *bed) error { return b.f.U64(41, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			b.rec.set(func(r *recorder) { r.refuse = "features 0x100000000" })
			b.must(send(b))
			if err := b.end(); !errors.Is(err, errRefused) && !errors.Is(err, ErrUnknown) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestServeEndsWithContext(t *testing.T) {
	front, back := socketPair(t)
	defer front.Close()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- NewBackend(back, BackendConfig{Rings: 2}, &recorder{}).Serve(ctx) }()
	f := NewFrontend(front)
	if _, err := f.Get(GetFeatures); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestSignal(t *testing.T) {
	if err := Signal(-1); err != nil {
		t.Error(err)
	}
	fd := eventfd(t)
	if err := checkEvent(fd); err != nil {
		t.Fatal(err)
	}
	full := make([]byte, 8)
	native.PutUint64(full, 1<<64-2)
	if _, err := unix.Write(fd, full); err != nil {
		t.Fatal(err)
	}
	if err := Signal(fd); err != nil {
		t.Errorf("a call that is pending: %v", err)
	}
	if err := Signal(1 << 20); err == nil {
		t.Error("no error of a descriptor that is not open")
	}
}

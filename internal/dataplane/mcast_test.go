// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/internal/lab/packettest"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
)

func mac(i int) [6]byte { return [6]byte{1, 0, 0x5e, 0, byte(i >> 8), byte(i)} }

// mcast puts a multicast request into the tx ring.
func (f *front) mcast(add bool, addr [6]byte) (want []answer) {
	return f.ring([]netif.TxRequest{{ID: uint16(f.tx.ReqProd())}}, 0, 0, netif.NewMcast(add, addr))
}

func TestMulticastList(t *testing.T) {
	inModes(t, allModes[:1], func(t *testing.T, m mode) {
		list := new(McastList)
		cfg := full
		cfg.Mcast = list
		b := newBed(t, m, setup{cfg: cfg})
		f := b.front()
		check := func(what string, want []answer, list [][6]byte) {
			t.Helper()
			f.push()
			b.settle()
			if diff := cmp.Diff(want, f.answers()); diff != "" {
				t.Errorf("%s: answers (-want +got):\n%s", what, diff)
			}
			got := b.conn.cfg.Mcast.Addrs()
			slices.SortFunc(got, func(a, b [6]byte) int { return slices.Compare(a[:], b[:]) })
			if diff := cmp.Diff(list, got); diff != "" {
				t.Errorf("%s: list (-want +got):\n%s", what, diff)
			}
		}
		var all [][6]byte
		var want []answer
		for i := range MaxMcast {
			want = append(want, f.mcast(true, mac(i))...)
			all = append(all, mac(i))
		}
		check("as many as there is room for", want, all)
		check("one more", errored(f.mcast(true, mac(64))), all)
		check("one that is there already", f.mcast(true, mac(5)), all)
		check("one taken out", f.mcast(false, mac(63)), all[:63])
		check("one taken out that is not there", f.mcast(false, mac(63)), all[:63])
		check("room again", f.mcast(true, mac(63)), all)
		check("not multicast", errored(f.mcast(true, [6]byte{2, 1, 1, 1, 1, 1})), all)
		want = f.ring([]netif.TxRequest{{ID: 9}}, 0, 0, netif.NewMcast(false, mac(0)), netif.NewMcast(true, mac(1)))
		check("both, of which only adding counts", want, all)
		want = f.ring([]netif.TxRequest{{ID: 9}}, 0, 0, netif.NewMcast(false, mac(0)), netif.NewMcast(false, mac(62)))
		check("two of a kind, of which the last counts", want, slices.Delete(slices.Clone(all), 62, 63))

		if got := b.stats(Drop); !cmp.Equal(got, map[string]uint64{"mcast_full": 2}) {
			t.Errorf("drops %v", got)
		}
		if f.guest.Counts().CopyCalls != 0 {
			t.Error("data of a multicast request was looked at")
		}
		list.Clear()
		if len(list.Addrs()) != 0 {
			t.Error("list is not empty after Clear")
		}
	})
}

func TestMulticastFilter(t *testing.T) {
	inModes(t, allModes, func(t *testing.T, m mode) {
		list := new(McastList)
		cfg := full
		cfg.Mcast = list
		b := newBed(t, m, setup{cfg: cfg})
		f := b.front()
		f.post(256)
		list.add(mac(1))
		to := func(dst [6]byte) []byte {
			return packettest.Frame{Dst: dst, IPv4: &packettest.IPv4{}, UDP: &packettest.UDP{}}.Bytes()
		}
		frames := [][]byte{
			to([6]byte{2, 0, 0, 0, 0, 9}), to(broadcast), to(mac(1)), to(mac(2)),
			to([6]byte{0x33, 0x33, 0, 0, 0, 1}), to(mac(1)),
		}
		for _, filter := range []bool{false, true} {
			list.SetFilter(filter)
			b.host.sendPlain(frames...)
			b.settle()
			want := frames
			if filter {
				want = [][]byte{frames[0], frames[1], frames[2], frames[5]}
			}
			if diff := cmp.Diff(want, framesOf(f.received()), asBytes); diff != "" {
				t.Errorf("with filter %v (-want +got):\n%s", filter, diff)
			}
		}
		if got := b.stats(Drop); !cmp.Equal(got, map[string]uint64{"rx_mcast_filtered": 2}) {
			t.Errorf("drops %v", got)
		}
	})
}

// TestMulticastListIsASet compares it with a map.
func TestMulticastListIsASet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var list McastList
		list.SetFilter(true)
		model := map[[6]byte]bool{}
		n := rapid.SampledFrom([]int{3, 80}).Draw(t, "addresses")
		for range rapid.IntRange(1, 300).Draw(t, "steps") {
			a := mac(rapid.IntRange(0, n).Draw(t, "address"))
			switch rapid.IntRange(0, 3).Draw(t, "what") {
			case 0:
				list.del(a)
				delete(model, a)
			default:
				ok := model[a] || len(model) < MaxMcast
				if list.add(a) != ok {
					t.Fatalf("add: %v with %d in the list", !ok, len(model))
				}
				if ok {
					model[a] = true
				}
			}
			if len(list.Addrs()) != len(model) {
				t.Fatalf("%d in the list, want %d", len(list.Addrs()), len(model))
			}
			for i := range n {
				if a := mac(i); list.passes(a) != model[a] {
					t.Fatalf("%x passes: %v", a, !model[a])
				}
			}
		}
	})
}

// TestMcastOutlivesTheProcess: a successor that finds the journal of the same connection
// continues with its list. With the journal of another connection, or none, there is no
// list.
func TestMcastOutlivesTheProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ring")
	open := func(tx xen.Gref) *Journal {
		t.Helper()
		j := openJournal(t, path, testRings(tx, 9))
		t.Cleanup(func() { must(t, j.Close()) })
		return j
	}
	var first McastList
	if first.Keep(open(8)) {
		t.Error("a new journal knows a list")
	}
	for i := range byte(5) {
		first.add([6]byte{1, 0, 0x5e, 0, 0, i})
	}
	first.del([6]byte{1, 0, 0x5e, 0, 0, 1})

	var second McastList
	second.add([6]byte{1, 1, 1, 1, 1, 1}) // gives way
	if !second.Keep(open(8)) {
		t.Error("the journal knows no list")
	}
	if diff := cmp.Diff(first.Addrs(), second.Addrs()); diff != "" {
		t.Errorf("list (-want +got):\n%s", diff)
	}
	second.Keep(nil)
	second.Clear()

	var third McastList
	if !third.Keep(open(8)) || len(third.Addrs()) != 4 {
		t.Errorf("after a handover: %v", third.Addrs())
	}
	var other McastList
	if other.Keep(open(7)) || len(other.Addrs()) != 0 {
		t.Errorf("another connection has the list %v", other.Addrs())
	}
}

// TestMcastKilledInARemoval: if the daemon is killed at any store of a removal, every
// other address is still in the list.
func TestMcastKilledInARemoval(t *testing.T) {
	j := NewJournal()
	var m McastList
	m.Keep(j)
	for i := range byte(4) {
		m.add([6]byte{1, 0, 0x5e, 0, 0, i})
	}
	before := append([]byte(nil), j.mem...)
	m.del([6]byte{1, 0, 0x5e, 0, 0, 1})
	// The two words of the place that is filled, then the count.
	for stores := range 4 {
		k := NewJournal()
		copy(k.mem, before)
		for s, w := range []int{jAddrs + 2, jAddrs + 3, jMcast + 1} {
			if s < stores {
				copy(k.mem[4*w:4*w+4], j.mem[4*w:])
			}
		}
		var after McastList
		after.Keep(k)
		for _, i := range []byte{0, 2, 3} {
			if a := [6]byte{1, 0, 0x5e, 0, 0, i}; after.find(macKey(a)) < 0 {
				t.Errorf("after %d stores %x is missing in %x", stores, a, after.Addrs())
			}
		}
	}
}

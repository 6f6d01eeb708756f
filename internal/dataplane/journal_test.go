// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
)

// testStamp is the stamp of every connection, unless a test makes another one.
var testStamp = netif.Stamp{1, 2, 3, 4}

// testRings returns rings of the connection with testStamp. None of them has been served.
func testRings(tx, rx xen.Gref) *RingKeys {
	h := netif.Header{Stamp: testStamp}
	return &RingKeys{TxGref: tx, RxGref: rx, Tx: h, Rx: h}
}

// openJournal opens a journal as the owner of a vif does: its records are valid if it
// names the rings.
func openJournal(t *testing.T, path string, k *RingKeys) *Journal {
	t.Helper()
	j, err := OpenJournal(path)
	must(t, err)
	if !j.Names(k) {
		j.Begin(k.Tx.Stamp, k.TxGref, k.RxGref)
	}
	return j
}

func TestJournalFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ring")
	rings := testRings(8, 9)
	open := func(k *RingKeys) *Journal { t.Helper(); return openJournal(t, path, k) }
	rsp := []netif.TxResponse{{ID: 1}, {ID: 2, Status: netif.StatusError}}
	const written = "tx seq 2 base 77 count 2, rx seq 0 base 0 count 0"

	j := open(rings)
	j.recordTx(77, rsp)
	must(t, j.Close())
	must(t, j.Close())

	j = open(rings)
	if got := j.String(); got != written {
		t.Errorf("opened again it says %q, want %q", got, written)
	}
	j.begin(jTx)
	must(t, j.Close())

	j = open(rings)
	if n, ok := j.pending(jTx, 77, netif.TxRingSize); ok {
		t.Errorf("a record of %d that was being changed counts", n)
	}
	j.recordTx(77, rsp)
	if n, ok := j.pending(jTx, 77, netif.TxRingSize); !ok || n != 2 {
		t.Errorf("pending %d, %v", n, ok)
	}
	must(t, j.Close())

	must(t, os.Truncate(path, 0))
	j = open(rings)
	if got := j.String(); strings.Contains(got, "77") {
		t.Errorf("of an empty file it says %q", got)
	}
	must(t, j.Close())

	info, err := os.Stat(path)
	must(t, err)
	if info.Mode().Perm() != 0o600 || info.Size() != JournalSize {
		t.Errorf("file of %d bytes, mode %v", info.Size(), info.Mode())
	}
	link := filepath.Join(t.TempDir(), "link")
	must(t, os.Symlink(path, link))
	if _, err := OpenJournal(link); !errors.Is(err, unix.ELOOP) {
		t.Errorf("through a link: %v", err)
	}
	if _, err := OpenJournal(t.TempDir()); err == nil {
		t.Error("a directory was opened")
	}
}

// TestJournalOfAnotherConnection: records are valid for no other connection, even for one
// with the same grefs or the same stamp.
func TestJournalOfAnotherConnection(t *testing.T) {
	other := testStamp
	other[3]++
	rings := func(change func(k *RingKeys)) *RingKeys {
		k := testRings(8, 9)
		k.Tx.RspProd, k.Rx.RspProd = 79, 33
		change(k)
		return k
	}
	for _, tt := range []struct {
		name   string
		keys   *RingKeys
		names  bool
		agrees bool
	}{
		{"the same, the last batches published", rings(func(*RingKeys) {}), true, true},
		{"the same, the last tx batch not published", rings(func(k *RingKeys) { k.Tx.RspProd = 77 }), true, true},
		{"the same, the last rx batch not published", rings(func(k *RingKeys) { k.Rx.RspProd = 32 }), true, true},
		{"another tx gref", rings(func(k *RingKeys) { k.TxGref = 10 }), false, true},
		{"another rx gref", rings(func(k *RingKeys) { k.RxGref = 10 }), false, true},
		{"rings made anew", rings(func(k *RingKeys) { k.Tx, k.Rx = netif.Header{}, netif.Header{} }), false, false},
		{"another's rings", rings(func(k *RingKeys) { k.Tx.Stamp, k.Rx.Stamp = other, other }), false, true},
		{"one ring made anew", rings(func(k *RingKeys) { k.Tx = netif.Header{} }), false, false},
		{"made anew, the stamp not cleared", rings(func(k *RingKeys) { k.Tx.RspProd, k.Rx.RspProd = 0, 0 }), true, false},
		{"within a batch", rings(func(k *RingKeys) { k.Tx.RspProd = 78 }), true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			j := NewJournal()
			j.Begin(testStamp, 8, 9)
			j.recordTx(77, []netif.TxResponse{{ID: 1}, {ID: 2}})
			j.recordRx(32, make([]netif.RxSlot, 1))
			if names, agrees := j.Names(tt.keys), j.Agrees(tt.keys); names != tt.names || agrees != tt.agrees {
				t.Errorf("it names them: %t, it agrees: %t", names, agrees)
			}
			j.Begin(other, 8, 9)
			if got := j.String(); strings.Contains(got, "77") || j.Stamp() != other {
				t.Errorf("begun anew it says %q of %v", got, j.Stamp())
			}
		})
	}
}

// TestJournalThatWasNeverBegun names no rings, not even those of a guest that has
// zeros everywhere.
func TestJournalThatWasNeverBegun(t *testing.T) {
	for _, k := range []*RingKeys{{}, testRings(0, 0)} {
		if NewJournal().Names(k) {
			t.Errorf("it names %+v", k)
		}
	}
}

// TestJournalWithoutStamp: a journal of a daemon that made no stamps keeps its records
// when it gets a stamp.
func TestJournalWithoutStamp(t *testing.T) {
	j := NewJournal()
	j.Begin(testStamp, 8, 9)
	j.recordTx(77, []netif.TxResponse{{ID: 1}, {ID: 2}})
	clear(j.mem[4*jStamp:])
	j.page.store(jMagic, journalUnstamped)
	before := j.String()

	k := RingKeys{TxGref: 8, RxGref: 9, Tx: netif.Header{RspProd: 77}}
	if !j.Names(&k) || !j.Agrees(&k) || !j.Stamp().IsZero() {
		t.Errorf("it names them: %t, it agrees: %t, stamp %v", j.Names(&k), j.Agrees(&k), j.Stamp())
	}
	j.Restamp(testStamp)
	if got := j.String(); got != before || j.Stamp() != testStamp {
		t.Errorf("with a stamp it says %q of %v, before %q", got, j.Stamp(), before)
	}
	if j.Names(&k) {
		t.Error("it names rings without stamp")
	}
	k.Tx.Stamp, k.Rx.Stamp = testStamp, testStamp
	if !j.Names(&k) {
		t.Error("it does not name the rings with its stamp")
	}
}

// TestReplay checks which records a successor replays.
func TestReplay(t *testing.T) {
	var start netif.Index = 1<<32 - 2 // the batch wraps
	txRsp := []netif.TxResponse{{ID: 7}, {Status: netif.StatusNull}, {ID: 9, Status: netif.StatusError}}
	rxSlots := []netif.RxSlot{
		netif.RxResponse{ID: 3, Flags: netif.RxMoreData, Status: 4096}.Slot(),
		netif.RxResponse{ID: 10, Status: 5}.Slot(),
	}
	tests := []struct {
		name       string
		spoil      func(j *Journal)
		posted     int // requests in each ring
		txWant     uint32
		rxWant     uint32
		wantReplay bool
	}{
		{"nothing recorded", func(j *Journal) { *j = *NewJournal() }, 5, 0, 0, false},
		{"both", func(*Journal) {}, 5, 3, 2, true},
		{"just as many requests as recorded", func(*Journal) {}, 3, 3, 2, true},
		{"fewer requests than recorded", func(*Journal) {}, 1, 0, 0, false},
		{"tx being written", func(j *Journal) { j.begin(jTx) }, 5, 0, 2, true},
		{"rx being written", func(j *Journal) { j.begin(jRx) }, 5, 3, 0, true},
		{"tx of an earlier batch", func(j *Journal) { j.recordTx(start-3, txRsp) }, 5, 0, 2, true},
		{"rx of a later one", func(j *Journal) { j.recordRx(start+2, rxSlots) }, 5, 3, 0, true},
		{"counts that cannot be", func(j *Journal) { j.page.put(jTx+jCount, 257); j.page.put(jRx+jCount, 257) }, 256, 0, 0, false},
		{"nothing in the batch", func(j *Journal) { j.recordTx(start, nil); j.recordRx(start, nil) }, 5, 0, 0, false},
		{"sequence that wraps", func(j *Journal) { j.page.store(jTx+jSeq, 1<<32-1); j.recordTx(start, txRsp) }, 5, 3, 2, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFront(t, testDomid)
			f.startAt(start)
			for range tt.posted {
				f.tx.Put(netif.TxRequest{ID: 100, Gref: 5, Size: 60})
			}
			f.tx.Push()
			f.post(tt.posted)
			tx, err := netif.AttachTx(f.back[:netif.PageSize])
			must(t, err)
			rx, err := netif.AttachRx(f.back[netif.PageSize : 2*netif.PageSize])
			must(t, err)
			j := NewJournal()
			j.recordTx(start, txRsp)
			j.recordRx(start, rxSlots)
			tt.spoil(j)

			if got := j.Replay(tx, rx); got != tt.wantReplay {
				t.Errorf("replayed: %v", got)
			}
			var want []answer
			for _, r := range txRsp[:tt.txWant] {
				want = append(want, answer{r.ID, r.Status})
			}
			if diff := cmp.Diff(want, f.answers()); diff != "" {
				t.Errorf("answers (-want +got):\n%s", diff)
			}
			n, err := f.rx.Responses()
			if err != nil || n != tt.rxWant {
				t.Errorf("%d rx slots, want %d, %v", n, tt.rxWant, err)
			}
			for i := range n {
				if got := f.rx.Slot(start.Add(i)); got != rxSlots[i] {
					t.Errorf("rx slot %d: %#x, want %#x", i, got, rxSlots[i])
				}
			}
			if tx.ReqCons() != start.Add(tt.txWant) || rx.ReqCons() != start.Add(tt.rxWant) {
				t.Errorf("goes on at tx %d, rx %d", tx.ReqCons(), rx.ReqCons())
			}
			// A second successor has nothing left to do.
			if j.Replay(tx, rx) {
				t.Error("replayed twice")
			}
		})
	}
}

// TestJournalCutsAnywhere: after any prefix of the stores of several batches, a successor
// finds a ring in which each slot either holds its right response or still its request.
func TestJournalCutsAnywhere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		start := netif.Index(rapid.Uint32().Draw(t, "start"))
		batches := rapid.SliceOfN(rapid.IntRange(1, 256), 1, 4).Draw(t, "batches")
		total := 0
		for _, n := range batches {
			total += n
		}
		request := func(i int) uint32 { return 0xf0000000 | uint32(i) }
		response := func(i int) uint32 { return uint32(i) << 4 }

		// The memory, as cells, and the stores of journal and commit in their
		// order. TestKilledAtAnyInstruction tests the real order.
		type store struct {
			to *uint32
			v  uint32
		}
		var seq, base, count, rspProd uint32
		rec, ring := make([]uint32, 256), make([]uint32, 256)
		rspProd = uint32(start)
		var stores []store
		at, s := 0, uint32(0)
		for _, n := range batches {
			stores = append(stores, store{&seq, s + 1}, store{&base, uint32(start) + uint32(at)}, store{&count, uint32(n)})
			for k := range n {
				stores = append(stores, store{&rec[k], response(at + k)})
			}
			s += 2
			stores = append(stores, store{&seq, s})
			for k := range n {
				stores = append(stores, store{&ring[(uint32(start)+uint32(at+k))%256], response(at + k)})
			}
			at += n
			stores = append(stores, store{&rspProd, uint32(start) + uint32(at)})
		}
		// A guest that fills each slot as soon as it can.
		fill := func(from, to int) {
			for i := from; i < to && i < total; i++ {
				ring[(uint32(start)+uint32(i))%256] = request(i)
			}
		}
		fill(0, 256)
		stop := rapid.IntRange(0, len(stores)).Draw(t, "stop")
		for _, st := range stores[:stop] {
			was := int(rspProd - uint32(start))
			*st.to = st.v
			fill(was+256, int(rspProd-uint32(start))+256)
		}

		done := int(rspProd - uint32(start))
		if seq != 0 && seq&1 == 0 && base == rspProd && count != 0 {
			for k := range int(count) {
				ring[(base+uint32(k))%256] = rec[k]
			}
			done += int(count)
			for i := done - int(count); i < done; i++ {
				if got := ring[(uint32(start)+uint32(i))%256]; got != response(i) {
					t.Fatalf("slot %d holds %#x, want its response", i, got)
				}
			}
		}
		for i := done; i < min(total, int(rspProd-uint32(start))+256); i++ {
			if got := ring[(uint32(start)+uint32(i))%256]; got != request(i) {
				t.Fatalf("stopped at %d of %d: slot %d holds %#x, want its request", stop, len(stores), i, got)
			}
		}
	})
}

// TestJournalWithoutRoom: a full run directory is an error, and no SIGBUS.
func TestJournalWithoutRoom(t *testing.T) {
	netns.NeedTUN(t) // for the mount
	dir := t.TempDir()
	must(t, unix.Mount("none", dir, "tmpfs", 0, "size=4096"))
	defer func() { must(t, unix.Unmount(dir, 0)) }()
	must(t, os.WriteFile(filepath.Join(dir, "full"), make([]byte, 4096), 0o600))
	if _, err := OpenJournal(filepath.Join(dir, "ring")); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("got error %v, want %v", err, unix.ENOSPC)
	}
}

// TestAJournalThatIsCutShort costs its vif, and no other: a store beyond the end of the
// file raises SIGBUS.
func TestAJournalThatIsCutShort(t *testing.T) {
	netns.NeedTUN(t)
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		path := filepath.Join(t.TempDir(), "ring")
		j := openJournal(t, path, testRings(8, 9))
		t.Cleanup(func() { _ = j.Close() })
		b := newBed(t, m, setup{cfg: full, journals: []*Journal{j}})
		b.settle()
		must(t, os.Truncate(path, 0))
		f := b.front()
		f.put(packet{frame: udp(18, 1)})
		f.push()
		b.settle()
		if b.breach() == nil {
			t.Error("no breach")
		}
		b.notices, b.warned = nil, nil
		b.disconnect()
		b.connect(m, &setup{cfg: full}) // another one, on the same worker
		want := b.front().put(packet{frame: udp(18, 1)})
		b.front().push()
		b.settle()
		if diff := cmp.Diff(want, b.front().answers()); diff != "" {
			t.Errorf("answers to another vif (-want +got):\n%s", diff)
		}
	})
}

// sizedJournal returns the journal in a file of any size.
func sizedJournal(fd int) (*Journal, error) {
	if err := sizeJournal(fd); err != nil {
		return nil, err
	}
	return MapJournal(fd)
}

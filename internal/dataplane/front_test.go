// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/staticgrant"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xentest"
)

// frontPages is the number of pages of each direction of a front: more than slots,
// so that none is used twice at the same time.
const frontPages = 512

// front is the guest's side of one queue.
type front struct {
	tb     testing.TB
	guest  *xentest.Guest
	mem    []byte // as the guest sees it: tx ring, rx ring, then tx pages and rx pages
	back   []byte // the rings as the backend sees them
	tx     *netif.TxFront
	rx     *netif.RxFront
	grants *grants
	mapper staticgrant.Mapper // of static grants
	events *events
	file   *portPipe   // nil: the backend uses events
	txPort evtchn.Port // on which the guest's tx events arrive at the backend
	rxPort evtchn.Port

	static *staticgrant.Table

	nextTx, nextRx int // pages
	posted         [netif.RxRingSize]netif.RxRequest
}

const (
	ringRef = 8 // the tx ring; the rx ring follows
	txPages = 2 * netif.PageSize
	rxPages = txPages + frontPages*netif.PageSize
	memSize = rxPages + frontPages*netif.PageSize
)

func newFront(tb testing.TB, domid xen.Domid) *front {
	tb.Helper()
	g, err := xentest.New(domid)
	must(tb, err)
	tb.Cleanup(func() { must(tb, g.Close()) })
	f := frontOf(tb, g)
	f.events = newEvents(tb, g)
	f.tx, err = netif.InitTx(f.mem[:netif.PageSize])
	must(tb, err)
	f.rx, err = netif.InitRx(f.mem[netif.PageSize : 2*netif.PageSize])
	must(tb, err)
	return f
}

// frontOf is a front of a new guest, without events. Its memory may be that of a front
// of another process, and have that one's rings.
func frontOf(tb testing.TB, g *xentest.Guest) *front {
	tb.Helper()
	g.GrantRun(ringRef, 2, gntdev.ReadWrite)
	g.GrantRun(firstRef, 2*frontPages, gntdev.ReadWrite)
	f := &front{tb: tb, guest: g, txPort: txPort, rxPort: rxPort}
	f.mem = g.Memory()[:memSize:memSize]
	f.grants = &grants{Gntdev: g.Gntdev(), tb: tb}
	f.mapper = f.grants
	f.back = f.mapped(ringRef, ringRef+1)
	f.static = staticgrant.New(2 * frontPages)
	tb.Cleanup(func() { must(tb, f.static.Close()) })
	return f
}

// mapped maps pages of the guest until the end of the test.
func (f *front) mapped(refs ...xen.Gref) []byte {
	f.tb.Helper()
	m, err := f.grants.Map(f.guest.Domid(), refs, gntdev.ReadWrite)
	must(f.tb, err)
	f.tb.Cleanup(func() { must(f.tb, m.Unmap()) })
	return m.Bytes()
}

// startAt moves both new rings to where they would be after so many slots.
func (f *front) startAt(i netif.Index) {
	f.tx.SetReqProd(i)
	f.tx.Take(uint32(i))
	f.rx.SetReqProd(i)
	f.rx.Take(uint32(i))
	for _, ring := range [][]byte{f.mem[:netif.PageSize], f.mem[netif.PageSize : 2*netif.PageSize]} {
		binary.NativeEndian.PutUint32(ring[4:], uint32(i)+1)  // req_event
		binary.NativeEndian.PutUint32(ring[8:], uint32(i))    // rsp_prod
		binary.NativeEndian.PutUint32(ring[12:], uint32(i)+1) // rsp_event
	}
}

// config is the queue for the backend.
func (f *front) config() QueueConfig {
	var handle Events = f.events
	if f.file != nil {
		handle = f.file
	}
	return QueueConfig{
		TxPage: f.back[:netif.PageSize], RxPage: f.back[netif.PageSize : 2*netif.PageSize],
		TxPort: f.txPort, RxPort: f.rxPort,
		Grants: f.grants, Events: handle,
		Static: f.static,
	}
}

// txPage takes the next page for tx data.
func (f *front) txPage() (ref xen.Gref, page []byte) {
	i := f.nextTx % frontPages
	f.nextTx++
	at := txPages + i*netif.PageSize
	return firstRef + xen.Gref(i), f.mem[at : at+netif.PageSize]
}

// page is the page behind a gref.
func (f *front) page(ref xen.Gref) []byte {
	at := txPages + int(ref-firstRef)*netif.PageSize
	return f.mem[at : at+netif.PageSize]
}

// packet is a packet for the tx ring. What is left out is derived: slots of a
// page each, data at the start of the page.
type packet struct {
	frame  []byte
	flags  netif.TxFlags
	slots  []int // bytes of each data slot
	offset int   // of the data in each page
	extras []netif.ExtraInfo
}

// requests lays a packet out in pages and returns its slots, the first one with
// its real size.
func (f *front) requests(p packet) (r []netif.TxRequest) {
	slots := p.slots
	if slots == nil {
		for n := len(p.frame); ; n -= netif.PageSize - p.offset {
			slots = append(slots, min(n, netif.PageSize-p.offset))
			if n <= netif.PageSize-p.offset {
				break
			}
		}
	}
	rest := p.frame
	for i, n := range slots {
		ref, page := f.txPage()
		copy(page[p.offset:], rest[:n])
		rest = rest[n:]
		q := netif.TxRequest{Gref: ref, Offset: uint16(p.offset), ID: uint16(1000 + f.nextTx), Size: uint16(n)}
		if i < len(slots)-1 {
			q.Flags |= netif.TxMoreData
		}
		r = append(r, q)
	}
	return r
}

// ring puts slots into the tx ring: r[0] with the size of the whole, then the
// extras, then the other slots. It returns the answer that the packet should get
// if it is sent.
func (f *front) ring(r []netif.TxRequest, total int, flags netif.TxFlags, extras ...netif.ExtraInfo) (want []answer) {
	first := r[0]
	first.Size = uint16(total)
	first.Flags |= flags
	if len(extras) > 0 {
		first.Flags |= netif.TxExtraInfo
	}
	f.tx.Put(first)
	want = append(want, answer{first.ID, netif.StatusOkay})
	for i, e := range extras {
		if i < len(extras)-1 {
			e.Flags |= netif.ExtraMore
		}
		f.tx.PutExtra(e)
		want = append(want, answer{0, netif.StatusNull})
	}
	for _, q := range r[1:] {
		f.tx.Put(q)
		want = append(want, answer{q.ID, netif.StatusOkay})
	}
	return want
}

// put puts a packet into the tx ring.
func (f *front) put(p packet) (want []answer) {
	return f.ring(f.requests(p), len(p.frame), p.flags, p.extras...)
}

// push publishes what was put, with an event if the backend asked for one.
func (f *front) push() {
	if f.tx.Push() {
		f.events.send(f.txPort)
	}
}

// answer is the response to a tx slot; those of extras have no id.
type answer struct {
	ID     uint16
	Status netif.Status
}

// errored is want with an error for every data slot.
func errored(want []answer) []answer {
	out := make([]answer, len(want))
	for i, a := range want {
		if out[i] = a; a.Status != netif.StatusNull {
			out[i].Status = netif.StatusError
		}
	}
	return out
}

// answers takes all responses.
func (f *front) answers() (got []answer) {
	f.tb.Helper()
	n, err := f.tx.Responses()
	must(f.tb, err)
	for i := range n {
		r := f.tx.Response(f.tx.RspCons().Add(i))
		a := answer{r.ID, r.Status}
		if a.Status == netif.StatusNull {
			a.ID = 0 // not part of the protocol
		}
		got = append(got, a)
	}
	f.tx.Take(n)
	return got
}

// post gives the backend n rx slots.
func (f *front) post(n int) {
	for range n {
		i := f.nextRx % frontPages
		f.nextRx++
		q := netif.RxRequest{ID: uint16(7*f.nextRx + 3), Gref: firstRef + frontPages + xen.Gref(i)}
		f.posted[f.rx.ReqProd()%netif.RxRingSize] = q
		f.rx.Put(q)
		clear(f.page(q.Gref))
	}
	if f.rx.Push() {
		f.events.send(f.rxPort)
	}
}

// postedRef is the gref of the k-th slot from now that the backend will fill.
func (f *front) postedRef(k int) xen.Gref {
	return f.posted[f.rx.RspCons().Add(uint32(k))%netif.RxRingSize].Gref
}

// delivery is a packet as the guest got it.
type delivery struct {
	Frame    []byte
	Flags    netif.RxFlags
	GSO      netif.GSOInfo
	Hash     *netif.HashInfo
	Headroom uint16
	Slots    int            // extras included
	Statuses []netif.Status // of the data slots
}

func (d delivery) String() string {
	return fmt.Sprintf("%d bytes in %d slots %v, flags %#x, %v", len(d.Frame), d.Slots, d.Statuses, d.Flags, d.GSO)
}

// received takes what is in the rx ring, insisting on the rules.
func (f *front) received() (got []delivery) {
	f.tb.Helper()
	n, err := f.rx.Responses()
	must(f.tb, err)
	cons := f.rx.RspCons()
	for i := uint32(0); i < n; {
		var d delivery
		for first := true; ; first = false {
			if i >= n {
				f.tb.Fatalf("a packet was published in part: %v", d)
			}
			at := cons.Add(i)
			i++
			d.Slots++
			r, q := f.rx.Slot(at).Response(), f.posted[at%netif.RxRingSize]
			if r.ID != q.ID || !first && r.Offset != 0 {
				f.tb.Fatalf("slot %d: response %+v to request %+v", at, r, q)
			}
			if later := netif.RxMoreData; !first && r.Flags&^later != 0 {
				f.tb.Fatalf("slot %d: flags %#x on a later slot", at, r.Flags)
			}
			d.Statuses = append(d.Statuses, r.Status)
			if r.Status > 0 {
				d.Frame = append(d.Frame, f.page(q.Gref)[r.Offset:][:r.Status]...)
			}
			if first {
				d.Flags = r.Flags
			}
			if first && r.Flags&netif.RxExtraInfo != 0 {
				if i >= n {
					f.tb.Fatal("an extra is missing")
				}
				last := netif.ExtraNone
				for more := true; more; {
					e := f.rx.Slot(cons.Add(i)).Extra()
					i++
					d.Slots++
					if e.Type <= last {
						f.tb.Fatalf("extra %+v behind %v", e, last)
					}
					last, more = e.Type, e.More()
					switch e.Type {
					case netif.ExtraGSO:
						d.GSO = e.GSO()
					case netif.ExtraHash:
						h := e.Hash()
						d.Hash = &h
					case netif.ExtraXDP:
						d.Headroom = e.Headroom()
					default:
						f.tb.Fatalf("extra %+v", e)
					}
				}
			}
			if first && r.Offset != d.Headroom {
				f.tb.Fatalf("slot %d: data at %d, but the headroom is %d", at, r.Offset, d.Headroom)
			}
			if r.Flags&netif.RxMoreData == 0 {
				break
			}
		}
		d.Flags &^= netif.RxMoreData | netif.RxExtraInfo
		got = append(got, d)
	}
	f.rx.Take(n)
	return got
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"bytes"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
)

// frame returns n bytes of a frame that is not IP.
func frame(n int) []byte {
	b := bytes.Repeat([]byte{0x5a}, n)
	copy(b, []byte{2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1, 0x88, 0xb5})
	return b
}

// receives posts a buffer and has the host send a frame to it. With more than one queue the
// host's kernel would choose the queue.
func (m *vifModel) receives(rt *rapid.T) {
	if !m.open() || m.queues != 1 {
		rt.Skip()
	}
	w := m.w
	i := rapid.IntRange(0, modelPages).Draw(rt, "page")
	ref := modelRef + xen.Gref(i)
	rx := w.rx[0]
	want := netif.StatusError
	sent := frame(rapid.IntRange(60, 1514).Draw(rt, "bytes"))
	switch {
	case i == modelPages:
		ref = 0xfffffff0
		m.drops["rx_grant"]++
	case m.readOnlyStatic(0, ref):
		m.drops["rx_readonly"]++
	case !m.pages[i].live || !m.pages[i].writable:
		m.drops["rx_grant"]++
	default:
		want = netif.Status(len(sent))
		clear(w.host.Page(ref))
	}
	m.id++
	rx.Put(netif.RxRequest{ID: m.id, Gref: ref})
	rx.Push()
	w.host.kick(w.conns[0].rxPort)
	_, err := unix.Write(m.fd, sent)
	m.must(err)
	m.until("a packet", func() bool { n, err := rx.Responses(); m.must(err); return n > 0 })
	r := rx.Slot(rx.RspCons()).Response()
	rx.Take(1)
	if r.ID != m.id || r.Status != want || r.Offset != 0 || r.Flags&^netif.RxDataValidated != 0 {
		rt.Fatalf("response %+v, want id %d and status %d", r, m.id, want)
	}
	if want > 0 && !bytes.Equal(w.host.Page(ref)[:len(sent)+8], append(sent, make([]byte, 8)...)) {
		rt.Fatal("the buffer holds another frame, or more")
	}
	m.dropped()
}

// readOnlyStatic reports whether a page is a static grant of a queue, and read-only.
func (m *vifModel) readOnlyStatic(queue int, ref xen.Gref) bool {
	return m.static[queue][ref]
}

// modelPacket is a packet from the guest with its answers and its fate.
type modelPacket struct {
	reqs   []netif.TxRequest
	extra  *netif.ExtraInfo // behind the first
	status []netif.Status   // of each request
	drop   string           // a counter, or empty
}

// sends sends some packets, good and bad, and compares their answers.
func (m *vifModel) sends(rt *rapid.T) {
	if !m.open() {
		rt.Skip()
	}
	w := m.w
	q := rapid.IntRange(0, m.queues-1).Draw(rt, "queue")
	var want []netif.TxResponse
	tx := w.tx[q]
	for range rapid.IntRange(1, 6).Draw(rt, "packets") {
		p := m.packet(rt)
		for i, r := range p.reqs {
			m.id++
			r.ID = m.id
			if i < len(p.reqs)-1 {
				r.Flags |= netif.TxMoreData
			}
			if i == 0 && p.extra != nil {
				r.Flags |= netif.TxExtraInfo
			}
			tx.Put(r)
			want = append(want, netif.TxResponse{ID: r.ID, Status: p.status[i]})
			if i == 0 && p.extra != nil {
				tx.PutExtra(*p.extra)
				want = append(want, netif.TxResponse{Status: netif.StatusNull})
			}
		}
		if p.drop != "" {
			m.drops[p.drop]++
		}
	}
	tx.Push()
	w.host.kick(w.conns[q].txPort)
	m.until("answers", func() bool { n, err := tx.Responses(); m.must(err); return int(n) == len(want) })
	var got []netif.TxResponse
	for range want {
		got = append(got, tx.Response(tx.RspCons()))
		tx.Take(1)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		rt.Fatalf("answers (-want +got):\n%s", diff)
	}
}

// drawPage draws a page of the guest, or one that does not exist.
func (m *vifModel) drawPage(rt *rapid.T) (ref xen.Gref, readable bool) {
	i := rapid.IntRange(0, modelPages).Draw(rt, "page")
	if i == modelPages {
		return 0xfffffff0, false
	}
	return modelRef + xen.Gref(i), m.pages[i].live
}

// packet draws a packet.
func (m *vifModel) packet(rt *rapid.T) (p modelPacket) {
	kind := rapid.IntRange(0, 10).Draw(rt, "kind")
	one := func(q netif.TxRequest, drop string) modelPacket {
		p := modelPacket{reqs: []netif.TxRequest{q}, status: []netif.Status{netif.StatusError}, drop: drop}
		return p
	}
	switch kind {
	case 0, 1, 2:
		return m.slots(rt, []int{1, 3, 18}[kind])
	case 3:
		return one(netif.TxRequest{Gref: bufferGref, Offset: 4000, Size: 97}, "tx_cross_page")
	case 4:
		return one(netif.TxRequest{Gref: bufferGref, Size: uint16(rapid.IntRange(0, 13).Draw(rt, "bytes"))}, "tx_too_short")
	case 5:
		p = one(netif.TxRequest{Gref: bufferGref, Size: 100}, "tx_size_mismatch")
		p.reqs, p.status = append(p.reqs, netif.TxRequest{Gref: bufferGref, Size: 101}), append(p.status, netif.StatusError)
	case 6:
		p = one(netif.TxRequest{Gref: bufferGref, Size: 1000}, "tx_too_many_slots")
		for range rapid.IntRange(19, 20).Draw(rt, "later") {
			p.reqs, p.status = append(p.reqs, netif.TxRequest{Gref: bufferGref, Size: 10}), append(p.status, netif.StatusError)
		}
	case 7:
		e := netif.NewGSO(netif.GSOInfo{Type: netif.GSOTCPv4, Size: rapid.SampledFrom([]uint16{0, 7, 1400}).Draw(rt, "mss")})
		p = one(netif.TxRequest{Gref: bufferGref, Size: 60}, "tx_bad_gso")
		if e.GSO().Size == 7 {
			p.drop = "tx_gso_too_small"
		}
		p.extra = &e
	case 8:
		p = one(netif.TxRequest{Gref: bufferGref, Flags: netif.TxCsumBlank, Size: 60}, "tx_bad_csum")
		p.status[0] = netif.StatusOkay // it was taken from the guest
	default:
		return m.mcastEdit(rt, kind == 9)
	}
	return p
}

// slots draws a packet of n slots, each in any page. Only slots that cannot be copied are
// answered with an error.
func (m *vifModel) slots(rt *rapid.T, n int) (p modelPacket) {
	total := 0
	for i := range n {
		ref, readable := m.drawPage(rt)
		size := rapid.IntRange(0, 80).Draw(rt, "bytes")
		if i == 0 {
			size += 14
		}
		status := netif.StatusOkay
		if !readable && size > 0 {
			status, p.drop = netif.StatusError, "tx_grant"
		}
		total += size
		p.reqs = append(p.reqs, netif.TxRequest{Gref: ref, Offset: 3000, Size: uint16(size)})
		p.status = append(p.status, status)
	}
	p.reqs[0].Size = uint16(total)
	return p
}

// mcastEdit draws an edit of the multicast list, which is shared by all queues.
func (m *vifModel) mcastEdit(rt *rapid.T, add bool) modelPacket {
	addr := [6]byte{1, 0, 0x5e, 0, 0, byte(rapid.IntRange(0, 80).Draw(rt, "address"))}
	if rapid.IntRange(0, 9).Draw(rt, "unicast") == 0 {
		addr[0] = 2
	}
	e := netif.NewMcast(add, addr)
	p := modelPacket{reqs: []netif.TxRequest{{Gref: 0xfffffff0, Size: 60}}, extra: &e, status: []netif.Status{netif.StatusOkay}}
	switch {
	case !add:
		delete(m.mcast, addr)
	case addr[0]&1 == 0 || !m.mcast[addr] && len(m.mcast) == 64:
		p.status[0], p.drop = netif.StatusError, "mcast_full"
	default:
		m.mcast[addr] = true
	}
	return p
}

// breaks breaks the protocol of a ring: the vif goes into quarantine, and answers no more.
func (m *vifModel) breaks(rt *rapid.T) {
	if !m.open() {
		rt.Skip()
	}
	w := m.w
	q := rapid.IntRange(0, m.queues-1).Draw(rt, "queue")
	tx, rx := w.tx[q], w.rx[q]
	put := func(n int, flags netif.TxFlags) {
		for range n {
			tx.Put(netif.TxRequest{Gref: bufferGref, Flags: flags, Size: 100})
		}
		tx.Push()
	}
	kinds := 5
	if m.queues == 1 {
		kinds = 6
	}
	switch rapid.IntRange(0, kinds).Draw(rt, "breach") {
	case 0:
		put(1, netif.TxMoreData)
	case 1:
		put(1, netif.TxExtraInfo)
	case 2:
		tx.Put(netif.TxRequest{Gref: bufferGref, Flags: netif.TxExtraInfo, Size: 100})
		tx.PutExtra(netif.ExtraInfo{Type: netif.ExtraType(rapid.SampledFrom([]byte{0, 5, 9, 255}).Draw(rt, "type"))})
		tx.Push()
	case 3:
		put(rapid.IntRange(22, 200).Draw(rt, "slots"), netif.TxMoreData)
	case 4:
		tx.SetReqProd(tx.ReqProd().Add(rapid.Uint32Range(257, 1<<31).Draw(rt, "ahead")))
	case 5:
		tx.SetReqProd(tx.ReqProd().Add(-rapid.Uint32Range(1, 1<<30).Draw(rt, "back")))
	default:
		// It is noticed when there is a packet for the guest.
		rx.SetReqProd(rx.ReqProd().Add(rapid.Uint32Range(257, 1<<31).Draw(rt, "ahead")))
		_, err := unix.Write(m.fd, frame(60))
		m.must(err)
	}
	w.host.kick(w.conns[q].txPort)
	w.host.kick(w.conns[q].rxPort)
	m.breach = true
	for w.status().Quarantine == "" {
		select {
		case <-w.v.notices:
			w.v.guard(w.t.Context(), func() { w.v.handleNotices(w.t.Context()) })
		case <-time.After(20 * time.Second):
			rt.Fatal("the breach is not noticed")
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package ringscript

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
)

var errNoRoom = errors.New("the ring has no free slot")

// target is a buffer without data from the script: its grant reference.
type target struct {
	kind string
	ref  xen.Gref // with kind "gref"
}

// isTarget reports whether a word names a buffer. No frame may have such a name.
func isTarget(w string) bool {
	switch w {
	case "same", "freed", "foreign", "readonly", "ring", "page":
		return true
	}
	return strings.HasPrefix(w, "gref=")
}

// target reads the name of a buffer.
func (a *args) target(w string) target {
	if n, ok := strings.CutPrefix(w, "gref="); ok {
		return target{"gref", xen.Gref(a.number("gref", n, 0, 1<<32-1))}
	}
	return target{kind: w}
}

// ref returns the reference of a target, and its memory if it is a fresh page.
func (p *player) ref(t target, q *queue) (ref xen.Gref, mem []byte, err error) {
	switch t.kind {
	case "gref":
		ref = t.ref
	case "same":
		ref = p.last
	case "freed":
		ref, err = p.freedRef()
	case "foreign":
		ref = p.foreign.Refs()[0]
	case "readonly":
		ref = p.readonly.Refs()[0]
	case "ring":
		ref = q.rings.Refs()[0]
	case "page":
		mem, ref = p.rx.page()
		clear(mem)
	}
	return ref, mem, err
}

// txDirective puts one request for each id.
type txDirective struct {
	ids    span
	piece  *piece // or
	target target
	offset uint16
	flags  netif.TxFlags
	sized  bool
	size   uint16
}

func (p *player) putTx(t *txDirective) error {
	q, err := p.queue()
	if err != nil {
		return err
	}
	for k := range t.ids.len() {
		if q.tx.Free() == 0 {
			return errNoRoom
		}
		r := netif.TxRequest{ID: t.ids.from + uint16(k), Offset: t.offset, Flags: t.flags, Size: t.size}
		if t.piece != nil {
			var mem []byte
			mem, r.Gref = p.tx.page()
			clear(mem)
			data := t.piece.part(k)
			copy(mem[t.offset:], data)
			if !t.sized {
				r.Size = uint16(len(data))
			}
		} else if r.Gref, _, err = p.ref(t.target, q); err != nil {
			return err
		}
		p.last = r.Gref
		q.tx.Put(r)
	}
	return nil
}

func (p *player) putExtra(e netif.ExtraInfo) error {
	q, err := p.queue()
	if err != nil {
		return err
	}
	if q.tx.Free() == 0 {
		return errNoRoom
	}
	q.tx.PutExtra(e)
	return nil
}

func (p *player) putRx(ids span, t target) error {
	q, err := p.queue()
	if err != nil {
		return err
	}
	for k := range ids.len() {
		if q.rx.Free() == 0 {
			return errNoRoom
		}
		id := ids.from + uint16(k)
		ref, mem, err := p.ref(t, q)
		if err != nil {
			return err
		}
		q.buffers[id] = mem
		p.last = ref
		q.rx.Put(netif.RxRequest{ID: id, Gref: ref})
	}
	return nil
}

// push publishes both rings of the queue, with the events that the backend asked
// for.
func (p *player) push() error {
	q, err := p.queue()
	if err != nil {
		return err
	}
	tx, rx := q.tx.Push(), q.rx.Push()
	if tx {
		err = q.events.Notify(q.txPort)
	}
	if rx && !(tx && q.rxPort == q.txPort) {
		err = errors.Join(err, q.events.Notify(q.rxPort))
	}
	return err
}

// publish publishes both rings and sends no event.
func (p *player) publish() error {
	q, err := p.queue()
	if err != nil {
		return err
	}
	q.tx.Push()
	q.rx.Push()
	return nil
}

// kick sends an event on each channel of the queue, asked for or not.
func (p *player) kick() error {
	q, err := p.queue()
	if err != nil {
		return err
	}
	err = q.events.Notify(q.txPort)
	if q.rxPort != q.txPort {
		err = errors.Join(err, q.events.Notify(q.rxPort))
	}
	return err
}

// moveReqProd adds to a ring's req_prod without filling any slot.
func (p *player) moveReqProd(ring string, by uint32) error {
	if ring == "control" {
		return p.moveControl(by)
	}
	q, err := p.queue()
	if err != nil {
		return err
	}
	if ring == "rx" {
		q.rx.SetReqProd(q.rx.ReqProd().Add(by))
	} else {
		q.tx.SetReqProd(q.tx.ReqProd().Add(by))
	}
	return nil
}

// setRspEvent asks for an event at the n-th response from now.
func (p *player) setRspEvent(rx bool, n netif.Index) error {
	q, err := p.queue()
	if err != nil {
		return err
	}
	if rx {
		_, err = q.rx.ArmFor(uint32(n))
	} else {
		_, err = q.tx.ArmFor(uint32(n))
	}
	return err
}

// settled checks that the script has read all responses, and that refused messages have
// changed no setting.
func (p *player) settled() error {
	for i, q := range p.queues {
		tx, rx := q.tx.State(), q.rx.State()
		if tx.RspProd != tx.ReqCons || rx.RspProd != rx.ReqCons {
			return fmt.Errorf("queue %d: %d tx and %d rx responses were not looked at", i,
				tx.RspProd.Sub(tx.ReqCons), rx.RspProd.Sub(rx.ReqCons))
		}
	}
	return errors.Join(p.ctrl.settled(), p.refused())
}

// answers takes tx responses and checks them. It waits until there are enough. If none is
// wanted, it checks that there is none now.
func (p *player) answers(want []string) (string, error) {
	q, err := p.queue()
	if err != nil {
		return "", err
	}
	err = p.until(func() (bool, error) {
		n, err := q.tx.Responses()
		return int(n) >= len(want), err
	})
	n, rerr := q.tx.Responses()
	if rerr != nil {
		return "", rerr
	}
	var got []string
	for range n {
		r := q.tx.Response(q.tx.RspCons())
		q.tx.Take(1)
		if r.Status == netif.StatusNull {
			got = append(got, "null")
		} else {
			got = append(got, fmt.Sprintf("%d=%v", r.ID, r.Status))
		}
	}
	return same("answers", got, want, err)
}

// same compares rows, and returns them in short form.
func same(what string, got, want []string, err error) (string, error) {
	g, w := shortly(got), shortly(want)
	if g != w {
		err = errors.Join(differs(what, g, w), err)
	}
	return strings.TrimSpace(what + " " + g), err
}

// shortly joins equal neighbours: 1=okay 2=okay becomes 1..2=okay.
func shortly(rows []string) string {
	var b strings.Builder
	for i := 0; i < len(rows); {
		id, rest, ok := strings.Cut(rows[i], "=")
		from, err := strconv.Atoi(id)
		n := 1
		if ok && err == nil {
			for i+n < len(rows) && rows[i+n] == fmt.Sprintf("%d=%s", from+n, rest) {
				n++
			}
		}
		if i > 0 {
			b.WriteByte(' ')
		}
		if n > 1 {
			fmt.Fprintf(&b, "%d..%d=%s", from, from+n-1, rest)
		} else {
			b.WriteString(rows[i])
		}
		i += n
	}
	return b.String()
}

// filled takes rx responses and checks them, as answers does.
func (p *player) filled(want []string) (string, error) {
	q, err := p.queue()
	if err != nil {
		return "", err
	}
	err = p.until(func() (bool, error) {
		n, err := q.rx.Responses()
		return int(n) >= len(want), err
	})
	n, rerr := q.rx.Responses()
	if rerr != nil {
		return "", rerr
	}
	var got []string
	extra := false
	for range n {
		s := q.rx.Slot(q.rx.RspCons())
		q.rx.Take(1)
		if extra {
			e := s.Extra()
			extra = e.More()
			got = append(got, sayExtra(e))
			continue
		}
		r := s.Response()
		extra = r.Flags&netif.RxExtraInfo != 0
		q.got[r.ID] = r
		got = append(got, sayRx(r))
	}
	return same("filled", got, want, err)
}

func sayExtra(e netif.ExtraInfo) string {
	switch e.Type {
	case netif.ExtraGSO:
		g := e.GSO()
		return fmt.Sprintf("extra=gso:%v:%d", g.Type, g.Size)
	case netif.ExtraHash:
		if h := e.Hash(); h.Algorithm == netif.HashAlgorithmToeplitz && int(h.Type) < len(hashTypes) {
			return fmt.Sprintf("extra=hash:%s:%08x", hashTypes[h.Type], h.Value)
		}
	case netif.ExtraXDP:
		return fmt.Sprintf("extra=xdp:%d", e.Headroom())
	}
	return fmt.Sprintf("extra=%v", e.Type)
}

// hashTypes are the types of hash, by number.
var hashTypes = [...]string{
	netif.HashIPv4: "ipv4", netif.HashIPv4TCP: "ipv4-tcp", netif.HashIPv6: "ipv6", netif.HashIPv6TCP: "ipv6-tcp",
}

// sayRx formats a response as ID=STATUS[@OFFSET][:FLAGS].
func sayRx(r netif.RxResponse) string {
	s := fmt.Sprintf("%d=", r.ID)
	if r.Status < 0 {
		s += r.Status.String()
	} else {
		s += strconv.Itoa(int(r.Status))
	}
	if r.Offset != 0 {
		s += fmt.Sprintf("@%d", r.Offset)
	}
	sep := ":"
	for _, f := range []struct {
		flag netif.RxFlags
		name string
	}{
		{netif.RxDataValidated, "valid"}, {netif.RxCsumBlank, "csum"}, {netif.RxMoreData, "more"},
		{netif.RxExtraInfo, "extra"}, {netif.RxGSOPrefix, "gso-prefix"},
	} {
		if r.Flags&f.flag != 0 {
			s += sep + f.name
			sep = "+"
		}
	}
	return s
}

// content checks that the buffers of these ids hold the frame, and that no byte was
// written behind it.
func (p *player) content(f *frame, ids []uint16) (string, error) {
	q, err := p.queue()
	if err != nil {
		return "", err
	}
	var got []byte
	for _, id := range ids {
		r, mem := q.got[id], q.buffers[id]
		end := int(r.Offset) + int(r.Status)
		if mem == nil || r.Status < 0 || end > len(mem) {
			return "", fmt.Errorf("buffer %d was not filled with data", id)
		}
		got = append(got, mem[r.Offset:end]...)
		if len(bytes.Trim(mem[end:], "\x00")) > 0 || len(bytes.Trim(mem[:r.Offset], "\x00")) > 0 {
			return "", fmt.Errorf("buffer %d was written beside the data", id)
		}
	}
	if !bytes.Equal(got, f.bytes) {
		return "", fmt.Errorf("content: got %d bytes that begin % x, want %s: %d bytes that begin % x", len(got), got[:min(len(got), 64)],
			f.name, len(f.bytes), f.bytes[:min(len(f.bytes), 64)])
	}
	return "content " + f.name, nil
}

// armed waits until the backend asks for an event at the ahead-th request from
// the one put next.
func (p *player) armed(ring string, ahead netif.Index) (string, error) {
	q, err := p.queue()
	if err != nil {
		return "", err
	}
	var off netif.Index
	err = p.until(func() (bool, error) {
		s := q.tx.State()
		if ring == "rx" {
			s = q.rx.State()
		}
		off = s.ReqEvent - s.ReqProd
		return off == ahead, nil
	})
	if err != nil {
		err = differs("req_event - req_prod", strconv.Itoa(int(int32(off))), strconv.Itoa(int(ahead)))
	}
	return fmt.Sprintf("armed %s %d", ring, off), err
}

// event waits for an event on the channel of a ring, or checks that none has
// come. Events on the other channel are an error.
func (p *player) event(want string) (string, error) {
	q, err := p.queue()
	if err != nil {
		return "", err
	}
	got := "none"
	var ports [2]evtchn.Port
	err = p.until(func() (bool, error) {
		n, err := q.events.Pending(ports[:])
		for _, port := range ports[:n] {
			switch {
			case port == q.txPort && (got == "none" || got == "tx"):
				got = "tx"
			case got == "none" || got == "rx":
				got = "rx"
			default:
				got = "both"
			}
		}
		if err == nil && n > 0 {
			err = q.events.Unmask(ports[:n])
		}
		return got == want || n > 0, err
	})
	if err != nil || got != want {
		err = errors.Join(differs("event", got, want), err)
	}
	return "event " + got, err
}

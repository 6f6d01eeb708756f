// SPDX-License-Identifier: Apache-2.0

package ringscript

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/netbackd/netbackd/internal/lab/netfront"
	"github.com/netbackd/netbackd/pkg/ctrlring"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntalloc"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
)

var errNoControl = errors.New("there is no control ring")

// control is a control ring. Neither end exists if its page belongs to no protocol.
type control struct {
	page   *gntalloc.Pages
	slot   *netif.CtrlFront
	stream *ctrlring.StreamFront
	events netfront.Events
	port   evtchn.Port
	lastID uint16
	sent   map[uint16][]netif.CtrlType // without response, by id, in their order
}

// close frees everything. The backend may still have the ring mapped.
func (c *control) close() error {
	if c == nil {
		return nil
	}
	var errs []error
	if c.events != nil {
		errs = append(errs, c.events.Close())
	}
	if c.page != nil {
		errs = append(errs, c.page.Free())
	}
	return errors.Join(errs...)
}

// settled checks that the script has read all responses.
func (c *control) settled() error {
	if c == nil || c.slot == nil {
		return nil
	}
	if s := c.slot.State(); s.RspProd != s.ReqCons {
		return fmt.Errorf("control ring: %d responses were not looked at", s.RspProd.Sub(s.ReqCons))
	}
	return nil
}

// newControl makes a control ring. The next offer publishes it with the queues.
func (p *player) newControl(kind string) (err error) {
	if len(p.queues) == 0 {
		return errNoRings
	}
	if p.ctrl != nil {
		p.past = append(p.past, p.ctrl)
	}
	c := &control{sent: map[uint16][]netif.CtrlType{}}
	p.ctrl = c
	if c.page, err = p.host.Pages.Alloc(p.peer, 1, true); err != nil {
		return err
	}
	switch kind {
	case "slot":
		c.slot, err = netif.InitCtrl(c.page.Bytes())
	case "stream":
		var f ctrlring.Front
		f, err = ctrlring.Init(c.page.Bytes(), ctrlring.Stream)
		c.stream, _ = f.(*ctrlring.StreamFront)
	case "neither":
		for i := range c.page.Bytes() {
			c.page.Bytes()[i] = 0x5a
		}
	}
	if err != nil {
		return err
	}
	if c.events, err = p.host.Events(); err != nil {
		return err
	}
	c.port, err = c.events.BindUnbound(p.peer)
	return err
}

func (p *player) kickControl() error {
	if p.ctrl == nil {
		return errNoControl
	}
	return p.ctrl.events.Notify(p.ctrl.port)
}

// moveControl adds to req_prod of the control ring, and sends an event: the backend may
// have asked for one at another index.
func (p *player) moveControl(by uint32) error {
	switch c := p.ctrl; {
	case c == nil:
		return errNoControl
	case c.slot != nil:
		c.slot.SetReqProd(c.slot.ReqProd().Add(by))
	case c.stream != nil:
		c.stream.SetReqProd(c.stream.ReqProd() + by)
	}
	return p.kickControl()
}

// moveRspCons adds to rsp_cons of a ring of byte streams. It also publishes the sent
// requests, since the backend reads rsp_cons when it answers.
func (p *player) moveRspCons(by uint32) error {
	if p.ctrl == nil || p.ctrl.stream == nil {
		return errNoControl
	}
	p.ctrl.stream.SetRspCons(p.ctrl.stream.RspCons() + by)
	// The error that rsp_prod is invalid is the effect that the script wants.
	_, _ = p.ctrl.stream.Turn()
	return p.kickControl()
}

// message has the page that messages name, granted once for writing and once for reading
// only, and the content that the script has put there.
type message struct {
	page  *gntalloc.Pages
	bytes []byte
}

// setPage fills the page.
func (p *player) setPage(b []byte) error {
	if len(b) > netif.PageSize {
		return fmt.Errorf("a page has %d bytes, not %d", netif.PageSize, len(b))
	}
	p.msg.bytes = b
	for _, g := range []*gntalloc.Pages{p.msg.page, p.readonly} {
		clear(g.Bytes())
		copy(g.Bytes(), b)
	}
	return nil
}

// untouched checks that the page is unchanged, except for the statuses of the first n
// entries of a list.
func (p *player) untouched(n uint32) error {
	is := bytes.Clone(p.msg.page.Bytes())
	now := bytes.Clone(is)
	want := make([]byte, len(now))
	copy(want, p.msg.bytes)
	for i := range min(int(n), len(now)/grefEntry) {
		copy(now[i*grefEntry+6:], want[i*grefEntry+6:][:2])
	}
	if !bytes.Equal(now, want) {
		return errors.New("the page that the message names was written")
	}
	p.msg.bytes = is
	return nil
}

// grefEntry is the size of struct xen_netif_gref.
const grefEntry = 8

// statuses describes the status fields of the list.
func (p *player) statuses(n int) []string {
	var got []string
	for i := range n {
		s := binary.LittleEndian.Uint16(p.msg.page.Bytes()[i*grefEntry+6:])
		got = append(got, fmt.Sprintf("%d=%s", i, sayStatus(netif.CtrlStatus(s))))
	}
	return got
}

// untouchedStatus is the value of the status fields of a list that the backend
// has not written.
const untouchedStatus = 7

func sayStatus(s netif.CtrlStatus) string {
	if s == untouchedStatus {
		return "untouched"
	}
	return s.String()
}

// ctrlMessage is a message of a script.
type ctrlMessage struct {
	ids  span // of a ring of slots; 0: any
	typ  uint32
	raw  bool     // the bytes are not a message
	size int64    // the size in a byte stream's header; -1: the actual size
	data []string // of a ring of slots
	make content  // of a byte stream
	text string
}

// put puts a message in the ring. The next push publishes it.
func (p *player) put(m *ctrlMessage) error {
	c := p.ctrl
	switch {
	case c == nil:
		return errNoControl
	case c.slot != nil:
		return p.putSlot(m)
	case c.stream != nil:
		b, err := m.make(p)
		if err != nil {
			return err
		}
		if !m.raw {
			size := uint32(len(b))
			if m.size >= 0 {
				size = uint32(m.size)
			}
			head := binary.LittleEndian.AppendUint32(nil, m.typ)
			b = append(binary.LittleEndian.AppendUint32(head, size), b...)
		}
		c.stream.SendBytes(b)
		return nil
	}
	return errors.New("the control ring is of no protocol")
}

func (p *player) putSlot(m *ctrlMessage) error {
	c := p.ctrl
	r := netif.CtrlRequest{Type: netif.CtrlType(m.typ)}
	for i, w := range m.data {
		n, err := p.word(w)
		if err != nil {
			return err
		}
		r.Data[i] = n
	}
	for k := range m.ids.len() {
		if c.slot.Free() == 0 {
			return errNoRoom
		}
		if r.ID = m.ids.from + uint16(k); r.ID == 0 {
			c.lastID += 0x3fff // an arbitrary step, so that no id is the number of a slot
			r.ID = c.lastID
		}
		c.slot.Put(r)
		c.sent[r.ID] = append(c.sent[r.ID], r.Type)
	}
	return nil
}

// word returns a word of a message: a number, or a reference.
func (p *player) word(w string) (uint32, error) {
	switch w {
	case "page":
		return uint32(p.msg.page.Refs()[0]), nil
	case "control":
		return uint32(p.ctrl.page.Refs()[0]), nil
	}
	if n, err := strconv.ParseUint(w, 0, 32); err == nil {
		return uint32(n), nil
	}
	refs, err := p.refs(w)
	if err != nil {
		return 0, err
	}
	return uint32(refs[0]), nil
}

// refs returns the grant references that a word names: one, or a range of a pool.
func (p *player) refs(w string) ([]xen.Gref, error) {
	if name, row, ok := strings.Cut(strings.TrimSuffix(w, "]"), "["); ok {
		from, to, err := readRow(row)
		if err != nil {
			return nil, err
		}
		return p.pool(name).pages.Refs()[from : to+1], nil
	}
	q, err := p.queue()
	if err != nil {
		return nil, err
	}
	t := target{kind: w}
	if n, ok := strings.CutPrefix(w, "gref="); ok {
		v, err := strconv.ParseUint(n, 0, 32)
		if err != nil {
			return nil, err
		}
		t = target{"gref", xen.Gref(v)}
	}
	ref, _, err := p.ref(t, q)
	return []xen.Gref{ref}, err
}

// pushControl publishes the messages.
func (p *player) pushControl() error {
	c := p.ctrl
	switch {
	case c == nil:
		return errNoControl
	case c.slot != nil:
		if c.slot.Push() {
			return p.kickControl()
		}
	case c.stream != nil:
		notify, err := c.stream.Turn()
		if notify {
			err = errors.Join(err, p.kickControl())
		}
		return err
	}
	return nil
}

// reply is a response of either kind of ring.
type reply struct {
	id     uint16 // of a ring of slots
	status netif.CtrlStatus
	data   uint32
}

func (r reply) String() string {
	if r.data != 0 {
		return fmt.Sprintf("%v %d", r.status, r.data)
	}
	return r.status.String()
}

// takeReply takes the next response, if there is one.
func (p *player) takeReply() (r reply, ok bool, err error) {
	c := p.ctrl
	if c.stream != nil {
		if err := p.pushControl(); err != nil {
			return r, false, err
		}
		s, ok := c.stream.Response()
		if ok {
			// The script checks whether there are more.
			c.stream.SendBytes(nil)
		}
		return reply{status: s.Status, data: s.Data}, ok, nil
	}
	n, err := c.slot.Responses()
	if n == 0 || err != nil {
		return r, false, err
	}
	s := c.slot.Response(c.slot.RspCons())
	c.slot.Take(1)
	sent := c.sent[s.ID]
	if len(sent) == 0 || s.Type != sent[0] {
		return r, false, fmt.Errorf("response %+v is to nothing that was sent", s)
	}
	c.sent[s.ID] = sent[1:]
	return reply{s.ID, s.Status, s.Data}, true, nil
}

// replies takes n responses, or all that are available if n is 0.
func (p *player) replies(n int) (got []reply, err error) {
	if p.ctrl == nil || p.ctrl.slot == nil && p.ctrl.stream == nil {
		return nil, errNoControl
	}
	if err := p.pushControl(); err != nil {
		return nil, err
	}
	var written uint32 // of a byte stream, which moves at most one ring of bytes per look
	err = p.until(func() (bool, error) {
		for {
			r, ok, err := p.takeReply()
			if err != nil {
				return false, err
			}
			if !ok {
				if s := p.ctrl.stream; s != nil && s.ReqProd() != written && len(got) < n {
					written = s.ReqProd()
					return false, errProgress
				}
				return len(got) >= n, nil
			}
			got = append(got, r)
		}
	})
	return got, err
}

// checkReplies takes responses and checks them.
func (p *player) checkReplies(want []string) (string, error) {
	replies, err := p.replies(len(want))
	var got []string
	for _, r := range replies {
		s := r.status.String()
		if r.data != 0 {
			s += ":" + strconv.FormatUint(uint64(r.data), 10)
		}
		if p.ctrl.slot != nil {
			s = fmt.Sprintf("%d=%s", r.id, s)
		}
		got = append(got, s)
	}
	return same("replies", got, want, err)
}

// refusing records the settings in force before messages that are to be refused. It asks
// the umpire once for a series of such messages, since the question takes longer than a
// message.
func (p *player) refusing() (err error) {
	if p.inForce == "" {
		p.inForce, err = p.ask("in-force")
	}
	return err
}

// refused checks that the refused messages have changed no setting.
func (p *player) refused() error {
	if p.inForce == "" {
		return nil
	}
	before := p.inForce
	p.inForce = ""
	after, err := p.ask("in-force")
	if err == nil && after != before {
		err = differs("of the last messages all were refused, but in force", after, before)
	}
	return err
}

// call sends a message and checks its response.
func (p *player) call(m *ctrlMessage, want reply) (string, error) {
	prepare := p.refused
	if want.status != netif.CtrlSuccess {
		prepare = p.refusing
	}
	if err := prepare(); err != nil {
		return "", err
	}
	if err := p.put(m); err != nil {
		return "", err
	}
	got, err := p.replies(1)
	for i := range got {
		got[i].id = 0 // the id is the message's
	}
	if err != nil || len(got) != 1 || got[0] != want {
		return "", errors.Join(differs("response", fmt.Sprint(got), want.String()), err)
	}
	written := uint32(0)
	if m.typ == uint32(netif.CtrlDelGrefMapping) && want.status == netif.CtrlSuccess && p.ctrl.slot != nil {
		written, _ = p.word(m.data[2])
	}
	return m.text + ": " + want.String(), p.untouched(written)
}

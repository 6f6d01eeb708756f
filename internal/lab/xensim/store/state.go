// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"syscall"
	"time"

	"github.com/netbackd/netbackd/pkg/xenstore"
)

// Reasons of the store for the end of a connection.
var (
	// ErrOverrun: the client did not read, and its queue was full.
	ErrOverrun = errors.New("client does not take its replies and events")

	// ErrReleased: RELEASE cut the domain off.
	ErrReleased = errors.New("domain was released")

	// ErrDomainDied: the domain is gone.
	ErrDomainDied = errors.New("domain died")
)

// state is the whole state of xenstored except the bytes of connections. It is not safe
// for concurrent use, starts no goroutine and never waits: serving a request puts messages
// in the queues of its own and other connections.
type state struct {
	quota Quota
	now   func() time.Time

	nodes      map[string]*node
	generation uint64 // of the last change

	domains      map[uint32]*domain
	conns        []*conn // in the order of their creation, which is the order of events
	special      map[string][]perm
	transactions int // open ones of all connections
	limiter      limiter
}

// newState returns the store after boot: domain 0 and the few nodes that xenstored makes
// itself.
func newState(q Quota) *state {
	q = q.withDefaults()
	closed := []perm{{domid: 0, access: xenstore.AccessNone}}
	s := &state{
		quota:   q,
		now:     time.Now,
		nodes:   map[string]*node{},
		domains: map[uint32]*domain{},
		special: map[string][]perm{
			xenstore.IntroduceDomain: closed,
			xenstore.ReleaseDomain:   closed,
		},
		limiter: newLimiter(q.WriteRate),
	}
	s.created(0)
	s.introduce(s.domains[0])
	for _, n := range []struct{ path, children string }{
		{"/", "tool\x00"},
		{"/tool", "xenstored\x00"},
		{"/tool/xenstored", ""},
	} {
		s.generation++
		s.store(n.path, &node{generation: s.generation, perms: closed, children: n.children}, false)
		s.countNode(nil, 0, 1)
	}
	return s
}

// request is one request while it is served, and until its reply and the events that it
// caused are sent. The store does not read from a domain with too many such requests.
type request struct {
	conn    *conn // nil for changes by the store itself
	header  xenstore.Header
	payload []byte
	tx      *transaction
	waiting int // messages, and the request itself while it is served
}

// done decrements waiting.
func (r *request) done() {
	if r.waiting--; r.waiting == 0 && r.conn.dom != nil {
		r.conn.dom.outstanding--
	}
}

// operation serves one type of request.
type operation struct {
	// serve replies, or returns the error to reply with.
	serve func(*state, *request) error

	privileged bool // not for guests
	anyTx      bool // the transaction id is ignored
}

// operations is indexed by the message type. The gaps are messages that only xenstored
// sends, and types that 4.17 does not have.
var operations = [...]operation{
	xenstore.MsgControl:            {serve: (*state).serveControl, privileged: true},
	xenstore.MsgDirectory:          {serve: (*state).serveDirectory},
	xenstore.MsgRead:               {serve: (*state).serveRead},
	xenstore.MsgGetPerms:           {serve: (*state).serveGetPerms},
	xenstore.MsgWatch:              {serve: (*state).serveWatch, anyTx: true},
	xenstore.MsgUnwatch:            {serve: (*state).serveUnwatch, anyTx: true},
	xenstore.MsgTransactionStart:   {serve: (*state).serveTransactionStart},
	xenstore.MsgTransactionEnd:     {serve: (*state).serveTransactionEnd},
	xenstore.MsgIntroduce:          {serve: (*state).serveIntroduce, privileged: true},
	xenstore.MsgRelease:            {serve: (*state).serveRelease, privileged: true},
	xenstore.MsgGetDomainPath:      {serve: (*state).serveGetDomainPath},
	xenstore.MsgWrite:              {serve: (*state).serveWrite},
	xenstore.MsgMkdir:              {serve: (*state).serveMkdir},
	xenstore.MsgRemove:             {serve: (*state).serveRemove},
	xenstore.MsgSetPerms:           {serve: (*state).serveSetPerms},
	xenstore.MsgIsDomainIntroduced: {serve: (*state).serveIsDomainIntroduced, privileged: true},
	xenstore.MsgResume:             {serve: (*state).serveResume, privileged: true},
	xenstore.MsgSetTarget:          {serve: (*state).serveSetTarget, privileged: true},
	xenstore.MsgResetWatches:       {serve: (*state).serveResetWatches},
	xenstore.MsgDirectoryPart:      {serve: (*state).serveDirectoryPart},
}

// serve answers one request of c. The payload is not kept.
func (s *state) serve(c *conn, h xenstore.Header, payload []byte) {
	if c.dead != nil {
		return
	}
	r := &request{conn: c, header: h, payload: payload, waiting: 1}
	if c.dom != nil {
		c.dom.outstanding++
	}
	if err := s.dispatch(r); err != nil {
		s.replyError(r, err)
	}
	r.payload = nil
	r.done()
}

func (s *state) dispatch(r *request) error {
	t := r.header.Type
	if uint64(t) >= uint64(len(operations)) || operations[t].serve == nil {
		return syscall.ENOSYS
	}
	op := &operations[t]
	if op.privileged && r.conn.unprivileged() {
		return syscall.EACCES
	}
	if !op.anyTx && r.header.TxID != 0 {
		if r.tx = r.conn.transactions[r.header.TxID]; r.tx == nil {
			return syscall.ENOENT
		}
	}
	return op.serve(s, r)
}

// ack sends a reply without content.
func (s *state) ack(r *request) { s.reply(r, r.header.Type, []byte("OK\x00")) }

// answer replies with content.
func (s *state) answer(r *request, payload []byte) { s.reply(r, r.header.Type, payload) }

func (s *state) replyError(r *request, err error) {
	errno := syscall.EINVAL
	_ = errors.As(err, &errno)
	s.reply(r, xenstore.MsgError, append([]byte(xenstore.ErrnoName(errno)), 0))
}

// smallReply is the longest payload, in bytes, that is sent regardless of the memory
// quota: every error and OK fit.
const smallReply = 16

func (s *state) reply(r *request, t xenstore.MessageType, payload []byte) {
	if len(payload) > xenstore.MaxPayload {
		s.replyError(r, syscall.E2BIG)
		return
	}
	c := r.conn
	check := len(payload) > smallReply
	if !s.charge(c.domid(), xenstore.HeaderSize+len(payload), check) {
		s.replyError(r, syscall.ENOMEM)
		return
	}
	h := xenstore.Header{Type: t, ReqID: r.header.ReqID, TxID: r.header.TxID}
	s.enqueue(c, &message{wire: xenstore.AppendMessage(nil, h, payload), cause: r})
}

// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"
	"io"
	"net"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is the part of a Xen with a xenstored that the scripts need.
type world interface {
	socket() io.ReadWriteCloser
	xenbus(domid xen.Domid) io.ReadWriteCloser
	created(domid xen.Domid)
	shutdown(domid xen.Domid)
	died(domid xen.Domid)
}

// newWorld opens the world of one test. It is a variable so that the scripts can run
// against a xenstored of Xen.
var newWorld = func(t testing.TB) world {
	s := New(Options{})
	t.Cleanup(func() { _ = s.Close() })
	return &embedded{t: t, Server: s}
}

// embedded is the world around a Server.
type embedded struct {
	t testing.TB
	*Server
}

func (e *embedded) connect(domid xen.Domid, kind xenstore.Kind) io.ReadWriteCloser {
	here, there := net.Pipe()
	go func() { _ = e.ServeConn(there, domid, kind) }()
	return here
}

func (e *embedded) socket() io.ReadWriteCloser { return e.connect(0, xenstore.Socket) }

func (e *embedded) xenbus(domid xen.Domid) io.ReadWriteCloser {
	return e.connect(domid, xenstore.Xenbus)
}

func (e *embedded) created(domid xen.Domid)  { e.DomainCreated(domid) }
func (e *embedded) shutdown(domid xen.Domid) { e.DomainShutdown(domid) }
func (e *embedded) died(domid xen.Domid)     { e.DomainDied(domid) }

// client sends and receives messages of the wire protocol. In payloads | stands for NUL.
type client struct {
	t      testing.TB
	rw     io.ReadWriteCloser
	in     *xenstore.MessageReader
	reqID  uint32
	events []string
}

func newClient(t testing.TB, rw io.ReadWriteCloser) *client {
	t.Cleanup(func() { _ = rw.Close() })
	return &client{t: t, rw: rw, in: xenstore.NewMessageReader(rw)}
}

func (c *client) send(typ xenstore.MessageType, tx uint32, payload string) error {
	c.reqID++
	h := xenstore.Header{Type: typ, ReqID: c.reqID, TxID: tx}
	_, err := c.rw.Write(xenstore.AppendMessage(nil, h, []byte(strings.ReplaceAll(payload, "|", "\x00"))))
	return err
}

// next returns the next message. It also records an event in c.events.
func (c *client) next() (xenstore.Header, string, error) {
	h, payload, err := c.in.Next()
	if err != nil {
		return h, "", err
	}
	text := strings.ReplaceAll(string(payload), "\x00", "|")
	if h.Type == xenstore.MsgWatchEvent {
		if h.ReqID != 0 || h.TxID != 0 {
			c.t.Errorf("event with ids %d, %d", h.ReqID, h.TxID)
		}
		c.events = append(c.events, text)
	}
	return h, text, nil
}

// try returns the payload of the reply, or the name of its error.
func (c *client) try(typ xenstore.MessageType, tx uint32, payload string) (string, error) {
	if err := c.send(typ, tx, payload); err != nil {
		return "", err
	}
	for {
		h, text, err := c.next()
		switch {
		case err != nil:
			return "", err
		case h.Type == xenstore.MsgWatchEvent:
			continue
		case h.ReqID != c.reqID || h.TxID != tx || h.Type != typ && h.Type != xenstore.MsgError:
			return "", fmt.Errorf("reply %+v to request %d of %v in transaction %d", h, c.reqID, typ, tx)
		case h.Type == xenstore.MsgError:
			return strings.TrimSuffix(text, "|"), nil
		}
		return text, nil
	}
}

func (c *client) call(typ xenstore.MessageType, tx uint32, payload string) string {
	c.t.Helper()
	reply, err := c.try(typ, tx, payload)
	if err != nil {
		c.t.Fatalf("%v %q: %v", typ, payload, err)
	}
	return reply
}

// takeEvents returns the events since the last call. It sends a request, since the reply
// follows everything queued before.
func (c *client) takeEvents() []string {
	c.t.Helper()
	c.call(xenstore.MsgGetDomainPath, 0, "0|")
	ev := c.events
	c.events = nil
	return ev
}

// script runs lines of the form
//
//	who OP payload -> reply
//
// who is xen, dom<id>, or dom<id>#<tx> for a request in a transaction; dom0 is
// the socket, socket2 another one, ring0 domain 0's own xenbus. In a payload |
// is NUL and <x*n> is x n times. A number in the place of OP is a type without
// name. "OP*n" repeats the request with %d counting from 0. Beside the message
// types there are
//
//	who EVENTS -> event event ...    the events since the last time
//	xen created|shutdown|died id
//
// Domains 5 and 6 exist, are introduced and own their homes.
type script struct {
	t       testing.TB
	w       world
	clients map[string]*client
}

const scriptSetup = `
	xen created 5
	xen created 6
	dom0 INTRODUCE 5|1|1| -> OK|
	dom0 INTRODUCE 6|1|1| -> OK|
	dom0 MKDIR /local/domain/5| -> OK|
	dom0 MKDIR /local/domain/6| -> OK|
	dom0 SET_PERMS /local/domain/5|n5| -> OK|
	dom0 SET_PERMS /local/domain/6|n6| -> OK|
`

func runScript(t testing.TB, lines string) {
	t.Helper()
	s := &script{t: t, w: newWorld(t), clients: map[string]*client{}}
	for _, line := range strings.Split(scriptSetup+lines, "\n") {
		line, _, _ = strings.Cut(strings.TrimSpace(line), "# ")
		if line = strings.TrimSpace(line); line != "" {
			s.line(line)
		}
	}
}

var repeated = regexp.MustCompile(`<(.)\*(\d+)>`)

func (s *script) line(line string) {
	s.t.Helper()
	request, want, _ := strings.Cut(line+" ", " -> ")
	want = expand(strings.TrimSpace(want))
	who, rest, _ := strings.Cut(request, " ")
	op, payload, _ := strings.Cut(rest, " ")
	payload = expand(strings.TrimSpace(payload))
	if who == "xen" {
		s.xen(op, payload)
		return
	}
	who, tx, _ := strings.Cut(who, "#")
	c := s.client(who)
	if op == "EVENTS" {
		got := strings.Join(c.takeEvents(), " ")
		if diff := cmp.Diff(want, got); diff != "" {
			s.t.Fatalf("%s\n(-want +got):\n%s", line, diff)
		}
		return
	}
	op, times, _ := strings.Cut(op, "*")
	n := max(number(times), 1)
	for i := range n {
		p := payload
		if times != "" {
			p = strings.ReplaceAll(p, "%d", strconv.Itoa(i))
		}
		got, err := c.try(messageType(s.t, op), uint32(number(tx)), p)
		if err != nil {
			got = "closed"
		}
		if diff := cmp.Diff(want, got); diff != "" {
			s.t.Fatalf("%.200s (round %d)\n(-want +got):\n%s", line, i, diff)
		}
	}
}

func expand(s string) string {
	return repeated.ReplaceAllStringFunc(s, func(m string) string {
		parts := repeated.FindStringSubmatch(m)
		return strings.Repeat(parts[1], number(parts[2]))
	})
}

func number(s string) int {
	n, _ := strconv.Atoi(s)
	return n
}

func messageType(t testing.TB, name string) xenstore.MessageType {
	for typ := xenstore.MessageType(0); typ <= xenstore.MsgSetQuota; typ++ {
		if typ.String() == name {
			return typ
		}
	}
	n, err := strconv.Atoi(name)
	if err != nil {
		t.Fatalf("no message type %q", name)
	}
	return xenstore.MessageType(n)
}

func (s *script) client(who string) *client {
	c := s.clients[who]
	if c == nil {
		var rw io.ReadWriteCloser
		switch id, isDom := strings.CutPrefix(who, "dom"); {
		case who == "ring0":
			rw = s.w.xenbus(0)
		case isDom && id != "0":
			id, _, _ = strings.Cut(id, ".")
			rw = s.w.xenbus(xen.Domid(number(id)))
		default:
			rw = s.w.socket()
		}
		c = newClient(s.t, rw)
		s.clients[who] = c
	}
	return c
}

func (s *script) xen(verb, arg string) {
	domid := xen.Domid(number(arg))
	switch verb {
	case "created":
		s.w.created(domid)
	case "shutdown":
		s.w.shutdown(domid)
	case "died":
		s.w.died(domid)
		delete(s.clients, fmt.Sprintf("dom%d", domid))
	case "hangup":
		c := s.client(arg)
		_ = c.rw.Close()
		delete(s.clients, arg)
	case "reconnect":
		delete(s.clients, arg)
	default:
		s.t.Fatalf("xen cannot %q", verb)
	}
}

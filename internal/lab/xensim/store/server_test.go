// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// fixture is a server with domains 5 and 6, introduced and owners of their
// homes, and a client on the socket.
type fixture struct {
	*embedded
	dom0 *client
}

func newFixture(t testing.TB, q Quota) *fixture {
	s := New(Options{Quota: q})
	t.Cleanup(func() { _ = s.Close() })
	f := &fixture{embedded: &embedded{t: t, Server: s}}
	f.dom0 = newClient(t, f.socket())
	for _, id := range []string{"5", "6"} {
		f.created(xen.Domid(number(id)))
		f.dom0.call(xenstore.MsgIntroduce, 0, id+"|1|1|")
		f.dom0.call(xenstore.MsgMkdir, 0, "/local/domain/"+id+"|")
		f.dom0.call(xenstore.MsgSetPerms, 0, "/local/domain/"+id+"|n"+id+"|r0|")
	}
	return f
}

// usage returns a domain's use of a quota, by CONTROL.
func (f *fixture) usage(domid int, what string) int {
	f.t.Helper()
	text := f.dom0.call(xenstore.MsgControl, 0, fmt.Sprintf("quota|%d|", domid))
	for _, line := range strings.Split(text, "\n") {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == what {
			return number(strings.TrimSpace(value))
		}
	}
	f.t.Fatalf("no %s in %q", what, text)
	return 0
}

// serve serves one end of a pipe. It returns the other end, and a channel for the result of
// ServeConn.
func (f *fixture) serve(domid xen.Domid, kind xenstore.Kind) (net.Conn, <-chan error) {
	here, there := net.Pipe()
	f.t.Cleanup(func() { _ = here.Close() })
	end := make(chan error, 1)
	go func() { end <- f.ServeConn(there, domid, kind) }()
	return here, end
}

// pipeline sends n requests without reading the replies. It returns a channel that is
// closed when all are sent.
func (c *client) pipeline(n int, typ xenstore.MessageType, payload string) <-chan struct{} {
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for i := range n {
			if c.send(typ, 0, strings.ReplaceAll(payload, "%d", fmt.Sprint(i))) != nil {
				return
			}
		}
	}()
	return sent
}

// replies reads n replies.
func (c *client) replies(n int) {
	c.t.Helper()
	for n > 0 {
		h, _, err := c.next()
		if err != nil {
			c.t.Fatal(err)
		}
		if h.Type != xenstore.MsgWatchEvent {
			n--
		}
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestGuestWithTwentyUnreadRepliesIsNotReadFrom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Quota{})
		guest := newClient(t, f.xenbus(5))
		sent := guest.pipeline(100, xenstore.MsgGetDomainPath, "5|")
		synctest.Wait()
		if isClosed(sent) {
			t.Error("all requests were read")
		}
		if n := f.usage(5, "outstanding"); n != 20 {
			t.Errorf("%d requests outstanding, want 20", n)
		}
		guest.replies(100)
		synctest.Wait()
		if n := f.usage(5, "outstanding"); n != 0 {
			t.Errorf("%d requests outstanding when all is read", n)
		}
	})
}

func TestGuestWaitsForItsEventsToBeTakenOrToExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Quota{})
		f.dom0.call(xenstore.MsgSetPerms, 0, "/local/domain/5|r5|")
		watcher := newClient(t, f.xenbus(6))
		watcher.call(xenstore.MsgWatch, 0, "/local/domain/5|w|")
		if ev := watcher.takeEvents(); len(ev) != 1 {
			t.Fatalf("first events %q", ev)
		}

		guest := newClient(t, f.xenbus(5))
		start := time.Now()
		sent := guest.pipeline(50, xenstore.MsgWrite, "n%d|1")
		guest.replies(20)
		synctest.Wait()
		if n := f.usage(5, "outstanding"); n != 20 {
			t.Errorf("%d requests outstanding, want 20", n)
		}
		// Taking events makes room.
		for range 5 {
			if _, _, err := watcher.next(); err != nil {
				t.Fatal(err)
			}
		}
		guest.replies(5)
		if d := time.Since(start); d != 0 {
			t.Errorf("took %v, want no time", d)
		}
		// So does time, except for the event that is being written.
		guest.replies(19)
		if d := time.Since(start); d != 20*time.Second {
			t.Errorf("events were dropped after %v, want 20s", d)
		}
		guest.replies(6)
		<-sent
		for range 2 { // the one that was being written, and a later one
			if _, _, err := watcher.next(); err != nil {
				t.Fatal(err)
			}
		}
		if want := []string{"/local/domain/5/n0|w|", "/local/domain/5/n1|w|", "/local/domain/5/n2|w|",
			"/local/domain/5/n3|w|", "/local/domain/5/n4|w|", "/local/domain/5/n5|w|"}; !slices.Equal(watcher.events[:6], want) {
			t.Errorf("events %q, want %q", watcher.events, want)
		}
		if last := number(strings.Trim(strings.TrimPrefix(watcher.events[6], "/local/domain/5/n"), "|w")); last < 25 {
			t.Errorf("event %q should have been dropped", watcher.events[6])
		}
	})
}

func TestEventsOfSilentGuestEndAtItsMemoryQuota(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Quota{Memory: 32 << 10, EventTimeout: -1})
		silent := newClient(t, f.xenbus(6))
		silent.call(xenstore.MsgWatch, 0, "/a|w|")
		f.dom0.call(xenstore.MsgMkdir, 0, "/a|")
		f.dom0.call(xenstore.MsgSetPerms, 0, "/a|r0|")
		name := strings.Repeat("x", 1000)
		for i := range 100 {
			f.dom0.call(xenstore.MsgWrite, 0, fmt.Sprintf("/a/%s%d|1", name, i))
		}
		if n := f.usage(6, "memory"); n < 30<<10 || n >= 32<<10 {
			t.Errorf("%d bytes are kept for it", n)
		}
	})
}

func TestSilentPrivilegedClientIsClosedAndBlocksNoOther(t *testing.T) {
	f := newFixture(t, Quota{})
	conn, end := f.serve(0, xenstore.Socket)
	silent := newClient(t, conn)
	silent.call(xenstore.MsgWatch, 0, "/a|w|")
	// Many short names below few long ones, or the parent's list takes the time.
	name := strings.Repeat("x", 1900)
	for i := 0; len(end) == 0; i++ {
		if i*len(name) > 2*queueMax {
			t.Fatal("still there")
		}
		if got := f.dom0.call(xenstore.MsgMkdir, 0, fmt.Sprintf("/a/%s/%d|", name, i)); got != "OK|" {
			t.Fatal(got)
		}
	}
	if err := <-end; !errors.Is(err, ErrOverrun) {
		t.Errorf("ended with %v, want %v", err, ErrOverrun)
	}
}

func TestPrivilegedClientThatPipelinesIsHeldBackAndThenServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Quota{})
		f.dom0.call(xenstore.MsgWrite, 0, "/a|"+strings.Repeat("x", 4000))
		hasty := newClient(t, f.socket())
		const n = 2 * readBelow / 4000
		sent := hasty.pipeline(n, xenstore.MsgRead, "/a|")
		synctest.Wait()
		if isClosed(sent) {
			t.Error("all requests were read")
		}
		f.dom0.call(xenstore.MsgRead, 0, "/a|")
		hasty.replies(n)
		<-sent
	})
}

func TestEventThatWaitsIsNotQueuedTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Quota{})
		c := newClient(t, f.socket())
		for _, path := range []string{"/a", xenstore.IntroduceDomain} {
			c.call(xenstore.MsgWatch, 0, path+"|w|")
		}
		c.takeEvents()
		for _, id := range []string{"5", "6"} {
			f.dom0.call(xenstore.MsgRelease, 0, id+"|")
			f.dom0.call(xenstore.MsgIntroduce, 0, id+"|1|1|")
			f.dom0.call(xenstore.MsgWrite, 0, "/a|"+id)
			f.dom0.call(xenstore.MsgWrite, 0, "/a/b|"+id)
		}
		got := c.takeEvents()
		want := []string{"@introduceDomain|w|", "/a|w|", "/a/b|w|", "@introduceDomain|w|"}
		if !slices.Equal(got, want) {
			t.Errorf("events %q, want %q", got, want)
		}
		f.dom0.call(xenstore.MsgWrite, 0, "/a|7")
		if got := c.takeEvents(); !slices.Equal(got, []string{"/a|w|"}) {
			t.Errorf("once taken it is told again: %q", got)
		}
	})
}

// TestGuestsWriteSlowlyWhileTransactionsAreOpen: three introduced domains share 200 writes
// per second, and one of them writes. It has a burst of ten, and the reserve is at -30
// for the bursts of all three. xenstored 4.17 takes 1.16 s for the same.
func TestGuestsWriteSlowlyWhileTransactionsAreOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Quota{})
		guest := newClient(t, f.xenbus(5))
		write := func(n int) time.Duration {
			start := time.Now()
			for i := range n {
				guest.call(xenstore.MsgWrite, 0, fmt.Sprintf("a|%d", i))
			}
			return time.Since(start)
		}
		write(1)
		if d := write(500); d != 0 {
			t.Errorf("without a transaction it took %v", d)
		}
		f.dom0.call(xenstore.MsgTransactionStart, 0, "|")
		if d, want := write(210), 1150*time.Millisecond; (d - want).Abs() > 50*time.Millisecond {
			t.Errorf("took %v, want about %v", d, want)
		}
		start := time.Now()
		for range 300 {
			f.dom0.call(xenstore.MsgWrite, 0, "/a|1")
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("domain 0 had to wait %v", d)
		}
		f.dom0.call(xenstore.MsgTransactionEnd, 1, "F|")
		write(1)
		if d := write(500); d != 0 {
			t.Errorf("after the transaction it took %v", d)
		}
	})
}

func TestWriteRateCanBeUnlimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Quota{WriteRate: -1})
		guest := newClient(t, f.xenbus(5))
		f.dom0.call(xenstore.MsgTransactionStart, 0, "|")
		start := time.Now()
		for range 1000 {
			guest.call(xenstore.MsgWrite, 0, "a|1")
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("took %v", d)
		}
	})
}

func TestRequestsOfDomainWaitForItsIntroduction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Quota{})
		f.created(7)
		early := newClient(t, f.xenbus(7))
		sent := early.pipeline(1, xenstore.MsgGetDomainPath, "7|")
		answered := make(chan struct{})
		go func() {
			defer close(answered)
			early.replies(1)
		}()
		synctest.Wait()
		if isClosed(answered) {
			t.Error("answered before it was introduced")
		}
		f.dom0.call(xenstore.MsgIntroduce, 0, "7|1|1|")
		<-sent
		<-answered
	})
}

func TestWhyConnectionsEnd(t *testing.T) {
	long := xenstore.Header{Type: xenstore.MsgRead, Len: xenstore.MaxPayload + 1}.AppendTo(nil)
	overXenbus := xenstore.Header{Type: xenstore.MsgWrite, Len: xenstore.MaxPayloadXenbus + 1}.AppendTo(nil)
	for _, tt := range []struct {
		name  string
		domid xen.Domid
		kind  xenstore.Kind
		do    func(f *fixture, c net.Conn)
		want  error
	}{
		{"the client hangs up", 0, xenstore.Socket,
			func(f *fixture, c net.Conn) { _ = c.Close() }, nil},
		{"the client hangs up inside a message", 5, xenstore.Xenbus,
			func(f *fixture, c net.Conn) { _, _ = c.Write(long[:7]); _ = c.Close() }, nil},
		{"a payload of more than 4096 bytes", 0, xenstore.Socket,
			func(f *fixture, c net.Conn) { _, _ = c.Write(long) }, ErrTooLong},
		{"a message of more than 4096 bytes from a domain", 5, xenstore.Xenbus,
			func(f *fixture, c net.Conn) {
				_, _ = c.Write(append(overXenbus, make([]byte, xenstore.MaxPayloadXenbus+1)...))
			}, ErrTooLong},
		{"the domain dies", 5, xenstore.Xenbus,
			func(f *fixture, c net.Conn) { f.died(5) }, ErrDomainDied},
		{"the domain dies before it was introduced", 7, xenstore.Xenbus,
			func(f *fixture, c net.Conn) { f.died(7) }, ErrDomainDied},
		{"the domain is released", 5, xenstore.Xenbus,
			func(f *fixture, c net.Conn) { f.dom0.call(xenstore.MsgRelease, 0, "5|") }, ErrReleased},
		{"the server is closed", 5, xenstore.Xenbus,
			func(f *fixture, c net.Conn) { _ = f.Close() }, ErrClosed},
		{"no such domain", 9, xenstore.Xenbus, func(f *fixture, c net.Conn) {}, ErrNoDomain},
		{"no socket but domain 0's", 5, xenstore.Socket, func(f *fixture, c net.Conn) {}, ErrNoDomain},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t, Quota{})
			f.created(7)
			conn, end := f.serve(tt.domid, tt.kind)
			if tt.want != ErrNoDomain {
				f.attached(tt.domid, tt.kind)
			}
			tt.do(f, conn)
			if err := <-end; !errors.Is(err, tt.want) {
				t.Errorf("ended with %v, want %v", err, tt.want)
			}
			if n, err := conn.Read(make([]byte, 1)); err == nil {
				t.Errorf("read %d bytes of a closed connection", n)
			}
		})
	}
}

// attached waits until the server has a connection of this kind.
func (f *fixture) attached(domid xen.Domid, kind xenstore.Kind) {
	for known := false; !known; {
		f.do(func() {
			known = slices.ContainsFunc(f.state.conns, func(c *conn) bool {
				isDom0 := c == f.state.conns[0] // the fixture's own
				return !isDom0 && c.domid() == uint32(domid) && (c.dom != nil) == (kind == xenstore.Xenbus)
			})
		})
	}
}

func TestConnectionTakesItsWatchesAndTransactionsAlong(t *testing.T) {
	f := newFixture(t, Quota{})
	conn, end := f.serve(5, xenstore.Xenbus)
	guest := newClient(t, conn)
	for i := range 10 {
		guest.call(xenstore.MsgWatch, 0, fmt.Sprintf("a|%d|", i))
	}
	for range 11 {
		guest.call(xenstore.MsgTransactionStart, 0, "|")
	}
	guest.call(xenstore.MsgWrite, 1, "a|1")
	other := newClient(t, f.xenbus(5))
	if got := other.call(xenstore.MsgTransactionStart, 0, "|"); got != "ENOSPC" {
		t.Errorf("the connections of a domain share its quota: %q", got)
	}
	before := f.usage(5, "memory")
	_ = conn.Close()
	<-end
	for what, want := range map[string]int{"watches": 0, "transactions": 0, "outstanding": 0} {
		if n := f.usage(5, what); n != want {
			t.Errorf("%d %s left, want %d", n, what, want)
		}
	}
	if n := f.usage(5, "memory"); n >= before {
		t.Errorf("%d bytes kept, %d before", n, before)
	}
	if got := other.call(xenstore.MsgRead, 0, "a|"); got != "ENOENT" {
		t.Errorf("a transaction was committed by hanging up: %q", got)
	}
}

func TestMessagesMayComeInAnyPieces(t *testing.T) {
	f := newFixture(t, Quota{})
	c := newClient(t, f.socket())
	msg := xenstore.AppendMessage(nil, xenstore.Header{Type: xenstore.MsgWrite, ReqID: 1}, []byte("/a\x00value"))
	go func() {
		for _, b := range msg {
			_, _ = c.rw.Write([]byte{b})
		}
		_, _ = c.rw.Write(append(slices.Clone(msg), msg...))
	}()
	c.replies(3)
	if got := f.dom0.call(xenstore.MsgRead, 0, "/a|"); got != "value" {
		t.Errorf("read %q", got)
	}
}

func TestServeOnUnixSocketUntilClose(t *testing.T) {
	s := New(Options{})
	path := filepath.Join(t.TempDir(), "socket")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	var clients []*client
	for range 20 {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		c := newClient(t, conn)
		c.call(xenstore.MsgWatch, 0, "/a|w|")
		clients = append(clients, c)
	}
	clients[0].call(xenstore.MsgWrite, 0, "/a|1")
	for _, c := range clients {
		if ev := c.takeEvents(); len(ev) == 0 {
			t.Error("no event")
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-served; !errors.Is(err, ErrClosed) {
		t.Errorf("Serve returned %v, want %v", err, ErrClosed)
	}
	for _, c := range clients {
		if _, _, err := c.next(); err == nil {
			t.Error("connection outlived the server")
		}
	}
	if err := s.Serve(l); !errors.Is(err, ErrClosed) {
		t.Errorf("Serve after Close returned %v", err)
	}
	if err := s.ServeConn(clients[0].rw, 0, xenstore.Socket); !errors.Is(err, ErrClosed) {
		t.Errorf("ServeConn after Close returned %v", err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	s.DomainCreated(1) // must not hang
}

func TestServeReturnsTheErrorOfItsListener(t *testing.T) {
	s := New(Options{})
	defer s.Close()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "socket"))
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	if err := s.Serve(l); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

// TestManyClientsAtOnce runs clients concurrently, for the race detector.
func TestManyClientsAtOnce(t *testing.T) {
	f := newFixture(t, Quota{WriteRate: -1})
	done := make(chan error)
	const clients = 12
	for i := range clients {
		var rw io.ReadWriteCloser
		if i%3 == 0 {
			rw = f.socket()
		} else {
			rw = f.xenbus(xen.Domid(4 + i%3))
		}
		c := newClient(t, rw)
		go func() {
			err := busy(c, i)
			_ = c.rw.Close() // or its unread events would hold up the others
			done <- err
		}()
	}
	for range clients {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	f.died(5)
	f.do(func() {
		if err := f.state.check(); err != nil {
			t.Error(err)
		}
	})
}

func busy(c *client, i int) error {
	for n := range 100 {
		for _, r := range []struct {
			typ     xenstore.MessageType
			payload string
		}{
			{xenstore.MsgWatch, fmt.Sprintf("shared|%d|", n%7)},
			{xenstore.MsgWrite, fmt.Sprintf("own%d/%d|%d", i, n%10, n)},
			{xenstore.MsgWrite, fmt.Sprintf("shared/%d|%d", n%5, n)},
			{xenstore.MsgDirectory, "shared|"},
			{xenstore.MsgRemove, fmt.Sprintf("own%d|", i)},
			{xenstore.MsgUnwatch, fmt.Sprintf("shared|%d|", (n+3)%7)},
		} {
			if _, err := c.try(r.typ, 0, r.payload); err != nil {
				return err
			}
		}
		id, err := c.try(xenstore.MsgTransactionStart, 0, "|")
		if err != nil {
			return err
		}
		tx := uint32(number(strings.Trim(id, "|")))
		if _, err = c.try(xenstore.MsgWrite, tx, "shared/t|1"); err == nil {
			_, err = c.try(xenstore.MsgTransactionEnd, tx, "T|")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

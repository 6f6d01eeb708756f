// SPDX-License-Identifier: Apache-2.0

package xenstore

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestRequestsOnTheWire(t *testing.T) {
	none := func(err error) (any, error) { return nil, err }
	for _, tc := range []struct {
		name    string
		call    func(c *Client) (any, error)
		typ     MessageType
		payload string
		reply   string
		want    any
	}{
		{"read", func(c *Client) (any, error) { return c.Read(t.Context(), "/a/b") }, MsgRead, "/a/b\x00", "v\x00\xff", "v\x00\xff"},
		{"read an empty value", func(c *Client) (any, error) { return c.Read(t.Context(), "a") }, MsgRead, "a\x00", "", ""},
		{"write any byte", func(c *Client) (any, error) { return none(c.Write(t.Context(), "/a", "x\x00\n\xff")) }, MsgWrite, "/a\x00x\x00\n\xff", "OK\x00", nil},
		{"write nothing", func(c *Client) (any, error) { return none(c.Write(t.Context(), "/a", "")) }, MsgWrite, "/a\x00", "OK\x00", nil},
		{"mkdir", func(c *Client) (any, error) { return none(c.Mkdir(t.Context(), "/a")) }, MsgMkdir, "/a\x00", "OK\x00", nil},
		{"remove", func(c *Client) (any, error) { return none(c.Remove(t.Context(), "/a")) }, MsgRemove, "/a\x00", "OK\x00", nil},
		{"exists", func(c *Client) (any, error) { return c.Exists(t.Context(), "/a") }, MsgRead, "/a\x00", "v", true},
		{"list", func(c *Client) (any, error) { return c.List(t.Context(), "/") }, MsgDirectory, "/\x00", "a\x00bc\x00", []string{"a", "bc"}},
		{"list a leaf", func(c *Client) (any, error) { return c.List(t.Context(), "/a") }, MsgDirectory, "/a\x00", "", []string(nil)},
		{"permissions", func(c *Client) (any, error) { return c.Permissions(t.Context(), "/a") }, MsgGetPerms, "/a\x00", "n0\x00r5\x00b7\x00",
			[]Perm{{AccessNone, 0}, {AccessRead, 5}, {AccessBoth, 7}}},
		{"permissions of a special path", func(c *Client) (any, error) { return c.Permissions(t.Context(), ReleaseDomain) }, MsgGetPerms, "@releaseDomain\x00", "n0\x00",
			[]Perm{{AccessNone, 0}}},
		{"set permissions", func(c *Client) (any, error) {
			return none(c.SetPermissions(t.Context(), "/a", []Perm{{AccessNone, 3}, {AccessWrite, 0}}))
		}, MsgSetPerms, "/a\x00n3\x00w0\x00", "OK\x00", nil},
		{"a number", func(c *Client) (any, error) { return c.ReadUint(t.Context(), "/a", 32) }, MsgRead, "/a\x00", "4294967295", uint64(4294967295)},
		{"introduced", func(c *Client) (any, error) { return c.IsIntroduced(t.Context(), 7) }, MsgIsDomainIntroduced, "7\x00", "T\x00", true},
		{"not introduced", func(c *Client) (any, error) { return c.IsIntroduced(t.Context(), 65535) }, MsgIsDomainIntroduced, "65535\x00", "F\x00", false},
		{"introduce", func(c *Client) (any, error) { return none(c.Introduce(t.Context(), 7, 0x1234, 3)) }, MsgIntroduce, "7\x004660\x003\x00", "OK\x00", nil},
		{"introduce a high frame", func(c *Client) (any, error) { return none(c.Introduce(t.Context(), 7, 1<<64-2, 3)) }, MsgIntroduce, "7\x00-2\x003\x00", "OK\x00", nil},
		{"release", func(c *Client) (any, error) { return none(c.Release(t.Context(), 7)) }, MsgRelease, "7\x00", "OK\x00", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, p := dialPeer(t, Socket)
			go p.serve(func(m message) {
				want := message{Header{Type: tc.typ, ReqID: 1, Len: uint32(len(tc.payload))}, tc.payload}
				if diff := cmp.Diff(want, m); diff != "" {
					t.Errorf("request (-want +got):\n%s", diff)
				}
				p.reply(m, tc.reply)
			})
			got, err := tc.call(c)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
		})
	}
}

func TestErrorRepliesBelongToTheCallAlone(t *testing.T) {
	c, p := dialPeer(t, Socket)
	var name string
	go p.serve(func(m message) { p.refuse(m, name) })
	for n, want := range map[string]error{
		"ENOENT":  ErrNotExist,
		"EEXIST":  ErrExist,
		"EACCES":  ErrPermission,
		"EPERM":   ErrPermission,
		"EINVAL":  ErrInvalid,
		"ENOSPC":  ErrQuota,
		"EQUOTA":  ErrQuota,
		"ENOSYS":  ErrNotSupported,
		"EBUSY":   syscall.EBUSY,
		"EISCONN": syscall.EISCONN,
		"EFOO":    ErrInvalid,
		"":        ErrInvalid,
	} {
		name = n
		_, err := c.Read(t.Context(), "/a")
		var e *Error
		if !errors.Is(err, want) || !errors.As(err, &e) || e.Op != "READ" || e.Path != "/a" {
			t.Errorf("%s: %v", n, err)
		}
		if n == "EFOO" && !strings.Contains(err.Error(), "EFOO") {
			t.Errorf("%v does not tell the name", err)
		}
	}
	if err := c.Err(); err != nil {
		t.Errorf("the connection ended: %v", err)
	}
}

func TestExistsTellsMissingFromUnreadable(t *testing.T) {
	c, p := dialPeer(t, Socket)
	go p.serve(func(m message) {
		if m.Payload == "/missing\x00" {
			p.refuse(m, "ENOENT")
		} else {
			p.refuse(m, "EACCES")
		}
	})
	if ok, err := c.Exists(t.Context(), "/missing"); ok || err != nil {
		t.Errorf("missing: %t, %v", ok, err)
	}
	if ok, err := c.Exists(t.Context(), "/secret"); ok || !errors.Is(err, ErrPermission) {
		t.Errorf("unreadable: %t, %v", ok, err)
	}
}

func TestReadUint(t *testing.T) {
	for _, tc := range []struct {
		value string
		bits  int
		want  uint64
		ok    bool
	}{
		{"0", 8, 0, true},
		{"255", 8, 255, true},
		{"256", 8, 0, false},
		{"18446744073709551615", 64, 1<<64 - 1, true},
		{"007", 8, 7, true},
		{" 4\n", 8, 4, true},
		{"4\x00", 8, 4, true},
		{"4\n\x00", 8, 4, true},
		{"", 8, 0, false},
		{"-1", 8, 0, false},
		{"+1", 8, 0, false},
		{"0x1", 8, 0, false},
		{"1 2", 8, 0, false},
		{"1_0", 8, 0, false},
		{"4x", 8, 0, false},
		{strings.Repeat("9", 4000), 64, 0, false},
	} {
		c, p := dialPeer(t, Socket)
		go p.serve(func(m message) { p.reply(m, tc.value) })
		got, err := c.ReadUint(t.Context(), "/a", tc.bits)
		if got != tc.want || (err == nil) != tc.ok || (err != nil && !errors.Is(err, ErrMalformed)) {
			t.Errorf("%.20q: %d, %v", tc.value, got, err)
		}
		if errors.Is(err, ErrNotExist) {
			t.Errorf("%.20q: malformed looks like missing: %v", tc.value, err)
		}
		_ = c.Close()
	}
}

func TestNonsensicalRepliesBelongToTheCallAlone(t *testing.T) {
	for name, tc := range map[string]struct {
		reply string
		call  func(c *Client) error
	}{
		"list without a NUL":         {"a\x00b", func(c *Client) error { _, err := c.List(t.Context(), "/"); return err }},
		"permissions without a NUL":  {"n0", func(c *Client) error { _, err := c.Permissions(t.Context(), "/"); return err }},
		"permission of unknown kind": {"n0\x00q1\x00", func(c *Client) error { _, err := c.Permissions(t.Context(), "/"); return err }},
		"introduced neither T nor F": {"maybe\x00", func(c *Client) error { _, err := c.IsIntroduced(t.Context(), 1); return err }},
	} {
		t.Run(name, func(t *testing.T) {
			c, p := dialPeer(t, Socket)
			go p.serve(func(m message) { p.reply(m, tc.reply) })
			if err := tc.call(c); !errors.Is(err, ErrProtocol) || errors.Is(err, ErrClosed) {
				t.Errorf("got %v", err)
			}
			if err := c.Err(); err != nil {
				t.Errorf("the connection ended: %v", err)
			}
		})
	}
}

func TestNothingIsSentThatCannotBeAnswered(t *testing.T) {
	for _, kind := range []Kind{Socket, Xenbus} {
		t.Run(kind.String(), func(t *testing.T) {
			c, p := dialPeer(t, kind)
			var got atomic.Int64
			go p.serve(func(m message) {
				if got.Add(1); len(m.Payload) != kind.MaxRequest() {
					t.Errorf("%d bytes reached the peer", len(m.Payload))
				}
				p.ok(m)
			})
			room := kind.MaxRequest() - len("/a\x00")
			if err := c.Write(t.Context(), "/a", strings.Repeat("x", room)); err != nil {
				t.Errorf("the longest value: %v", err)
			}
			for name, err := range map[string]error{
				"write": c.Write(t.Context(), "/a", strings.Repeat("x", room+1)),
				"huge":  c.Write(t.Context(), "/a", strings.Repeat("x", 1<<20)),
				"perms": c.SetPermissions(t.Context(), "/a", make([]Perm, 2000)),
			} {
				if !errors.Is(err, ErrTooLong) {
					t.Errorf("%s: %v", name, err)
				}
			}
			_, watchErr := c.Watch(t.Context(), "/a/")
			_, readErr := c.Read(t.Context(), "")
			for name, err := range map[string]error{
				"read":        readErr,
				"special":     c.Write(t.Context(), ReleaseDomain, "x"),
				"NUL in path": c.Write(t.Context(), "/a\x00b", "x"),
				"long":        c.Mkdir(t.Context(), "/"+strings.Repeat("a", MaxAbsPath)),
				"watch":       watchErr,
			} {
				var e *Error
				if !errors.Is(err, ErrPath) || !errors.As(err, &e) {
					t.Errorf("%s: %v", name, err)
				}
			}
			if n := got.Load(); n != 1 {
				t.Errorf("the peer got %d requests", n)
			}
		})
	}
}

func TestRepliesInAnyOrder(t *testing.T) {
	const n = 64
	c, p := dialPeer(t, Socket)
	go func() {
		var ms []message
		for len(ms) < n {
			m, ok := p.next()
			if !ok {
				return
			}
			ms = append(ms, m)
		}
		for i := range ms {
			m := ms[(i*37+11)%n] // a permutation, since 37 and n have no divisor in common
			p.reply(m, "value of "+m.strs()[0])
		}
	}()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			path := fmt.Sprintf("/n/%d", i)
			if got, err := c.Read(t.Context(), path); err != nil || got != "value of "+path {
				t.Errorf("%s: %q, %v", path, got, err)
			}
		})
	}
	wg.Wait()
}

func TestReadsAreCutAnywhere(t *testing.T) {
	for _, size := range []int{1, 2, 15, 16, 17, 4096} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			c, p := dialPeer(t, Socket)
			go func() {
				a, _ := p.next()
				b, ok := p.next()
				if !ok {
					return
				}
				stream := AppendMessage(nil, b.Header, []byte(b.strs()[0]))
				stream = AppendMessage(stream, Header{Type: MsgWatchEvent}, []byte("/x\x00nobody\x00"))
				stream = AppendMessage(stream, a.Header, []byte(a.strs()[0]))
				for len(stream) > 0 {
					k := min(size, len(stream))
					p.raw(stream[:k])
					stream = stream[k:]
				}
			}()
			var wg sync.WaitGroup
			for _, path := range []string{"/first", "/second"} {
				wg.Go(func() {
					if got, err := c.Read(t.Context(), path); err != nil || got != path {
						t.Errorf("%s: %q, %v", path, got, err)
					}
				})
			}
			wg.Wait()
		})
	}
}

func TestBreachesEndTheConnection(t *testing.T) {
	for name, tc := range map[string]struct {
		answer func(p *peer, m message)
		want   error
	}{
		"a request id that was not used": {func(p *peer, m message) {
			m.Header.ReqID += 5
			p.ok(m)
		}, ErrProtocol},
		"an error for a request id that was not used": {func(p *peer, m message) {
			m.Header.ReqID += 5
			p.refuse(m, "EINVAL")
		}, ErrProtocol},
		"two answers to one request": {func(p *peer, m message) {
			p.raw(append(AppendMessage(nil, m.Header, nil), AppendMessage(nil, m.Header, nil)...))
		}, ErrProtocol},
		"an answer of another type": {func(p *peer, m message) {
			m.Header.Type = MsgDirectory
			p.reply(m, "")
		}, ErrProtocol},
		"an answer of no type": {func(p *peer, m message) {
			m.Header.Type = MsgInvalid
			p.reply(m, "")
		}, ErrProtocol},
		"a huge length": {func(p *peer, m message) {
			m.Header.Len = 1 << 31
			p.raw(m.Header.AppendTo(nil))
		}, ErrProtocol},
		"garbage": {func(p *peer, _ message) {
			p.raw([]byte(strings.Repeat("garbage!", 10)))
		}, ErrProtocol},
		"an event without strings": {func(p *peer, _ message) {
			p.send(Header{Type: MsgWatchEvent}, "")
		}, ErrProtocol},
		"an event without a token": {func(p *peer, _ message) {
			p.send(Header{Type: MsgWatchEvent}, "/a\x00")
		}, ErrProtocol},
		"an event that is not terminated": {func(p *peer, m message) {
			p.send(Header{Type: MsgWatchEvent}, "/a\x00tok")
		}, ErrProtocol},
		"hanging up": {func(p *peer, m message) { p.hangUp() }, io.EOF},
		"hanging up inside a header": {func(p *peer, m message) {
			p.raw(make([]byte, 9))
			p.hangUp()
		}, io.ErrUnexpectedEOF},
		"hanging up inside a payload": {func(p *peer, m message) {
			m.Header.Len = 100
			p.raw(m.Header.AppendTo(nil))
			p.hangUp()
		}, io.ErrUnexpectedEOF},
	} {
		t.Run(name, func(t *testing.T) {
			c, p := dialPeer(t, Socket)
			first := make(chan struct{})
			go p.serve(func(m message) {
				if m.Header.Type == MsgWatch {
					p.ok(m)
					return
				}
				<-first
				tc.answer(p, m)
			})
			w, err := c.Watch(t.Context(), "/w")
			if err != nil {
				t.Fatal(err)
			}
			result := make(chan error, 1)
			go func() {
				_, err := c.Read(t.Context(), "/a")
				result <- err
			}()
			close(first)
			err = <-result
			if name == "two answers to one request" && err == nil {
				err = &Error{Err: ErrClosed} // the first answer was a good one
			}
			if !errors.Is(err, ErrClosed) {
				t.Errorf("the call under way: %v", err)
			}
			wait(t, c.Done(), "the end")
			if err := c.Err(); !errors.Is(err, ErrClosed) || !errors.Is(err, tc.want) {
				t.Errorf("reason %v, want %v", err, tc.want)
			}
			closed(t, w)
			w.Close()
			if _, err := c.Read(t.Context(), "/b"); !errors.Is(err, ErrClosed) || !errors.Is(err, tc.want) {
				t.Errorf("a later call: %v", err)
			}
			if _, err := c.Watch(t.Context(), "/b"); !errors.Is(err, ErrClosed) {
				t.Errorf("a later watch: %v", err)
			}
			if err := c.Transaction(t.Context(), func(*Tx) error { return nil }); !errors.Is(err, ErrClosed) {
				t.Errorf("a later transaction: %v", err)
			}
		})
	}
}

func TestTimeoutEndsTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, p := dialPeer(t, Socket)
		go p.serve(func(m message) {
			if m.strs()[0] != "/lost" {
				p.reply(m, "fine")
			}
		})
		go func() {
			// An answered request does not keep a lost one alive.
			for range 8 {
				time.Sleep(10 * time.Second)
				if _, err := c.Read(t.Context(), "/other"); err != nil {
					t.Errorf("another request: %v", err)
				}
			}
		}()
		start := time.Now()
		_, err := c.Read(t.Context(), "/lost")
		if !errors.Is(err, ErrTimeout) || !errors.Is(err, ErrClosed) {
			t.Errorf("the lost request: %v", err)
		}
		if d := time.Since(start); d != DefaultTimeout {
			t.Errorf("it took %v", d)
		}
		if _, err := c.Read(t.Context(), "/other"); !errors.Is(err, ErrTimeout) {
			t.Errorf("a later request: %v", err)
		}
	})
}

func TestTimeoutOfAPeerThatDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := dialPeer(t, Socket, WithTimeout(time.Second))
		var wg sync.WaitGroup
		for range 3 { // one in the writer's hands, the others before it
			wg.Go(func() {
				if _, err := c.Read(t.Context(), "/a"); !errors.Is(err, ErrTimeout) {
					t.Errorf("got %v", err)
				}
			})
		}
		wg.Wait()
		wait(t, c.stopped, "the end of the writer")
	})
}

func TestWithoutTimeoutARequestWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, p := dialPeer(t, Socket, WithTimeout(0))
		go p.serve(func(m message) {
			time.Sleep(1000 * time.Hour)
			p.reply(m, "at last")
		})
		if got, err := c.Read(t.Context(), "/a"); err != nil || got != "at last" {
			t.Errorf("%q, %v", got, err)
		}
	})
}

func TestCloseInTheMiddleOfEverything(t *testing.T) {
	for range 50 {
		c, p := dialPeer(t, Socket)
		go p.serve(func(m message) {
			switch m.Header.Type {
			case MsgTransactionStart:
				p.reply(m, "7\x00")
			case MsgWatch:
				p.ok(m)
				p.event("/a", m.strs()[1])
			case MsgMkdir: // never answered
			default:
				p.ok(m)
			}
		})
		started := make(chan struct{}, 1000)
		check := func(err error) bool {
			if err != nil && !errors.Is(err, ErrClosed) {
				t.Errorf("got %v", err)
			}
			select {
			case started <- struct{}{}:
			default:
			}
			return err == nil
		}
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for check(c.Write(t.Context(), "/a", "b")) {
				}
			})
			wg.Go(func() {
				for check(c.Transaction(t.Context(), func(tx *Tx) error { return tx.Write(t.Context(), "/a", "b") })) {
				}
			})
			wg.Go(func() {
				for {
					w, err := c.Watch(t.Context(), "/a")
					if !check(err) {
						return
					}
					<-w.C()
					w.Close()
					closed(t, w)
				}
			})
			wg.Go(func() { check(c.Mkdir(t.Context(), "/never")) })
		}
		for range 20 {
			<-started
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
		if err := c.Err(); err != ErrClosed {
			t.Errorf("reason %v", err)
		}
		wait(t, c.stopped, "the end of the goroutines")
		if err := c.Close(); err != nil {
			t.Errorf("closing again: %v", err)
		}
	}
}

func TestCloseLeavesBehindWhatCannotBeInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		gone := make(chan struct{})
		c := New(conn{
			read:  func([]byte) (int, error) { <-gone; return 0, io.ErrClosedPipe },
			write: func([]byte) (int, error) { <-release; return 0, syscall.EIO },
			close: func() error { close(gone); <-release; return nil },
		}, Xenbus)
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := c.Watch(t.Context(), "/a"); !errors.Is(err, ErrClosed) {
				t.Errorf("the watch under way: %v", err)
			}
		})
		synctest.Wait()
		start := time.Now()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if d := time.Since(start); d != closeGrace {
			t.Errorf("Close took %v", d)
		}
		wg.Wait()
		close(release)
		wait(t, c.stopped, "the end of the writer")
	})
}

func TestRequestIDsAreFresh(t *testing.T) {
	c, p := dialPeer(t, Socket)
	var ids []uint32
	go p.serve(func(m message) {
		ids = append(ids, m.Header.ReqID)
		p.ok(m)
	})
	for range 4 {
		if err := c.Mkdir(t.Context(), "/a"); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]uint32{1, 2, 3, 4}, ids); diff != "" {
		t.Errorf("ids (-want +got):\n%s", diff)
	}
}

func TestRequestIDsWrapPastZeroAndOutstandingOnes(t *testing.T) {
	c, _ := dialPeer(t, Socket)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.outstanding[1] = &request{answer: make(chan answer, 1)}
	c.outstanding[2] = &request{answer: make(chan answer, 1)}
	c.lastID = 1<<32 - 2
	for _, want := range []uint32{1<<32 - 1, 3} {
		r := &request{answer: make(chan answer, 1)}
		c.register(r)
		if id := r.header.ReqID; id != want || c.outstanding[id] != r {
			t.Errorf("got %d, want %d", id, want)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package procwire

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	kindEcho  Kind = iota + 1 // a request: the answer has its body
	kindSwap                  // a request with one file: the answer has two
	kindNote                  // a notice
	kindLater                 // a request that is answered after the handler has returned
	kindNever                 // a request without an answer
)

var rules = Rules{
	kindEcho:  {Ask: Size{Body: 100}, Answer: Size{Body: 100}},
	kindSwap:  {Ask: Size{Files: 1}, Answer: Size{Files: 2}},
	kindNote:  {Notice: true, Ask: Size{Body: 8, MaxFiles: 1}},
	kindLater: {Answer: Size{Body: 8}},
	kindNever: {},
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// openFiles counts the open files of the process.
func openFiles(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(all)
}

// start makes a connection of fd that ends with the test.
func start(t *testing.T, fd int, cfg Config) *Conn {
	t.Helper()
	c, err := New(fd, cfg)
	must(t, err)
	c.Serve()
	t.Cleanup(func() { c.Close(); <-c.Done() })
	return c
}

// pair makes two connections whose handlers answer as the kinds say.
func pair(t *testing.T, change func(*Config)) (a, b *Conn) {
	t.Helper()
	fa, fb, err := Pair()
	must(t, err)
	cfg := Config{In: rules, Out: rules, Handle: serve(t), Timeout: time.Minute}
	if change != nil {
		change(&cfg)
	}
	return start(t, fa, cfg), start(t, fb, cfg)
}

// serve returns a handler that answers.
func serve(t *testing.T) func(*Message) {
	return func(m *Message) {
		switch m.Kind {
		case kindEcho:
			if string(m.Body) == "fail" {
				must(t, m.Fail(fmt.Errorf("no\nway: %w", unix.ENOSPC)))
				return
			}
			must(t, m.Answer(m.Body))
			if err := m.Answer(nil); err == nil {
				t.Error("a request was answered twice")
			}
		case kindSwap:
			fds, err := m.TakeAll(1)
			must(t, err)
			must(t, m.Answer(nil, fds[0], fds[0]))
			must(t, unix.Close(fds[0]))
		case kindLater:
			go func() { _ = m.Answer([]byte("late")) }()
		}
	}
}

func TestCall(t *testing.T) {
	before := openFiles(t)
	t.Run("", func(t *testing.T) {
		a, b := pair(t, nil)
		var all sync.WaitGroup
		for i := range 40 {
			c := []*Conn{a, b}[i%2]
			all.Go(func() {
				want := fmt.Sprint("body ", i)
				p, err := c.Call(t.Context(), kindEcho, []byte(want))
				if err != nil || string(p.Body) != want {
					t.Errorf("echo %q: %q, %v", want, p.Body, err)
				}
				if p, err := c.Call(t.Context(), kindLater, nil); err != nil || string(p.Body) != "late" {
					t.Errorf("later: %q, %v", p.Body, err)
				}
			})
		}
		all.Wait()
		_, err := a.Call(t.Context(), kindEcho, []byte("fail"))
		var remote *RemoteError
		if !errors.As(err, &remote) || !errors.Is(err, unix.ENOSPC) || strings.ContainsRune(err.Error(), '\n') {
			t.Errorf("failure: %v", err)
		}
	})
	if now := openFiles(t); now > before {
		t.Errorf("%d files are open, %d before", now, before)
	}
}

// TestFiles: files arrive as the same open files, close-on-exec; those that are not taken
// are closed.
func TestFiles(t *testing.T) {
	a, _ := pair(t, nil)
	var p [2]int
	must(t, unix.Pipe2(p[:], unix.O_CLOEXEC))
	r, err := a.Call(t.Context(), kindSwap, nil, p[1])
	must(t, err)
	must(t, unix.Close(p[1]))
	if r.Len() != 2 || r.Take(2) != -1 {
		t.Fatalf("%d files", r.Len())
	}
	fd := r.Take(0)
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("descriptor flags %#x, %v", flags, err)
	}
	if _, err := unix.Write(fd, []byte("x")); err != nil {
		t.Error(err)
	}
	must(t, unix.Close(fd))
	r.Close()
	must(t, a.Post(kindNote, nil, p[0])) // its handler does not take it
	if _, err := a.Call(t.Context(), kindEcho, nil); err != nil {
		t.Error(err)
	}
	buf := make([]byte, 8)
	if n, err := unix.Read(p[0], buf); n != 1 || err != nil {
		t.Errorf("read %d, %v", n, err)
	}
	if n, err := unix.Read(p[0], buf); n != 0 || err != nil {
		t.Errorf("the last writing end was closed, but read returns %d, %v", n, err)
	}
	must(t, unix.Close(p[0]))
}

// TestOwnMistakes: what the program must not send is not sent, and harms nothing.
func TestOwnMistakes(t *testing.T) {
	a, _ := pair(t, nil)
	for name, err := range map[string]error{
		"a long body":       second(a.Call(t.Context(), kindEcho, make([]byte, 101))),
		"a missing file":    second(a.Call(t.Context(), kindSwap, nil)),
		"a bad file":        second(a.Call(t.Context(), kindSwap, nil, 1<<20)),
		"a notice by Call":  second(a.Call(t.Context(), kindNote, nil)),
		"a request by Post": a.Post(kindEcho, nil),
		"an unknown kind":   a.Post(99, nil),
	} {
		if err == nil {
			t.Errorf("%s was sent", name)
		}
	}
	if p, err := a.Call(t.Context(), kindEcho, []byte("x")); err != nil || string(p.Body) != "x" {
		t.Errorf("afterwards: %q, %v", p.Body, err)
	}
}

func second(_ Reply, err error) error { return err }

// TestGiveUp: a Call ends at its deadline. The answer that comes later is dropped, and the
// connection goes on.
func TestGiveUp(t *testing.T) {
	held := make(chan *Message, 1)
	a, _ := pair(t, func(c *Config) {
		c.Handle = func(m *Message) {
			if m.Kind == kindLater {
				held <- m
				return
			}
			_ = m.Answer(m.Body)
		}
	})
	ctx, stop := context.WithCancel(t.Context())
	failed := make(chan error)
	go func() { failed <- second(a.Call(ctx, kindLater, nil)) }()
	m := <-held
	stop()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	must(t, m.Answer([]byte("x")))
	if p, err := a.Call(t.Context(), kindEcho, []byte("y")); err != nil || string(p.Body) != "y" {
		t.Errorf("afterwards: %q, %v", p.Body, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.waiting) != 0 {
		t.Errorf("%d calls are left", len(a.waiting))
	}
}

// TestDeadline: a Call waits for Config.Timeout, unless its context has a deadline.
func TestDeadline(t *testing.T) {
	held := make(chan *Message, 2)
	a, _ := pair(t, func(c *Config) {
		c.Timeout = 20 * time.Millisecond
		c.Handle = func(m *Message) { held <- m }
	})
	long, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	answered := make(chan error)
	go func() { answered <- second(a.Call(long, kindLater, nil)) }()
	m := <-held
	// This call begins later and gives up.
	if err := second(a.Call(t.Context(), kindLater, nil)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("without a deadline: %v", err)
	}
	must(t, m.Answer([]byte("x")))
	if err := <-answered; err != nil {
		t.Errorf("with a deadline: %v", err)
	}
}

// TestEnd: the end of one side ends the calls of the other, after the messages before it.
func TestEnd(t *testing.T) {
	notes := make(chan string, 3)
	a, b := pair(t, func(c *Config) {
		c.Handle = func(m *Message) {
			if m.Kind == kindNote {
				notes <- string(m.Body)
			}
		}
	})
	failed := make(chan error)
	go func() { failed <- second(a.Call(t.Context(), kindNever, nil)) }()
	for i := range 3 {
		must(t, b.Post(kindNote, fmt.Append(nil, i)))
	}
	for i := range 3 {
		if got := <-notes; got != fmt.Sprint(i) {
			t.Errorf("note %q, want %d", got, i)
		}
	}
	b.Close()
	if err := <-failed; !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	<-a.Gone()
	if err := a.Post(kindNote, nil); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if !errors.Is(a.Err(), ErrClosed) {
		t.Error(a.Err())
	}
}

// TestBounds: a side that takes nothing, and one that asks too much, end the connection.
func TestBounds(t *testing.T) {
	t.Run("takes nothing", func(t *testing.T) {
		fa, fb, err := Pair()
		must(t, err)
		defer unix.Close(fb)
		a := start(t, fa, Config{Out: rules, Timeout: 20 * time.Millisecond})
		for err == nil {
			err = a.Post(kindNote, nil)
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
		<-a.Gone()
	})
	t.Run("asks too much", func(t *testing.T) {
		fa, fb, err := Pair()
		must(t, err)
		a := start(t, fa, Config{In: rules, Pending: 4})
		b := start(t, fb, Config{Out: rules, Timeout: time.Minute})
		var all sync.WaitGroup
		for range 5 {
			all.Go(func() { _, _ = b.Call(t.Context(), kindNever, nil) })
		}
		all.Wait()
		<-a.Gone()
		if !errors.Is(a.Err(), ErrProtocol) {
			t.Error(a.Err())
		}
	})
	t.Run("waits for too much", func(t *testing.T) {
		a, _ := pair(t, func(c *Config) { c.Pending = 1 })
		go func() { _, _ = a.Call(t.Context(), kindNever, nil) }()
		for {
			a.mu.Lock()
			n := len(a.waiting)
			a.mu.Unlock()
			if n == 1 {
				break
			}
			time.Sleep(time.Millisecond)
		}
		if err := second(a.Call(t.Context(), kindEcho, nil)); !errors.Is(err, ErrBusy) {
			t.Error(err)
		}
	})
}

// TestViolations: each frame that breaks a rule ends the connection, and its files are closed.
func TestViolations(t *testing.T) {
	frame := func(h header, body int) []byte { return append(h.append(nil), make([]byte, body)...) }
	before := openFiles(t)
	for _, tt := range []struct {
		name  string
		frame []byte
		files int
	}{
		{"short", []byte{1}, 0},
		{"unknown kind", frame(header{kind: 99, class: classNotice}, 0), 0},
		{"unknown class", frame(header{kind: kindNote, class: 9}, 0), 0},
		{"notice as request", frame(header{kind: kindNote, class: classRequest, id: 1}, 0), 0},
		{"request as notice", frame(header{kind: kindEcho, class: classNotice}, 0), 0},
		{"request without id", frame(header{kind: kindEcho, class: classRequest}, 0), 0},
		{"notice with id", frame(header{kind: kindNote, class: classNotice, id: 1}, 0), 0},
		{"wrong length", frame(header{kind: kindNote, class: classNotice, body: 7}, 8), 0},
		{"long body", frame(header{kind: kindNote, class: classNotice, body: 9}, 9), 0},
		{"very long frame", frame(header{kind: kindNote, class: classNotice, body: MaxBody + 1}, MaxBody+1), 0},
		{"reserved bytes", append(frame(header{kind: kindNote, class: classNotice}, 0)[:15], 1), 0},
		{"surplus files", frame(header{kind: kindNote, class: classNotice, files: 2}, 0), 2},
		{"unannounced file", frame(header{kind: kindNote, class: classNotice}, 0), 1},
		{"missing file", frame(header{kind: kindNote, class: classNotice, files: 1}, 0), 0},
		{"most files", frame(header{kind: kindEcho, class: classRequest, id: 1, files: MaxFiles}, 0), MaxFiles},
		{"answer unasked", frame(header{kind: kindEcho, class: classAnswer, id: 1}, 0), 0},
		{"failure unasked", append(frame(header{kind: kindEcho, class: classFailure, id: 1, body: 6}, 0), failure(unix.EIO)[:6]...), 0},
		{"answer to a notice", frame(header{kind: kindNote, class: classAnswer, id: 1}, 0), 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fa, fb, err := Pair()
			must(t, err)
			defer unix.Close(fb)
			a := start(t, fa, Config{In: rules, Out: rules, Handle: func(m *Message) { t.Errorf("kind %d was handled", m.Kind) }})
			fds := make([]int, tt.files)
			for i := range fds {
				fds[i] = fb
			}
			must(t, unix.Sendmsg(fb, tt.frame, unix.UnixRights(fds...), nil, 0))
			<-a.Done()
			if !errors.Is(a.Err(), ErrProtocol) {
				t.Error(a.Err())
			}
		})
	}
	if now := openFiles(t); now > before {
		t.Errorf("%d files are open, %d before", now, before)
	}
}

// TestRate: frames beyond the rate wait.
func TestRate(t *testing.T) {
	fa, fb, err := Pair()
	must(t, err)
	taken := make(chan time.Time, 30)
	start(t, fa, Config{In: rules, Rate: 1000, Burst: 10, Handle: func(*Message) { taken <- time.Now() }})
	b := start(t, fb, Config{Out: rules, Timeout: time.Minute})
	begin := time.Now()
	for range 30 {
		must(t, b.Post(kindNote, nil))
	}
	var last time.Time
	for range 30 {
		last = <-taken
	}
	if d := last.Sub(begin); d < 19*time.Millisecond {
		t.Errorf("30 frames were taken in %v", d)
	}
}

func TestNew(t *testing.T) {
	before := openFiles(t)
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	if _, err := New(p[0], Config{}); err == nil {
		t.Error("a stream was taken")
	}
	if _, err := New(p[1], Config{In: Rules{1: {Ask: Size{Body: MaxBody + 1}}}}); err == nil {
		t.Error("a rule beyond the bounds was taken")
	}
	if now := openFiles(t); now > before {
		t.Errorf("%d files are open, %d before", now, before)
	}
}

func TestCodec(t *testing.T) {
	var w Writer
	w.U8(1)
	w.Bool(true)
	w.U16(2)
	w.U32(3)
	w.U64(4)
	w.I64(-5)
	w.Raw([]byte{6, 7})
	w.Blob([]byte{8})
	w.String("nine")
	r := NewReader(w.Bytes())
	got := []any{r.U8(), r.Bool(), r.U16(), r.U32(), r.U64(), r.I64(), r.Raw(2), r.Blob(1), r.String(4), r.End()}
	want := []any{uint8(1), true, uint16(2), uint32(3), uint64(4), int64(-5), []byte{6, 7}, []byte{8}, "nine", nil}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for name, read := range map[string]func(*Reader){
		"bytes are left":     func(*Reader) {},
		"too few bytes":      func(r *Reader) { r.U64() },
		"a boolean of 2":     func(r *Reader) { r.Bool(); r.Raw(3) },
		"a string too long":  func(r *Reader) { _ = r.String(1) },
		"more than are left": func(r *Reader) { r.Count(1<<20, 1) },
		"not accepted":       func(r *Reader) { r.Raw(4); r.Fail() },
	} {
		r := NewReader([]byte{2, 0, 0, 0})
		if read(r); !errors.Is(r.End(), ErrBody) {
			t.Errorf("%s: %v", name, r.End())
		}
	}
	if r := NewReader([]byte{1, 0, 0, 0, 0xff}); r.String(1) != "" || r.End() == nil {
		t.Error("a string that is not UTF-8")
	}
}

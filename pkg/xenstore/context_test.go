// SPDX-License-Identifier: Apache-2.0

package xenstore

import (
	"context"
	"errors"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// slowPeer answers each request when the test allows it. It lists the requests that have
// reached it as type, transaction and payload.
type slowPeer struct {
	*peer
	asked chan message
	log   []string
}

func dialSlowPeer(t testing.TB, kind Kind, opts ...Option) (*Client, *slowPeer) {
	c, p := dialPeer(t, kind, opts...)
	s := &slowPeer{peer: p, asked: make(chan message, 100)}
	go p.serve(func(m message) { s.asked <- m })
	return c, s
}

// next takes the next request.
func (p *slowPeer) next() message {
	m := <-p.asked
	p.log = append(p.log, m.Header.Type.String()+" "+strconv.Itoa(int(m.Header.TxID))+" "+strconv.Quote(m.Payload))
	return m
}

// interrupted calls f with a ctx that ends while f waits, and checks its error.
func interrupted(t *testing.T, op string, f func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- f(ctx) }()
	synctest.Wait()
	cancel()
	err := <-result
	var e *Error
	if !errors.Is(err, context.Canceled) || !errors.As(err, &e) || e.Op != op || errors.Is(err, ErrClosed) {
		t.Errorf("%s: %v", op, err)
	}
}

// inStep checks that the next request is answered.
func (p *slowPeer) inStep(t *testing.T, c *Client) {
	t.Helper()
	got := make(chan string, 1)
	go func() {
		v, err := c.Read(t.Context(), "/after")
		if err != nil {
			t.Errorf("a later request: %v", err)
		}
		got <- v
	}()
	p.reply(p.next(), "fine")
	if v := <-got; v != "fine" {
		t.Errorf("a later request: %q", v)
	}
}

func TestLateReplyIsDropped(t *testing.T) {
	for _, kind := range []Kind{Socket, Xenbus} {
		t.Run(kind.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, p := dialSlowPeer(t, kind)
				interrupted(t, "READ", func(ctx context.Context) error { _, err := c.Read(ctx, "/slow"); return err })
				late := p.next()
				if kind == Xenbus {
					// The next request waits until the late reply is there.
					go p.reply(late, "late")
				} else {
					defer func() { p.reply(late, "late"); p.inStep(t, c) }()
				}
				p.inStep(t, c)
			})
		})
	}
}

func TestLateErrorIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, p := dialSlowPeer(t, Socket)
		interrupted(t, "WATCH", func(ctx context.Context) error { _, err := c.Watch(ctx, "/slow"); return err })
		p.refuse(p.next(), "EACCES")
		p.inStep(t, c)
		if diff := cmp.Diff([]string{`WATCH 0 "/slow\x001\x00"`, `READ 0 "/after\x00"`}, p.log); diff != "" {
			t.Errorf("requests (-want +got):\n%s", diff)
		}
	})
}

// On Xenbus a request waits for the reply to the one before, and is not sent at all if its
// ctx ends meanwhile.
func TestRequestIsWithdrawn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, p := dialSlowPeer(t, Xenbus)
		interrupted(t, "READ", func(ctx context.Context) error { _, err := c.Read(ctx, "/slow"); return err })
		interrupted(t, "WRITE", func(ctx context.Context) error { return c.Write(ctx, "/a", "x") })
		interrupted(t, "TRANSACTION_START", func(ctx context.Context) error {
			return c.Transaction(ctx, func(*Tx) error { t.Error("called"); return nil })
		})
		p.reply(p.next(), "late")
		p.inStep(t, c)
		if diff := cmp.Diff([]string{`READ 0 "/slow\x00"`, `READ 0 "/after\x00"`}, p.log); diff != "" {
			t.Errorf("requests (-want +got):\n%s", diff)
		}
	})
}

func TestContextThatHasEnded(t *testing.T) {
	c, p := dialPeer(t, Socket)
	go p.serve(func(m message) { t.Errorf("%v was sent", m.Header.Type) })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, readErr := c.Read(ctx, "/a")
	_, watchErr := c.Watch(ctx, "/a")
	_, aliveErr := c.IsIntroduced(ctx, 1)
	_, dialErr := Dial(ctx, "/dev/ptmx")
	for name, err := range map[string]error{
		"read": readErr, "watch": watchErr, "introduced": aliveErr, "dial": dialErr, "write": c.Write(ctx, "/a", "x"),
		"transaction": c.Transaction(ctx, func(*Tx) error { t.Error("called"); return nil }),
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := c.Err(); err != nil {
		t.Errorf("the connection ended: %v", err)
	}
}

// What an interrupted call has left in xenstored is undone when its reply comes.
func TestLateReplyIsUndone(t *testing.T) {
	for _, kind := range []Kind{Socket, Xenbus} {
		t.Run(kind.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, p := dialSlowPeer(t, kind)
				interrupted(t, "TRANSACTION_START", func(ctx context.Context) error {
					return c.Transaction(ctx, func(*Tx) error { t.Error("called"); return nil })
				})
				p.reply(p.next(), "41\x00")
				p.ok(p.next())
				interrupted(t, "WATCH", func(ctx context.Context) error { _, err := c.Watch(ctx, "/w"); return err })
				p.event("/w", "1")
				p.ok(p.next())
				p.ok(p.next())
				p.inStep(t, c)
				if diff := cmp.Diff([]string{
					`TRANSACTION_START 0 "\x00"`, `TRANSACTION_END 41 "F\x00"`,
					`WATCH 0 "/w\x001\x00"`, `UNWATCH 0 "/w\x001\x00"`,
					`READ 0 "/after\x00"`,
				}, p.log); diff != "" {
					t.Errorf("requests (-want +got):\n%s", diff)
				}
				if n := len(c.watches); n != 0 {
					t.Errorf("%d watches are kept", n)
				}
			})
		})
	}
}

func TestInterruptedTransactionIsAborted(t *testing.T) {
	for name, fn := range map[string]func(context.Context, *Tx, context.CancelFunc) error{
		"before the commit": func(_ context.Context, _ *Tx, cancel context.CancelFunc) error { cancel(); return nil },
		"in a request": func(ctx context.Context, tx *Tx, cancel context.CancelFunc) error {
			cancel()
			return tx.Write(ctx, "/a", "x")
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, p := dialSlowPeer(t, Socket)
				ctx, cancel := context.WithCancel(t.Context())
				result := make(chan error, 1)
				go func() {
					result <- c.Transaction(ctx, func(tx *Tx) error { return fn(ctx, tx, cancel) })
				}()
				p.reply(p.next(), "7\x00")
				var e *Error
				if err := <-result; !errors.Is(err, context.Canceled) || !errors.As(err, &e) {
					t.Errorf("got %v", err)
				}
				p.ok(p.next()) // the call did not wait for it
				p.inStep(t, c)
				want := []string{`TRANSACTION_START 0 "\x00"`, `TRANSACTION_END 7 "F\x00"`, `READ 0 "/after\x00"`}
				if diff := cmp.Diff(want, p.log); diff != "" {
					t.Errorf("requests (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// A commit that waits to be sent becomes an abort.
func TestCommitIsWithdrawn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, p := dialSlowPeer(t, Xenbus)
		ready, commit := make(chan struct{}), make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		result := make(chan error, 1)
		go func() {
			result <- c.Transaction(ctx, func(*Tx) error { close(ready); <-commit; return nil })
		}()
		p.reply(p.next(), "7\x00")
		<-ready
		interrupted(t, "READ", func(ctx context.Context) error { _, err := c.Read(ctx, "/slow"); return err })
		close(commit)
		synctest.Wait()
		cancel()
		if err := <-result; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		p.reply(p.next(), "late")
		p.ok(p.next())
		p.inStep(t, c)
		if diff := cmp.Diff([]string{
			`TRANSACTION_START 0 "\x00"`, `READ 0 "/slow\x00"`, `TRANSACTION_END 7 "F\x00"`, `READ 0 "/after\x00"`,
		}, p.log); diff != "" {
			t.Errorf("requests (-want +got):\n%s", diff)
		}
	})
}

func TestContextEndsThePauseOfATransaction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, p := dialPeer(t, Socket)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go p.serve(func(m message) {
			if m.Header.Type == MsgTransactionStart {
				p.reply(m, "1\x00")
				return
			}
			time.AfterFunc(minPause/4, cancel)
			p.refuse(m, "EAGAIN")
		})
		if err := c.Transaction(ctx, func(*Tx) error { return nil }); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
}

// An xenstored that answers no more is noticed also if no caller waits so long.
func TestTimeoutOfAnInterruptedRequest(t *testing.T) {
	for _, kind := range []Kind{Socket, Xenbus} {
		t.Run(kind.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, _ := dialSlowPeer(t, kind)
				start := time.Now()
				for range 50 {
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					if _, err := c.Read(ctx, "/a"); !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("got %v", err)
					}
					cancel()
				}
				<-c.Done()
				if err := c.Err(); !errors.Is(err, ErrTimeout) {
					t.Errorf("reason %v", err)
				}
				if d := time.Since(start); d != DefaultTimeout {
					t.Errorf("it took %v", d)
				}
			})
		})
	}
}

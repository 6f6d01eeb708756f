// SPDX-License-Identifier: Apache-2.0

package xenstore

import (
	"errors"
	"io"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// txPeer answers transactions: the first conflicts commits fail. It records
// type, transaction and payload of every request.
func txPeer(t *testing.T, conflicts int) (*Client, func() []string) {
	c, p := dialPeer(t, Socket)
	var log []string
	next := 40
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		p.serve(func(m message) {
			log = append(log, m.Header.Type.String()+" "+strconv.Itoa(int(m.Header.TxID))+" "+strconv.Quote(m.Payload))
			switch {
			case m.Header.Type == MsgTransactionStart:
				next++
				p.reply(m, strconv.Itoa(next)+"\x00")
			case m.Header.Type == MsgTransactionEnd && m.Payload == "T\x00" && conflicts > 0:
				conflicts--
				p.refuse(m, "EAGAIN")
			case m.Header.Type == MsgRead:
				p.reply(m, "v")
			default:
				p.ok(m)
			}
		})
	}()
	return c, func() []string {
		_ = c.Close()
		<-finished
		return log
	}
}

func TestTransactionCommits(t *testing.T) {
	c, log := txPeer(t, 0)
	var kept *Tx
	err := c.Transaction(t.Context(), func(tx *Tx) error {
		kept = tx
		if v, err := tx.Read(t.Context(), "/a"); err != nil || v != "v" {
			t.Errorf("%q, %v", v, err)
		}
		if err := c.Mkdir(t.Context(), "/outside"); err != nil {
			t.Error(err)
		}
		return tx.Write(t.Context(), "/a", "w")
	})
	if err != nil {
		t.Error(err)
	}
	if err := kept.Write(t.Context(), "/a", "late"); !errors.Is(err, ErrTxDone) {
		t.Errorf("use after the end: %v", err)
	}
	if diff := cmp.Diff([]string{
		`TRANSACTION_START 0 "\x00"`,
		`READ 41 "/a\x00"`,
		`MKDIR 0 "/outside\x00"`,
		`WRITE 41 "/a\x00w"`,
		`TRANSACTION_END 41 "T\x00"`,
	}, log()); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}

func TestTransactionAbortsWhenTheFunctionFails(t *testing.T) {
	c, log := txPeer(t, 0)
	var kept *Tx
	if err := c.Transaction(t.Context(), func(tx *Tx) error { kept = tx; return io.ErrNoProgress }); err != io.ErrNoProgress {
		t.Errorf("got %v", err)
	}
	if _, err := kept.Read(t.Context(), "/a"); !errors.Is(err, ErrTxDone) {
		t.Errorf("use after the end: %v", err)
	}
	func() {
		defer func() {
			if r := recover(); r != "ouch" {
				t.Errorf("recovered %v", r)
			}
		}()
		_ = c.Transaction(t.Context(), func(*Tx) error { panic("ouch") })
	}()
	if diff := cmp.Diff([]string{
		`TRANSACTION_START 0 "\x00"`,
		`TRANSACTION_END 41 "F\x00"`,
		`TRANSACTION_START 0 "\x00"`,
		`TRANSACTION_END 42 "F\x00"`,
	}, log()); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}

func TestTransactionStartsOverOnConflict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, log := txPeer(t, 2)
		runs := 0
		start := time.Now()
		if err := c.Transaction(t.Context(), func(tx *Tx) error {
			runs++
			return tx.Write(t.Context(), "/run", strconv.Itoa(runs))
		}); err != nil {
			t.Error(err)
		}
		if d := time.Since(start); d < 3*minPause/2 || d > 3*minPause {
			t.Errorf("the pauses were %v", d)
		}
		if diff := cmp.Diff([]string{
			`TRANSACTION_START 0 "\x00"`, `WRITE 41 "/run\x001"`, `TRANSACTION_END 41 "T\x00"`,
			`TRANSACTION_START 0 "\x00"`, `WRITE 42 "/run\x002"`, `TRANSACTION_END 42 "T\x00"`,
			`TRANSACTION_START 0 "\x00"`, `WRITE 43 "/run\x003"`, `TRANSACTION_END 43 "T\x00"`,
		}, log()); diff != "" {
			t.Errorf("requests (-want +got):\n%s", diff)
		}
	})
}

func TestTransactionOfAFunctionThatAsksForAnotherAttempt(t *testing.T) {
	c, log := txPeer(t, 0)
	runs := 0
	if err := c.Transaction(t.Context(), func(*Tx) error {
		if runs++; runs == 1 {
			return &Error{Op: "READ", Err: ErrAgain}
		}
		return nil
	}); err != nil || runs != 2 {
		t.Errorf("%d runs, %v", runs, err)
	}
	if diff := cmp.Diff([]string{
		`TRANSACTION_START 0 "\x00"`, `TRANSACTION_END 41 "F\x00"`,
		`TRANSACTION_START 0 "\x00"`, `TRANSACTION_END 42 "T\x00"`,
	}, log()); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}

func TestTransactionGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, log := txPeer(t, 1<<30)
		start := time.Now()
		if err := c.Transaction(t.Context(), func(*Tx) error { return nil }); !errors.Is(err, ErrAgain) {
			t.Errorf("got %v", err)
		}
		if d := time.Since(start); d > 750*time.Millisecond {
			t.Errorf("it took %v", d)
		}
		if n := len(log()); n != 2*maxAttempts {
			t.Errorf("%d requests", n)
		}
	})
}

func TestTransactionThatCannotStart(t *testing.T) {
	c, p := dialPeer(t, Socket)
	go p.serve(func(m message) { p.refuse(m, "ENOSPC") })
	if err := c.Transaction(t.Context(), func(*Tx) error { t.Error("called"); return nil }); !errors.Is(err, ErrQuota) {
		t.Errorf("got %v", err)
	}
}

func TestTransactionIDThatMakesNoSense(t *testing.T) {
	for _, id := range []string{"", "\x00", "0\x00", "-1\x00", "4294967296\x00", "seven\x00"} {
		c, p := dialPeer(t, Socket)
		go p.serve(func(m message) { p.reply(m, id) })
		err := c.Transaction(t.Context(), func(*Tx) error { t.Error("called"); return nil })
		if !errors.Is(err, ErrProtocol) {
			t.Errorf("%q: %v", id, err)
		}
		if err := c.Err(); !errors.Is(err, ErrProtocol) {
			t.Errorf("%q: the connection stands with a transaction that cannot be ended: %v", id, err)
		}
	}
}

func TestCloseEndsThePauseOfATransaction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, p := dialPeer(t, Socket)
		var ends atomic.Int64
		go p.serve(func(m message) {
			switch m.Header.Type {
			case MsgTransactionStart:
				p.reply(m, "1\x00")
			case MsgTransactionEnd:
				if ends.Add(1) == 10 {
					time.AfterFunc(time.Millisecond, func() { _ = c.Close() })
				}
				p.refuse(m, "EAGAIN")
			}
		})
		if err := c.Transaction(t.Context(), func(*Tx) error { return nil }); !errors.Is(err, ErrClosed) {
			t.Errorf("got %v", err)
		}
		if n := ends.Load(); n != 10 {
			t.Errorf("%d attempts", n)
		}
	})
}

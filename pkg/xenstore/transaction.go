// SPDX-License-Identifier: Apache-2.0

package xenstore

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"
)

const (
	// maxAttempts bounds how often a transaction is tried. The pauses between
	// add up to 0.7 s at most.
	maxAttempts = 20

	// The pause after attempt n is drawn from the upper half of minPause << n,
	// up to maxPause: writers that collided once should not collide again in
	// step.
	minPause = time.Millisecond
	maxPause = 50 * time.Millisecond
)

// Tx is a transaction: the store as it was when the transaction started, plus
// its own changes. It is valid until the function it was given to returns; use
// after that is ErrTxDone.
type Tx struct {
	view
}

// Requests returns how many requests were made within the transaction so far.
func (tx *Tx) Requests() int { return int(tx.sent.Load()) }

// Transaction calls fn and commits what it did, all or nothing, so that others
// see the changes at once. If fn returns an error, or panics, nothing is changed
// and Transaction returns that error.
//
// If somebody else changed meanwhile what fn has read or written, xenstored
// refuses the commit. Transaction then starts over, after a short random pause,
// and gives up with ErrAgain in the end. So fn may run several times: it must
// set what it returns through captured variables anew each time, and must have
// no effect besides the transaction. fn may return ErrAgain itself to ask for
// another attempt.
//
// fn must use the Tx for everything that belongs to the transaction; calls on
// the Client are outside of it.
func (c *Client) Transaction(fn func(*Tx) error) error {
	for n := 1; ; n++ {
		err := c.attempt(fn)
		if !isErr(err, ErrAgain) {
			return err
		}
		if n == maxAttempts {
			return fmt.Errorf("gave up after %d attempts: %w", n, err)
		}
		if err := c.pause(n - 1); err != nil {
			return &Error{Op: MsgTransactionStart.String(), Err: err}
		}
	}
}

// attempt runs one transaction.
func (c *Client) attempt(fn func(*Tx) error) error {
	id, err := c.startTransaction()
	if err != nil {
		return err
	}
	tx := &Tx{view{c: c, tx: id}}
	commit := false
	defer func() {
		if !commit {
			// fn failed or panicked, that is what the caller should hear of.
			_ = tx.end("F")
		}
	}()
	if err := fn(tx); err != nil {
		return err
	}
	commit = true
	return tx.end("T")
}

// startTransaction returns the id of a new transaction. The request itself must
// not carry one.
func (c *Client) startTransaction() (uint32, error) {
	b, err := c.call(MsgTransactionStart, 0, "", []byte{0})
	if err != nil {
		return 0, err
	}
	id, err := strconv.ParseUint(strings.TrimSuffix(string(b), "\x00"), 10, 32)
	if err != nil || id == 0 {
		// A transaction was started that cannot be named, hence not ended.
		err := badReply(MsgTransactionStart, "", b)
		c.fail(err)
		return 0, err
	}
	return uint32(id), nil
}

// end commits ("T") or discards ("F") the transaction.
func (tx *Tx) end(how string) error {
	tx.over.Store(true)
	_, err := tx.c.call(MsgTransactionEnd, tx.tx, "", AppendStrings(nil, how))
	return err
}

// pause waits after attempt n, counted from 0, unless the connection ends.
func (c *Client) pause(n int) error {
	d := min(minPause<<n, maxPause)
	t := time.NewTimer(d/2 + rand.N(d/2))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-c.done:
		return c.Err()
	}
}

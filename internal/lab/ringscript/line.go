// SPDX-License-Identifier: Apache-2.0

package ringscript

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/netbackd/netbackd/internal/lab/netfront"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// Player and umpire exchange messages over two nodes below askDir in the guest's home:
// the player writes "SERIAL QUESTION" to one, the umpire "SERIAL ok ANSWER" or
// "SERIAL fail REASON" to the other. Each serial is used once.
const (
	askDir     = "data/ringscript"
	askNode    = askDir + "/ask"
	answerNode = askDir + "/answer"
)

// Line is the player's end of the connection to the umpire.
type Line struct {
	store  netfront.Store
	watch  *xenstore.Watch
	serial int64
}

var _ Asker = (*Line)(nil)

// Call opens the connection, in the guest.
func Call(ctx context.Context, store netfront.Store) (*Line, error) {
	// The guest creates the node, so that both may write it and the guest may read it.
	if err := store.Write(ctx, answerNode, ""); err != nil {
		return nil, fmt.Errorf("ringscript: %w", err)
	}
	w, err := store.Watch(ctx, answerNode)
	if err != nil {
		return nil, fmt.Errorf("ringscript: %w", err)
	}
	return &Line{store: store, watch: w, serial: time.Now().UnixNano()}, nil
}

// Close closes the connection.
func (l *Line) Close() { l.watch.Close() }

// Ask sends a question to the umpire and waits for the answer.
func (l *Line) Ask(ctx context.Context, question string) (string, error) {
	l.serial++
	serial := strconv.FormatInt(l.serial, 10)
	if err := l.store.Write(ctx, askNode, serial+" "+question); err != nil {
		return "", fmt.Errorf("ask the umpire %q: %w", question, err)
	}
	for {
		text, err := l.store.Read(ctx, answerNode)
		if err != nil {
			return "", fmt.Errorf("ask the umpire %q: %w", question, err)
		}
		if answer, mine := strings.CutPrefix(text, serial+" "); mine {
			if said, ok := strings.CutPrefix(answer, "ok "); ok {
				return said, nil
			}
			return "", fmt.Errorf("asked the umpire %q: %s", question, strings.TrimPrefix(answer, "fail "))
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("the umpire does not answer to %q: %w", question, ctx.Err())
		case _, open := <-l.watch.C():
			if !open {
				return "", xenstore.ErrClosed
			}
		}
	}
}

// maxAnswer is the longest answer in bytes. A guest's node can hold a little more.
const maxAnswer = 1900

// Serve answers a guest's player until ctx ends.
func (u *Umpire) Serve(ctx context.Context) error {
	home := fmt.Sprintf("/local/domain/%d/", u.cfg.Domid)
	w, err := u.cfg.Store.Watch(ctx, home+askNode)
	if err != nil {
		return err
	}
	defer w.Close()
	last := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, open := <-w.C():
			if !open {
				return xenstore.ErrClosed
			}
		}
		text, err := u.cfg.Store.Read(ctx, home+askNode)
		switch {
		case errors.Is(err, xenstore.ErrNotExist):
			continue
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		}
		serial, question, _ := strings.Cut(text, " ")
		if serial == last {
			continue
		}
		last = serial
		answer, err := u.answer(ctx, question)
		reply := "ok " + answer
		if err != nil {
			reply = "fail " + err.Error()
		}
		if len(reply) > maxAnswer {
			reply = fmt.Sprintf("fail the answer has %d bytes: %s...", len(reply), reply[:maxAnswer])
		}
		if err := u.cfg.Store.Write(ctx, home+answerNode, serial+" "+reply); err != nil && ctx.Err() == nil {
			return err
		}
	}
}

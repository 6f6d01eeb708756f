// SPDX-License-Identifier: Apache-2.0

package xenstore

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"testing"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
)

// FuzzServer lets a Client with requests outstanding and a watch hear an
// arbitrary stream, which then ends. With any stream every call returns, the
// watch closes, and the client stops.
func FuzzServer(f *testing.F) {
	reply := func(typ MessageType, id uint32, payload string) []byte {
		return AppendMessage(nil, Header{Type: typ, ReqID: id}, []byte(payload))
	}
	f.Add(reply(MsgRead, 2, "value"), byte(7))
	f.Add(reply(MsgError, 3, "ENOENT\x00"), byte(0))
	f.Add(join(reply(MsgWatchEvent, 9, "/w\x001\x00"), reply(MsgWatch, 1, "OK\x00"), reply(MsgWatchEvent, 9, "/w/a\x001\x00")), byte(20))
	f.Add(join(reply(MsgTransactionStart, 4, "7\x00"), reply(MsgTransactionEnd, 5, "OK\x00")), byte(99))
	f.Add(reply(MsgDirectory, 4, "a\x00b"), byte(1))
	f.Add([]byte("garbage that is longer than a header"), byte(3))
	fuzzloop.Fuzz(f, func(t *testing.T, stream []byte, size byte) {
		const calls = 4
		asked := make(chan struct{}, calls)
		gone := make(chan struct{})
		said := &chunks{data: stream, size: []byte{size}}
		var start, once sync.Once
		c := New(conn{
			read: func(b []byte) (int, error) {
				start.Do(func() {
					for range calls {
						select {
						case <-asked:
						case <-gone:
							return
						}
					}
				})
				return said.Read(b)
			},
			write: func(b []byte) (int, error) {
				select {
				case asked <- struct{}{}:
				default: // what follows an answer
				}
				return len(b), nil
			},
			close: func() error { once.Do(func() { close(gone) }); return nil },
		}, Socket)
		var wg sync.WaitGroup
		wg.Go(func() {
			w, err := c.Watch(t.Context(), "/w")
			if err == nil {
				for range w.C() {
				}
			}
		})
		wg.Go(func() { _, _ = c.Read(t.Context(), "/a") })
		wg.Go(func() { _, _ = c.List(t.Context(), "/a") })
		wg.Go(func() { _ = c.Transaction(t.Context(), func(tx *Tx) error { return tx.Mkdir(t.Context(), "/a") }) })
		wg.Wait()
		<-c.Done()
		if err := c.Err(); !errors.Is(err, ErrClosed) {
			t.Errorf("reason %v", err)
		}
		if err := c.Err(); !errors.Is(err, ErrProtocol) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("reason %v", err)
		}
		_ = c.Close()
	})
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

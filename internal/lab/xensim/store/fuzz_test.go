// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// wire builds the bytes of requests, behind a byte for their sender. In payloads | is NUL.
func wire(who byte, requests ...any) []byte {
	b := []byte{who}
	for i := 0; i < len(requests); i += 3 {
		h := xenstore.Header{
			Type:  requests[i].(xenstore.MessageType),
			ReqID: uint32(i),
			TxID:  uint32(requests[i+1].(int)),
		}
		b = xenstore.AppendMessage(b, h, []byte(strings.ReplaceAll(requests[i+2].(string), "|", "\x00")))
	}
	return b
}

func addSeeds(f *testing.F) {
	const (
		socket = 0
		guest  = 5
	)
	for _, who := range []byte{socket, guest} {
		f.Add(wire(who,
			xenstore.MsgWrite, 0, "a/b|1",
			xenstore.MsgRead, 0, "a/b|",
			xenstore.MsgDirectory, 0, "a|",
			xenstore.MsgDirectoryPart, 0, "a|0|",
			xenstore.MsgGetPerms, 0, "a|",
			xenstore.MsgSetPerms, 0, "a|n5|r6|b0|",
			xenstore.MsgMkdir, 0, "a/c|",
			xenstore.MsgRemove, 0, "a|",
		))
		f.Add(wire(who,
			xenstore.MsgWatch, 0, "a|t|",
			xenstore.MsgTransactionStart, 0, "|",
			xenstore.MsgWrite, 1, "a/b|1",
			xenstore.MsgRemove, 1, "a|",
			xenstore.MsgTransactionEnd, 1, "T|",
			xenstore.MsgTransactionStart, 0, "|",
			xenstore.MsgWrite, 2, "a/b|1",
			xenstore.MsgWrite, 0, "a/b|2",
			xenstore.MsgTransactionEnd, 2, "T|",
			xenstore.MsgUnwatch, 0, "a|t|",
		))
		f.Add(wire(who,
			xenstore.MsgIntroduce, 0, "7|1|1|",
			xenstore.MsgSetTarget, 0, "6|5|",
			xenstore.MsgResume, 0, "5|",
			xenstore.MsgRelease, 0, "6|",
			xenstore.MsgIsDomainIntroduced, 0, "6|",
			xenstore.MsgGetDomainPath, 0, "6|",
			xenstore.MsgSetPerms, 0, "@releaseDomain|n0|r5|",
			xenstore.MsgWatch, 0, "@releaseDomain|r|",
			xenstore.MsgControl, 0, "quota|set|nodes|3|",
			xenstore.MsgControl, 0, "quota|5|",
			xenstore.MsgControl, 0, "help|",
			xenstore.MsgTransactionStart, 0, "|",
			xenstore.MsgResetWatches, 1, "|",
			xenstore.MsgRestrict, 0, "5|",
		))
	}
	f.Add([]byte{socket, 0, 0, 0})
	f.Add(append([]byte{guest}, xenstore.Header{Type: xenstore.MsgRead, Len: 4097}.AppendTo(nil)...))
	f.Add(append([]byte{guest}, xenstore.Header{Type: xenstore.MsgRead, Len: 100}.AppendTo(nil)...))
}

// FuzzRequest: any request is answered once, and the store's counts are correct afterwards.
func FuzzRequest(f *testing.F) {
	addSeeds(f)
	fuzzloop.Fuzz(f, func(t *testing.T, in []byte) {
		if len(in) == 0 {
			return
		}
		s := newState(Quota{})
		for _, id := range []uint32{5, 6, 7} {
			s.created(id)
		}
		s.introduce(s.domains[5])
		s.introduce(s.domains[6])
		l, other := s.local(uint32(in[0]%2)*5), s.local(0)
		other.call(xenstore.MsgMkdir, 0, "/local/domain/5|")
		other.call(xenstore.MsgSetPerms, 0, "/local/domain/5|n5|")
		other.call(xenstore.MsgWatch, 0, "/|w|")
		for r := xenstore.NewMessageReader(bytes.NewReader(in[1:])); ; {
			h, payload, err := r.Next()
			if err != nil {
				break
			}
			replies := l.serve(h, payload)
			if len(replies) != 1 && l.c.dead == nil {
				t.Fatalf("%+v %q: %d replies", h, payload, len(replies))
			}
			other.call(xenstore.MsgRead, 0, "/|")
			if err := s.check(); err != nil {
				t.Fatalf("after %+v %q: %v", h, payload, err)
			}
		}
		for _, d := range s.domains {
			if d.outstanding != 0 {
				t.Errorf("domain %d: %d requests outstanding when all is read", d.id, d.outstanding)
			}
		}
		s.died(s.domains[5], ErrDomainDied)
		s.kill(other.c, ErrClosed)
		s.bury()
		if err := s.check(); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzStream: a connection with any bytes is answered or closed, and other connections are
// not affected.
func FuzzStream(f *testing.F) {
	addSeeds(f)
	s := New(Options{})
	f.Cleanup(func() { _ = s.Close() })
	s.DomainCreated(5)
	e := &embedded{t: f, Server: s}
	good := newClient(f, e.socket())
	good.call(xenstore.MsgIntroduce, 0, "5|1|1|")
	fuzzloop.Fuzz(f, func(t *testing.T, in []byte) {
		if len(in) == 0 {
			return
		}
		kind, domid := xenstore.Socket, xen.Domid(0)
		if in[0] != 0 {
			kind, domid = xenstore.Xenbus, 5
		}
		here, there := net.Pipe()
		served := make(chan struct{})
		go func() {
			defer close(served)
			_ = s.ServeConn(there, domid, kind)
		}()
		drained := make(chan struct{})
		go func() {
			defer close(drained)
			_, _ = io.Copy(io.Discard, here)
		}()
		_, _ = here.Write(in[1:])
		_ = here.Close()
		<-served
		<-drained
		if _, err := good.try(xenstore.MsgGetDomainPath, 0, "5|"); err != nil {
			t.Fatal(err)
		}
	})
}

// SPDX-License-Identifier: Apache-2.0

package netfront

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
)

// message is a control message as the backend sees it, with the page that its first
// datum refers to, if any.
type message struct {
	Type netif.CtrlType
	Data []uint32
	Page []byte
}

// newControlPair makes a control ring whose backend answers with answer at each event.
func newControlPair(t *testing.T, answer func(netif.CtrlRequest) *netif.CtrlResponse) (*Control, *machine, *[]message) {
	t.Helper()
	m := newMachine(t)
	c, err := newControl(m.host(), 0, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.close(); err != nil {
			t.Error(err)
		}
	})
	back, err := netif.AttachCtrl(m.Page(c.pages.Refs()[0]))
	if err != nil {
		t.Fatal(err)
	}
	seen := new([]message)
	m.onEvent(c.port, func() {
		for {
			n, err := back.Available()
			if err != nil {
				t.Error(err)
				return
			}
			if n == 0 {
				if more, _ := back.Arm(); !more {
					return
				}
				continue
			}
			q := back.Request(back.ReqCons())
			back.Consume(1)
			msg := message{Type: q.Type, Data: q.Data[:]}
			switch q.Type {
			case netif.CtrlSetHashKey:
				msg.Page = bytes.Clone(m.Page(xen.Gref(q.Data[0]))[:q.Data[1]])
				msg.Data[0] = 0 // any ref will do
			case netif.CtrlSetHashMapping:
				msg.Page = bytes.Clone(m.Page(xen.Gref(q.Data[0]))[:4*q.Data[1]])
				msg.Data[0] = 0
			case netif.CtrlAddGrefMapping:
				msg.Page = bytes.Clone(m.Page(xen.Gref(q.Data[1]))[:8*q.Data[2]])
				msg.Data[1] = 0
			}
			*seen = append(*seen, msg)
			if r := answer(q); r != nil && back.Commit([]netif.CtrlResponse{*r}) {
				m.notify(c.port)
			}
		}
	})
	return c, m, seen
}

// success answers everything with data.
func success(data uint32) func(netif.CtrlRequest) *netif.CtrlResponse {
	return func(q netif.CtrlRequest) *netif.CtrlResponse {
		return &netif.CtrlResponse{ID: q.ID, Type: q.Type, Data: data}
	}
}

func TestSetHash(t *testing.T) {
	c, _, seen := newControlPair(t, success(0))
	key := bytes.Repeat([]byte{0x6d, 0x5a}, 20)
	err := c.SetHash(t.Context(), Hash{Types: 0xf, Key: key, Mapping: []uint32{0, 1, 0, 1}})
	if err != nil {
		t.Fatal(err)
	}
	table := []byte{0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0}
	want := []message{
		{Type: netif.CtrlSetHashAlgorithm, Data: []uint32{1, 0, 0}},
		{Type: netif.CtrlSetHashFlags, Data: []uint32{0xf, 0, 0}},
		{Type: netif.CtrlSetHashKey, Data: []uint32{0, 40, 0}, Page: key},
		{Type: netif.CtrlSetHashMappingSize, Data: []uint32{4, 0, 0}},
		{Type: netif.CtrlSetHashMapping, Data: []uint32{0, 4, 0}, Page: table},
	}
	if diff := cmp.Diff(want, *seen); diff != "" {
		t.Errorf("messages (-want +got):\n%s", diff)
	}
}

func TestStaticGrants(t *testing.T) {
	q, _ := newPair(t, Config{Features: AllFeatures(), TxPages: 20, RxPages: 30}, false)
	for _, room := range []uint32{0, 25, 4096} {
		c, _, seen := newControlPair(t, success(room))
		n, err := c.StaticGrants(t.Context(), q)
		if err != nil || n != int(min(room, 50)) {
			t.Errorf("room for %d: added %d, %v", room, n, err)
		}
		if room == 0 {
			if len(*seen) != 1 {
				t.Errorf("no room, but %d messages", len(*seen))
			}
			continue
		}
		page := (*seen)[1].Page
		for i := range n {
			ref, flags := binary.LittleEndian.Uint32(page[8*i:]), binary.LittleEndian.Uint16(page[8*i+4:])
			wantRef, wantFlags := q.tx.refs, uint16(netif.GrefReadOnly)
			k := i
			if i >= 20 {
				wantRef, wantFlags, k = q.rx.refs, 0, i-20
			}
			if xen.Gref(ref) != wantRef[k] || flags != wantFlags {
				t.Errorf("entry %d: ref %d, flags %d, want %d, %d", i, ref, flags, wantRef[k], wantFlags)
			}
		}
	}
}

func TestSomeStaticGrants(t *testing.T) {
	q, _ := newPair(t, Config{Features: AllFeatures(), TxPages: 20, RxPages: 30}, false)
	for most, want := range map[int]int{1: 1, 25: 25, 1000: 40} {
		c, _, seen := newControlPair(t, success(40))
		if n, err := c.SomeStaticGrants(t.Context(), q, most); n != want || err != nil {
			t.Errorf("%d at most: %d, %v, want %d", most, n, err, want)
		}
		if n := len((*seen)[1].Page) / grefEntry; n != want {
			t.Errorf("%d at most: a list of %d, want %d", most, n, want)
		}
	}
}

// TestEndStaticGrants: EndStaticGrants fails if the backend unmaps fewer grants than it was
// asked to.
func TestEndStaticGrants(t *testing.T) {
	q, _ := newPair(t, Config{Features: AllFeatures(), TxPages: 20, RxPages: 30}, false)
	for _, tt := range []struct {
		name   string
		n      uint32
		failed int // this entry's status; -1: none
		good   bool
	}{
		{"all", 50, -1, true},
		{"one less than it says", 50, 7, false},
		{"one less", 49, -1, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var m *machine
			c, m2, _ := newControlPair(t, func(r netif.CtrlRequest) *netif.CtrlResponse {
				answer := &netif.CtrlResponse{ID: r.ID, Type: r.Type, Data: 50}
				if r.Type == netif.CtrlDelGrefMapping {
					answer.Data = tt.n
					for i := range 50 {
						status := netif.CtrlSuccess
						if i == tt.failed {
							status = netif.CtrlInvalidParameter
						}
						binary.LittleEndian.PutUint16(m.Page(xen.Gref(r.Data[1]))[8*i+6:], uint16(status))
					}
				}
				return answer
			})
			m = m2
			if n, err := c.StaticGrants(t.Context(), q); n != 50 || err != nil {
				t.Fatalf("%d, %v", n, err)
			}
			if n, err := c.EndStaticGrants(t.Context(), q); n != 50 || (err == nil) != tt.good {
				t.Errorf("%d, %v", n, err)
			}
		})
	}
}

func TestControlErrors(t *testing.T) {
	t.Run("a status", func(t *testing.T) {
		c, _, _ := newControlPair(t, func(q netif.CtrlRequest) *netif.CtrlResponse {
			return &netif.CtrlResponse{ID: q.ID, Type: q.Type, Status: netif.CtrlNotSupported}
		})
		err := c.SetHash(t.Context(), Hash{})
		want := &StatusError{Type: netif.CtrlSetHashAlgorithm, Status: netif.CtrlNotSupported}
		var got *StatusError
		if !errors.As(err, &got) || *got != *want {
			t.Errorf("error %v, want %v", err, want)
		}
	})
	t.Run("a response to something else", func(t *testing.T) {
		c, _, _ := newControlPair(t, func(q netif.CtrlRequest) *netif.CtrlResponse {
			return &netif.CtrlResponse{ID: q.ID + 1, Type: q.Type}
		})
		if _, err := c.Call(t.Context(), netif.CtrlGetHashFlags); err == nil {
			t.Error("it was taken")
		}
	})
	t.Run("no response", func(t *testing.T) {
		c, _, _ := newControlPair(t, func(netif.CtrlRequest) *netif.CtrlResponse { return nil })
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		if _, err := c.Call(ctx, netif.CtrlGetHashFlags); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v, want %v", err, context.DeadlineExceeded)
		}
	})
	t.Run("a response that is late", func(t *testing.T) {
		var first *netif.CtrlRequest
		var answer func(netif.CtrlRequest) *netif.CtrlResponse
		c, _, _ := newControlPair(t, func(q netif.CtrlRequest) *netif.CtrlResponse { return answer(q) })
		answer = func(q netif.CtrlRequest) *netif.CtrlResponse { first = &q; return nil }
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := c.Call(gone, netif.CtrlGetHashFlags); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want %v", err, context.Canceled)
		}
		// The backend answers the first message at the event of the second,
		// and gets the third before it answers the second.
		answer = func(q netif.CtrlRequest) *netif.CtrlResponse {
			r := &netif.CtrlResponse{ID: first.ID, Type: first.Type, Data: 1}
			first = &q
			return r
		}
		if _, err := c.Call(gone, netif.CtrlGetHashFlags); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want %v", err, context.Canceled)
		}
		done := false
		answer = func(q netif.CtrlRequest) *netif.CtrlResponse {
			done = true
			return &netif.CtrlResponse{ID: q.ID, Type: q.Type, Data: 3}
		}
		if r, err := c.Call(t.Context(), netif.CtrlGetHashMappingSize); err != nil || r.Data != 3 || !done {
			t.Errorf("%+v, %v", r, err)
		}
	})
	t.Run("rsp_prod beyond req_prod", func(t *testing.T) {
		c, m, _ := newControlPair(t, func(netif.CtrlRequest) *netif.CtrlResponse { return nil })
		binary.LittleEndian.PutUint32(m.Page(c.pages.Refs()[0])[8:], 77)
		if _, err := c.Call(t.Context(), netif.CtrlGetHashFlags); !errors.Is(err, netif.ErrRspOverflow) {
			t.Errorf("error %v, want %v", err, netif.ErrRspOverflow)
		}
	})
}

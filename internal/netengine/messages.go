// SPDX-License-Identifier: Apache-2.0

package netengine

import (
	"errors"
	"time"

	"github.com/netbackd/netbackd/internal/ctrlserver"
	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/offload"
	"github.com/netbackd/netbackd/internal/procs"
	"github.com/netbackd/netbackd/internal/procwire"
	"github.com/netbackd/netbackd/internal/steer"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/toeplitz"
	"github.com/netbackd/netbackd/pkg/xen"
)

// This file encodes and decodes the bodies of messages. Decoders accept what the encoders
// write, and nothing else.

// setup configures a packet process.
type setup struct {
	eventFiles int // descriptors of an event channel device
	pages      bool
	pageLimit  int64 // of pages that may be granted; -1: only the device knows
	workers    int
	noUring    bool
	noPriority bool
	shared     int64 // bytes for packets that wait, of all vifs
}

func (s *setup) put(w *procwire.Writer) {
	w.U8(uint8(s.eventFiles))
	w.Bool(s.pages)
	w.I64(s.pageLimit)
	w.U32(uint32(s.workers))
	w.Bool(s.noUring)
	w.Bool(s.noPriority)
	w.I64(s.shared)
}

func (s *setup) take(r *procwire.Reader) {
	s.eventFiles, s.pages, s.pageLimit = int(r.U8()), r.Bool(), r.I64()
	s.workers, s.noUring, s.noPriority, s.shared = int(r.U32()), r.Bool(), r.Bool(), r.I64()
	if s.eventFiles < 1 || s.eventFiles > eventFiles {
		r.Fail()
	}
}

// putRings encodes rings without journals, whose number tells whether there are any.
func putRings(w *procwire.Writer, r *Rings) {
	w.Bool(len(r.Journals) > 0)
	w.U32(uint32(len(r.Queues)))
	for _, q := range r.Queues {
		w.U32(uint32(q.TxGref))
		w.U32(uint32(q.RxGref))
		w.U32(uint32(q.TxPort))
		w.U32(uint32(q.RxPort))
	}
	w.Bool(r.Control != nil)
	if c := r.Control; c != nil {
		w.U32(uint32(c.Gref))
		w.U32(uint32(c.Port))
	}
}

func takeRings(r *procwire.Reader) (rings *Rings, journals bool) {
	rings, journals = new(Rings), r.Bool()
	for range r.Count(maxQueues, 16) {
		rings.Queues = append(rings.Queues, ctrlserver.Rings{
			TxGref: xen.Gref(r.U32()), RxGref: xen.Gref(r.U32()), TxPort: evtchn.Port(r.U32()), RxPort: evtchn.Port(r.U32()),
		})
	}
	if len(rings.Queues) == 0 {
		r.Fail()
	}
	if r.Bool() {
		rings.Control = &ctrlserver.ControlRing{Gref: xen.Gref(r.U32()), Port: evtchn.Port(r.U32())}
	}
	return rings, journals
}

func putStamp(w *procwire.Writer, s netif.Stamp) {
	for _, v := range s {
		w.U32(v)
	}
}

func takeStamp(r *procwire.Reader) (s netif.Stamp) {
	for i := range s {
		s[i] = r.U32()
	}
	return s
}

func putFound(w *procwire.Writer, f *Found) {
	putStamp(w, f.Stamp)
	w.Bool(f.Known)
	w.Bool(f.Served)
}

func takeFound(r *procwire.Reader) Found {
	f := Found{Stamp: takeStamp(r), Known: r.Bool(), Served: r.Bool()}
	if f.Stamp.IsZero() {
		r.Fail()
	}
	return f
}

// putServing encodes the configuration of a service, with the record of the control ring that
// a predecessor has left.
func putServing(w *procwire.Writer, s *Serving, record []byte) {
	for _, v := range [...]bool{
		s.Guest.CsumIPv4, s.Guest.CsumIPv6, s.Guest.GSOTCPv4, s.Guest.GSOTCPv6,
		s.SG, s.RxNotify, s.VnetHdr, s.Paused, s.Mcast,
	} {
		w.Bool(v)
	}
	w.U8(uint8(s.Coalesce))
	w.U16(s.Headroom)
	w.I64(int64(s.Drain))
	w.I64(int64(s.Stall))
	w.U32(uint32(len(s.Stalled)))
	for _, v := range s.Stalled {
		w.Bool(v)
	}
	w.Bool(s.Control != nil)
	c := s.Control
	if c == nil {
		return
	}
	w.U8(uint8(c.Offered))
	w.U32(uint32(c.StaticGrants))
	w.Bool(c.NoBPF != nil)
	if c.NoBPF != nil {
		w.Blob([]byte(procs.Cut(c.NoBPF.Error())))
	}
	w.Bool(c.Records != nil)
	w.Blob(record)
}

func takeServing(r *procwire.Reader) (s *Serving, records bool, record []byte) {
	s = &Serving{
		Guest: offload.Guest{CsumIPv4: r.Bool(), CsumIPv6: r.Bool(), GSOTCPv4: r.Bool(), GSOTCPv6: r.Bool()},
		SG:    r.Bool(), RxNotify: r.Bool(), VnetHdr: r.Bool(), Paused: r.Bool(), Mcast: r.Bool(),
		Coalesce: dataplane.Coalesce(r.U8()), Headroom: r.U16(),
		Drain: time.Duration(r.I64()), Stall: time.Duration(r.I64()),
	}
	for range r.Count(maxQueues, 1) {
		s.Stalled = append(s.Stalled, r.Bool())
	}
	if !r.Bool() {
		return s, false, nil
	}
	s.Control = &Control{Offered: ctrlserver.Protocols(r.U8()), StaticGrants: int(r.U32())}
	if r.Bool() {
		s.Control.NoBPF = errors.New(procs.Clean(r.Blob(procs.MaxText)))
	}
	records = r.Bool()
	return s, records, r.Blob(maxRecord)
}

// putQueue encodes the state of a queue, without its counters.
func putQueue(w *procwire.Writer, q *QueueStatus) {
	for _, s := range [...]netif.RingState{q.Tx, q.Rx} {
		for _, i := range [...]netif.Index{s.ReqProd, s.ReqEvent, s.ReqCons, s.RspProd, s.RspEvent} {
			w.U32(uint32(i))
		}
	}
	for _, n := range [...]int{q.Backlog, q.BacklogBytes, q.OwnPages, q.Worker, q.Static, q.StaticInUse, q.StaticMax} {
		w.U32(uint32(n))
	}
	for _, v := range [...]bool{q.Stalled, q.Breached, q.RateWaiting, q.Uring} {
		w.Bool(v)
	}
}

// queueSize is the size of an encoded queue in bytes.
const queueSize = 10*4 + 7*4 + 4

func takeQueue(r *procwire.Reader) (q QueueStatus) {
	for _, s := range [...]*netif.RingState{&q.Tx, &q.Rx} {
		for _, i := range [...]*netif.Index{&s.ReqProd, &s.ReqEvent, &s.ReqCons, &s.RspProd, &s.RspEvent} {
			*i = netif.Index(r.U32())
		}
	}
	for _, n := range [...]*int{&q.Backlog, &q.BacklogBytes, &q.OwnPages, &q.Worker, &q.Static, &q.StaticInUse, &q.StaticMax} {
		*n = int(r.U32())
	}
	for _, v := range [...]*bool{&q.Stalled, &q.Breached, &q.RateWaiting, &q.Uring} {
		*v = r.Bool()
	}
	return q
}

func putStatus(w *procwire.Writer, s *Status) {
	w.U32(uint32(len(s.Queues)))
	for i := range s.Queues {
		putQueue(w, &s.Queues[i])
	}
	w.U32(uint32(len(s.Mcast)))
	for _, a := range s.Mcast {
		w.Raw(a[:])
	}
	w.U32(uint32(s.Mapped))
	w.U32(uint32(s.Ports))
	w.Bool(s.Control != nil)
	if s.Control != nil {
		procs.PutJSON(w, s.Control)
	}
}

func takeStatus(r *procwire.Reader) (s Status) {
	for range r.Count(maxQueues, queueSize) {
		s.Queues = append(s.Queues, takeQueue(r))
	}
	for range r.Count(maxMcast, 6) {
		if raw := r.Raw(6); raw != nil {
			s.Mcast = append(s.Mcast, [6]byte(raw))
		}
	}
	s.Mapped, s.Ports = int(r.U32()), int(r.U32())
	if s.Mapped > 2*maxQueues+1 || s.Ports > 2*maxQueues+1 {
		r.Fail()
	}
	if !r.Bool() {
		return s
	}
	s.Control = new(ctrlserver.Status)
	procs.TakeJSON(r, s.Control)
	checkControl(r, s.Control)
	return s
}

// checkControl bounds what a packet process tells of a control ring, which is shown.
func checkControl(r *procwire.Reader, s *ctrlserver.Status) {
	if len(s.Types) > 4 || len(s.Mapping) > toeplitz.MaxMapping || s.KeyBytes < 0 || s.KeyBytes > toeplitz.MaxKey {
		r.Fail()
		return
	}
	for _, text := range []*string{&s.Protocol, &s.Error, &s.Algorithm, &s.Key, &s.Steering} {
		*text = procs.Clean([]byte(procs.Cut(*text)))
	}
	for i := range s.Types {
		s.Types[i] = procs.Clean([]byte(procs.Cut(s.Types[i])))
	}
	if s.Types == nil {
		s.Types = []string{}
	}
	if s.Mapping == nil {
		s.Mapping = []uint16{}
	}
}

// maxWorkers bounds the workers that a packet process may tell of.
const maxWorkers = 1024

// takeReady reads what a packet process tells of itself, which is shown.
func takeReady(r *procwire.Reader, s *Ready) {
	procs.TakeJSON(r, s)
	if s.Workers < 1 || s.Workers > maxWorkers {
		r.Fail()
	}
	for _, text := range []*string{&s.Uring, &s.Priority, &s.Denied} {
		*text = procs.Clean([]byte(procs.Cut(*text)))
	}
}

// takeHealth reads the answer to a ping, which is shown.
func takeHealth(r *procwire.Reader, h *Health) {
	procs.TakeJSON(r, h)
	if len(h.Classes) > 2*maxWorkers {
		r.Fail()
		return
	}
	for _, text := range []*string{&h.Silent, &h.OwnReason} {
		*text = procs.Clean([]byte(procs.Cut(*text)))
	}
	for i := range h.Classes {
		h.Classes[i] = procs.Clean([]byte(procs.Cut(h.Classes[i])))
	}
}

// putSteering encodes a configuration of steering; nil is one, too.
func putSteering(w *procwire.Writer, c *steer.Config) {
	w.Bool(c != nil)
	if c == nil {
		return
	}
	w.U32(uint32(c.Types))
	var key [toeplitz.MaxKey]byte
	if c.Hasher != nil {
		key = c.Hasher.Key()
	}
	w.Raw(key[:])
	table := c.Mapping.Table()
	w.U32(uint32(len(table)))
	for _, q := range table {
		w.U16(q)
	}
}

// takeSteering reads a configuration for a vif of so many queues.
func takeSteering(r *procwire.Reader, queues int) *steer.Config {
	if !r.Bool() {
		return nil
	}
	c := &steer.Config{Types: toeplitz.Types(r.U32()), Mapping: toeplitz.NewMapping(queues)}
	var err error
	if c.Hasher, err = toeplitz.New(r.Raw(toeplitz.MaxKey)); err != nil {
		r.Fail()
	}
	var table []uint32
	for range r.Count(toeplitz.MaxMapping, 2) {
		table = append(table, uint32(r.U16()))
	}
	if c.Types&^toeplitz.AllTypes != 0 || c.Mapping.SetSize(uint32(len(table))) != nil || c.Mapping.Set(0, table) != nil {
		r.Fail()
	}
	return c
}

func putNotice(w *procwire.Writer, n *Notice) {
	w.U8(uint8(n.Kind))
	w.U32(uint32(n.Queue))
	text := ""
	if n.Err != nil {
		text = procs.Cut(n.Err.Error())
	}
	w.Blob([]byte(text))
}

// takeNotice reads a notice about one of so many queues.
func takeNotice(r *procwire.Reader, queues int) Notice {
	n := Notice{Kind: dataplane.NoticeKind(r.U8())}
	queue := r.U32()
	text := r.Blob(procs.MaxText)
	if n.Kind > dataplane.Coalescing || uint64(queue) >= uint64(queues) {
		r.Fail()
		return n
	}
	n.Queue = int(queue)
	if n.Kind == dataplane.Breach {
		n.Err = errors.New(procs.Clean(text))
	}
	return n
}

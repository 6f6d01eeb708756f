// SPDX-License-Identifier: Apache-2.0

package ctrlserver

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/rundir"
	"github.com/netbackd/netbackd/pkg/ctrlring"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/toeplitz"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Connection names a connection: its stamp, and the grefs and event channels that its
// frontend has published.
type Connection struct {
	Stamp   netif.Stamp // zero: the record is from a daemon that made no stamps
	Queues  []Rings
	Control ControlRing
}

// Rings are the rings and event channels of a queue. Both ports are the same if the
// frontend has one channel for both rings.
type Rings struct {
	TxGref, RxGref xen.Gref
	TxPort, RxPort evtchn.Port
}

// ControlRing is a control ring and its event channel.
type ControlRing struct {
	Gref xen.Gref
	Port evtchn.Port
}

// is reports whether a record of c belongs to the connection o. A record without a stamp
// belongs to any connection of the same rings.
func (c *Connection) is(o *Connection) bool {
	return slices.Equal(c.Queues, o.Queues) && c.Control == o.Control && (c.Stamp.IsZero() || c.Stamp == o.Stamp)
}

// record holds everything about a control ring that the guest sends only once, for a
// successor. The whole file is written before the guest sees the response to the message
// that changed it.
//
// The file, in little endian, with every number in 4 bytes:
//
//	magic and version
//	stamp of the connection, 4 numbers (not in version 1)
//	number of queues; of each queue: grefs of tx and rx ring, ports of tx and rx
//	gref and port of the control ring
//	algorithm, types
//	length of the key, key
//	length of the mapping table, its entries
//	length of the ring's state, state (ctrlring.State)
//	of each queue: number of static grants, gref and flags of each
type record struct {
	connection Connection
	algorithm  uint32
	types      uint32
	key        []byte
	table      []uint32
	ring       ctrlring.State
	grefs      [][]netif.GrefEntry // by queue; further queues have none
}

const (
	recordMagic     = 0x3263626e // "nbc2"
	recordUnstamped = 0x3163626e // "nbc1"
)

// errRecord is returned for a file that is not a record.
var errRecord = errors.New("not a record of a control ring")

// marshal encodes a record.
func (r *record) marshal() ([]byte, error) {
	ring, err := r.ring.MarshalBinary()
	if err != nil {
		return nil, err
	}
	b := make([]byte, 0, 4096)
	u32 := func(list ...uint32) {
		for _, v := range list {
			b = binary.LittleEndian.AppendUint32(b, v)
		}
	}
	c := &r.connection
	u32(recordMagic)
	u32(c.Stamp[:]...)
	u32(uint32(len(c.Queues)))
	for _, q := range c.Queues {
		u32(uint32(q.TxGref), uint32(q.RxGref), uint32(q.TxPort), uint32(q.RxPort))
	}
	u32(uint32(c.Control.Gref), uint32(c.Control.Port), r.algorithm, r.types, uint32(len(r.key)))
	b = append(b, r.key...)
	u32(uint32(len(r.table)))
	u32(r.table...)
	u32(uint32(len(ring)))
	b = append(b, ring...)
	for i := range c.Queues {
		var list []netif.GrefEntry
		if i < len(r.grefs) {
			list = r.grefs[i]
		}
		u32(uint32(len(list)))
		for _, e := range list {
			u32(uint32(e.Ref), uint32(e.Flags))
		}
	}
	return b, nil
}

// recordReader decodes a record. It returns zeros after the first value that is out of
// bounds.
type recordReader struct {
	b   []byte
	bad bool
}

// bytes returns the next n bytes.
func (r *recordReader) bytes(n uint32) []byte {
	if r.bad || uint64(n) > uint64(len(r.b)) {
		r.bad = true
		return nil
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

// u32 returns the next number.
func (r *recordReader) u32() uint32 {
	if v := r.bytes(4); v != nil {
		return binary.LittleEndian.Uint32(v)
	}
	return 0
}

// count returns the next number, which must not exceed limit.
func (r *recordReader) count(limit uint32) uint32 {
	n := r.u32()
	if n > limit {
		r.bad = true
		return 0
	}
	return n
}

// unmarshal decodes a record that marshal has encoded.
func (r *record) unmarshal(b []byte) error {
	in := recordReader{b: b}
	*r = record{}
	c := &r.connection
	switch in.u32() {
	case recordMagic:
		for i := range c.Stamp {
			c.Stamp[i] = in.u32()
		}
	case recordUnstamped:
	default:
		return errRecord
	}
	queues := in.count(tap.MaxQueues)
	for range queues {
		c.Queues = append(c.Queues, Rings{
			TxGref: xen.Gref(in.u32()), RxGref: xen.Gref(in.u32()),
			TxPort: evtchn.Port(in.u32()), RxPort: evtchn.Port(in.u32()),
		})
	}
	c.Control = ControlRing{Gref: xen.Gref(in.u32()), Port: evtchn.Port(in.u32())}
	r.algorithm, r.types = in.u32(), in.u32()
	r.key = append(r.key, in.bytes(in.count(toeplitz.MaxKey))...)
	for range in.count(toeplitz.MaxMapping) {
		r.table = append(r.table, in.u32())
	}
	ring := in.bytes(in.count(uint32(ctrlring.StateSize)))
	for range queues {
		var list []netif.GrefEntry
		for range in.count(uint32(len(in.b))) {
			list = append(list, netif.GrefEntry{Ref: xen.Gref(in.u32()), Flags: uint16(in.u32())})
			if in.bad {
				return errRecord
			}
		}
		r.grefs = append(r.grefs, list)
	}
	if in.bad || len(in.b) != 0 {
		return errRecord
	}
	return r.ring.UnmarshalBinary(ring)
}

// loadRecord returns the record of this connection, or nil if no predecessor left one.
func (s *Server) loadRecord() *record {
	if s.cfg.Records == nil || !s.cfg.Known {
		return nil
	}
	b, err := s.cfg.Records.Load()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	r := new(record)
	if err == nil {
		err = r.unmarshal(b)
	}
	if err != nil {
		s.log.Warn("control ring record not read; the guest's settings are lost", zap.Error(err))
		return nil
	}
	if !r.connection.is(&s.cfg.Connection) {
		return nil
	}
	return r
}

// CheckRecord returns an error if b is not the record of a connection.
func CheckRecord(b []byte, c *Connection) error {
	var r record
	if err := r.unmarshal(b); err != nil {
		return err
	}
	if !r.connection.is(c) {
		return fmt.Errorf("%w: it is of another connection", errRecord)
	}
	return nil
}

// RecordFile keeps the record in the file of that path.
type RecordFile string

// Load implements [Records].
func (f RecordFile) Load() ([]byte, error) { return os.ReadFile(string(f)) }

// Store implements [Records].
func (f RecordFile) Store(record []byte) error { return rundir.Replace(string(f), record) }

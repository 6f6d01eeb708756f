// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/netbackd/netbackd/pkg/ctrlring"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/toeplitz"
)

// ctrlRecord is what a successor must know of a control ring: all that the guest
// never says again. It is written whole before the guest sees the answer to what
// changed it, into a new file that then takes the place of the old one, so that
// whoever is killed at any instruction leaves either.
//
// The file, in little endian:
//
//	0  magic and version, then the connection: its stamp of 4 numbers (missing in
//	   version 1); queues, and for each the grefs and ports of its rings; gref and
//	   port of the control ring
//	   algorithm, types
//	   octets of the key, key
//	   entries of the mapping table, table
//	   octets of the ring's state, state (ctrlring.State)
//	   for each queue the number of static grants, and gref and flags of each
//
// all numbers of 4 octets, and of each entry in the table as well.
type ctrlRecord struct {
	stamp     netif.Stamp // of the connection; zero: a daemon wrote it that made none
	front     frontend    // grefs and ports
	algorithm uint32
	types     uint32
	key       []byte
	table     []uint32
	ring      ctrlring.State
	grefs     [][]netif.GrefEntry
}

const (
	ctrlMagic     = 0x3263626e // "nbc2"
	ctrlUnstamped = 0x3163626e // "nbc1"
)

// errRecord: a file that no daemon has written.
var errRecord = errors.New("record of the control ring makes no sense")

// marshal writes a record down.
func (r *ctrlRecord) marshal() ([]byte, error) {
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
	u32(ctrlMagic)
	u32(r.stamp[:]...)
	u32(uint32(len(r.front.queues)))
	for _, q := range r.front.queues {
		u32(q.txGref, q.rxGref, uint32(q.txPort), uint32(q.rxPort))
	}
	u32(r.front.ctrl.gref, uint32(r.front.ctrl.port), r.algorithm, r.types, uint32(len(r.key)))
	b = append(b, r.key...)
	u32(uint32(len(r.table)))
	u32(r.table...)
	u32(uint32(len(ring)))
	b = append(b, ring...)
	for _, list := range r.grefs {
		u32(uint32(len(list)))
		for _, e := range list {
			u32(e.Ref, uint32(e.Flags))
		}
	}
	return b, nil
}

// recordReader takes a record apart. After the first thing that makes no sense
// all it gives is 0.
type recordReader struct {
	b   []byte
	bad bool
}

func (r *recordReader) octets(n uint32) []byte {
	if r.bad || uint64(n) > uint64(len(r.b)) {
		r.bad = true
		return nil
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

func (r *recordReader) u32() uint32 {
	if v := r.octets(4); v != nil {
		return binary.LittleEndian.Uint32(v)
	}
	return 0
}

// count reads how many of something there are, up to limit.
func (r *recordReader) count(limit uint32) uint32 {
	n := r.u32()
	if n > limit {
		r.bad = true
		return 0
	}
	return n
}

// unmarshal reads what marshal wrote.
func (r *ctrlRecord) unmarshal(b []byte) error {
	in := recordReader{b: b}
	*r = ctrlRecord{}
	switch in.u32() {
	case ctrlMagic:
		for i := range r.stamp {
			r.stamp[i] = in.u32()
		}
	case ctrlUnstamped:
	default:
		return errRecord
	}
	queues := in.count(tap.MaxQueues)
	for range queues {
		r.front.queues = append(r.front.queues, queueKeys{
			txGref: in.u32(), rxGref: in.u32(),
			txPort: evtchn.Port(in.u32()), rxPort: evtchn.Port(in.u32()),
		})
	}
	r.front.ctrl = ctrlKeys{there: true, gref: in.u32(), port: evtchn.Port(in.u32())}
	r.algorithm, r.types = in.u32(), in.u32()
	r.key = append(r.key, in.octets(in.count(toeplitz.MaxKey))...)
	for range in.count(toeplitz.MaxMapping) {
		r.table = append(r.table, in.u32())
	}
	ring := in.octets(in.count(uint32(ctrlring.StateSize)))
	for range queues {
		var list []netif.GrefEntry
		for range in.count(uint32(len(in.b))) {
			list = append(list, netif.GrefEntry{Ref: in.u32(), Flags: uint16(in.u32())})
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

// ctrlName is the file of a vif's control ring.
func ctrlName(domid uint16, devid int) string { return fmt.Sprintf("ctrl-%d.%d", domid, devid) }

// ctrlNew is what is behind the name of a record that is not complete.
const ctrlNew = ".new"

func (v *Vif) ctrlPath() string {
	return filepath.Join(v.cfg.RunDir, ctrlName(v.cfg.Domid, v.cfg.Devid))
}

// loadControl reads the record of the connection l, if a predecessor left one. A
// record without stamp is of the connection whose journals had none; that of any
// other was removed when it began.
func (v *Vif) loadControl(l *link) (r *ctrlRecord) {
	if v.cfg.RunDir == "" || !l.known {
		return nil
	}
	b, err := os.ReadFile(v.ctrlPath())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	r = new(ctrlRecord)
	if err == nil {
		err = r.unmarshal(b)
	}
	if err != nil {
		v.log.Warn("what a predecessor knew of the control ring is lost", errField(err))
		return nil
	}
	if !l.front.sameRings(&r.front) || !r.stamp.IsZero() && r.stamp != l.stamp {
		return nil
	}
	return r
}

// writeFile replaces the file at path by one with these octets.
func writeFile(path string, b []byte) error {
	if err := os.WriteFile(path+ctrlNew, b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+ctrlNew, path)
}

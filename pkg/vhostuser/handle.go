// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/virtqueue"
)

// needs is the protocol feature without which a request is not allowed. GET_QUEUE_NUM and
// GET_MAX_MEM_SLOTS only ask, and are answered in any case. SET_BACKEND_REQ_FD and the
// messages of a device's state belong to features that are not served.
var needs = map[Request]uint64{
	SetLogBase: ProtocolLogShmFD, SendRARP: ProtocolRARP, NetSetMTU: ProtocolMTU,
	GetConfig: ProtocolConfig, SetConfig: ProtocolConfig,
	GetInflightFD: ProtocolInflight, SetInflightFD: ProtocolInflight,
	ResetDevice: ProtocolReset, AddMemReg: ProtocolMemSlots, RemMemReg: ProtocolMemSlots,
	SetStatus: ProtocolStatus, GetStatus: ProtocolStatus,
}

// handle carries out a message. The reply is nil if the request has none but an
// acknowledgement.
func (b *Backend) handle(m *Message) (reply *Message, err error) {
	if bit, ok := needs[m.Request]; ok && !b.state.has(bit) {
		return nil, ErrProtocol
	}
	switch m.Request {
	case GetFeatures:
		return &Message{U64: b.state.offered}, nil
	case GetProtocolFeatures:
		return &Message{U64: b.state.offeredProtocol}, nil
	case GetQueueNum:
		return &Message{U64: uint64(b.cfg.Rings / 2)}, nil
	case GetMaxMemSlots:
		return &Message{U64: maxRegions}, nil
	case GetStatus:
		return &Message{U64: b.state.status}, nil
	case SetFeatures:
		return nil, b.setFeatures(m.U64)
	case SetProtocolFeatures:
		return nil, b.state.setProtocol(m.U64)
	case SetOwner, ResetOwner, SetLogFD:
		return nil, nil // a log is read when the rings are stopped, without a signal
	case SetMemTable:
		return nil, b.setMemory(nil, m)
	case AddMemReg:
		return nil, b.addRegion(m)
	case RemMemReg:
		return nil, b.removeRegion(m)
	case SetLogBase:
		if err := b.setLog(m); err != nil {
			return &Message{U64: 1}, err
		}
		return &Message{}, nil
	case GetConfig, SetConfig:
		return b.config(m)
	case GetInflightFD:
		return b.inflight.make(m.Inflight, b.cfg.Rings, b.state.features&featureRingPacked != 0)
	case SetInflightFD:
		return nil, b.setInflight(m)
	case ResetDevice:
		return nil, b.reset()
	case SetStatus:
		b.state.status = m.U64 & 0xff
		return nil, refused(b.handler.SetStatus(uint8(m.U64)))
	case NetSetMTU:
		return nil, b.setMTU(m.U64)
	case SendRARP:
		var mac [6]byte
		copy(mac[:], native.AppendUint64(nil, m.U64))
		return nil, refused(b.handler.SendRARP(mac))
	case SetVringNum, SetVringBase, SetVringAddr, SetVringEnable, GetVringBase, SetVringKick, SetVringCall, SetVringErr:
		return b.vring(m)
	}
	return nil, &MessageError{m.Request, ErrUnknown}
}

// vring carries out the messages about one ring.
func (b *Backend) vring(m *Message) (*Message, error) {
	switch m.Request {
	case SetVringNum:
		return nil, b.state.setNum(m.State)
	case SetVringBase:
		return nil, b.state.setBase(m.State)
	case SetVringAddr:
		if err := b.state.setAddr(m.Addr); err != nil {
			return nil, err
		}
		return nil, b.changed(int(m.Addr.Index))
	case SetVringEnable:
		if err := b.state.setEnabled(m.State); err != nil {
			return nil, err
		}
		return nil, b.changed(int(m.State.Index))
	case GetVringBase:
		// The number is reserved, and not 0 with DPDK.
		r, err := b.state.ring(m.State.Index)
		if err != nil {
			return nil, err
		}
		base := r.base
		if r.started {
			base, err = b.stopRing(int(m.State.Index))
		}
		r.stop(base)
		return &Message{State: VringState{m.State.Index, base}}, err
	}
	return nil, b.setFile(m)
}

// setFile replaces the descriptor of a ring's kicks, calls or errors. A kick makes a ring
// ready that has all else, and does not change whether it is enabled.
func (b *Backend) setFile(m *Message) error {
	index, err := b.state.file(m.U64, len(m.Files))
	if err != nil {
		return err
	}
	r := &b.rings[index]
	slot := map[Request]*int{SetVringKick: &r.Kick, SetVringCall: &r.Call, SetVringErr: &r.Err}[m.Request]
	fd := -1
	if len(m.Files) == 1 {
		if err := checkEvent(m.Files[0]); err != nil {
			return err
		}
		if m.Request != SetVringKick {
			if err := b.events.keep(m.Files[0]); err != nil {
				return err
			}
		}
		fd = m.keep()
	}
	old := *slot
	*slot = fd
	if m.Request == SetVringKick {
		b.state.rings[index].hasKick = true
	}
	err = b.changed(int(index))
	if old >= 0 {
		b.events.close(old)
	}
	return err
}

// changed tells the handler of a ring that has changed, or starts it if it is ready.
func (b *Backend) changed(i int) error {
	s, r := &b.state.rings[i], &b.rings[i]
	r.Enabled = s.enabled
	r.Features = b.state.features
	r.LogRing, r.LogAddr = s.addr.Flags&vringLog != 0, s.addr.Log
	if s.started {
		return refused(b.handler.UpdateRing(*r))
	}
	if !s.ready() {
		return nil
	}
	r.Size, r.Base, r.Packed = int(s.num), s.base, r.Features&featureRingPacked != 0
	r.Inflight = b.inflight.part(i, r.Size, r.Packed)
	if err := r.find(b.table, s.addr); err != nil {
		return err
	}
	if err := b.handler.StartRing(*r, b.table, b.log); err != nil {
		return refusal{errors.Join(err, r.release())}
	}
	s.started = true
	return nil
}

// stopRing stops a ring that is started and returns its base. The descriptor of its kicks
// is closed, since another one starts it again.
func (b *Backend) stopRing(i int) (uint32, error) {
	r := &b.rings[i]
	base, err := b.handler.StopRing(i)
	b.state.rings[i].stop(base)
	if r.Kick >= 0 {
		_ = unix.Close(r.Kick)
		r.Kick = -1
	}
	return base, errors.Join(err, r.release())
}

// setFeatures accepts features, which can enable rings and switch the log.
func (b *Backend) setFeatures(v uint64) error {
	old := b.state.features
	if err := b.state.setFeatures(v); err != nil {
		return err
	}
	if err := b.handler.SetFeatures(v); err != nil {
		b.state.features = old
		return refusal{err}
	}
	for i := range b.rings {
		if b.state.rings[i].started {
			if err := b.changed(i); err != nil {
				return err
			}
		}
	}
	return nil
}

// setMemory replaces the table by the regions to keep and those of the message.
func (b *Backend) setMemory(keep []*mapped, m *Message) error {
	t, err := build(b.cfg.Mapper, keep, m.Regions, m.Files)
	if err != nil {
		return err
	}
	return b.swap(t)
}

// addRegion adds a region to the table. QEMU 7.2 sends each region once per pair of queues,
// and removes it as often.
func (b *Backend) addRegion(m *Message) error {
	if b.table == nil {
		return b.setMemory(nil, m)
	}
	if r := b.table.find(m.Regions[0]); r != nil && r.Region == m.Regions[0] {
		r.again++
		return nil
	}
	return b.setMemory(b.table.regions, m)
}

func (b *Backend) removeRegion(m *Message) error {
	if b.table == nil {
		return ErrRegionUnknown
	}
	r := b.table.find(m.Regions[0])
	switch {
	case r == nil:
		return ErrRegionUnknown
	case r.again > 0:
		r.again--
		return nil
	}
	t, err := newTable(b.table.without(r))
	if err != nil {
		return err
	}
	return b.swap(t)
}

// swap gives the handler another table, with the rings that are started, and unmaps what
// it had before. If it fails the old table stays.
func (b *Backend) swap(t *Table) error {
	next := append([]Ring(nil), b.rings...)
	var started []Ring
	fail := func(err error) error {
		for _, r := range started {
			err = errors.Join(err, r.release())
		}
		if b.table == nil {
			return errors.Join(err, t.closeUnless(nil))
		}
		return errors.Join(err, t.closeUnless(b.table))
	}
	for i := range next {
		if !b.state.rings[i].started {
			continue
		}
		r := &next[i]
		r.Desc, r.Avail, r.Used = Part{}, Part{}, Part{}
		if err := r.find(t, b.state.rings[i].addr); err != nil {
			return fail(err)
		}
		started = append(started, *r)
	}
	if err := b.handler.SetMemory(t, started); err != nil {
		return fail(refusal{err})
	}
	var errs []error
	for i := range b.rings {
		if b.state.rings[i].started {
			errs = append(errs, b.rings[i].release())
		}
	}
	old := b.table
	b.table, b.rings = t, next
	if old != nil {
		errs = append(errs, old.closeUnless(t))
	}
	return errors.Join(errs...)
}

// setLog replaces the log of dirty pages.
func (b *Backend) setLog(m *Message) error {
	mem, err := b.cfg.Mapper.Shared(m.Files[0], m.Log.Offset, m.Log.Size)
	if err != nil {
		return err
	}
	l, err := virtqueue.NewLog(mem.Bytes())
	if err != nil {
		return errors.Join(err, mem.Unmap())
	}
	if err := b.handler.SetLog(l); err != nil {
		return refusal{errors.Join(err, mem.Unmap())}
	}
	old := b.logMap
	b.log, b.logMap = l, mem
	if old != nil {
		return old.Unmap()
	}
	return nil
}

// config reads or writes the configuration. An error of a read is an answer without bytes.
func (b *Backend) config(m *Message) (*Message, error) {
	h, ok := b.handler.(ConfigHandler)
	if !ok {
		return nil, ErrConfig
	}
	c := m.Config
	if m.Request == SetConfig {
		if c.Flags > 1 {
			return nil, ErrFlags
		}
		return nil, refused(h.WriteConfig(c.Data, c.Offset, c.Flags == 1))
	}
	clear(c.Data)
	if len(c.Data) == 0 || h.ReadConfig(c.Data, c.Offset) != nil {
		return &Message{}, nil
	}
	return &Message{Config: c}, nil
}

func (b *Backend) setMTU(v uint64) error {
	if v > 0xffff {
		return refusal{ErrConfig}
	}
	return refused(b.handler.SetMTU(uint16(v)))
}

// reset stops and disables all rings. What an inflight region says is about the rings from
// before, so it is dropped.
func (b *Backend) reset() error {
	if err := errors.Join(b.stopAll(), b.inflight.close()); err != nil {
		return err
	}
	b.state.reset()
	for i := range b.rings {
		b.rings[i].Enabled = false
	}
	return refused(b.handler.Reset())
}

// setInflight maps the inflight region that a front end keeps.
func (b *Backend) setInflight(m *Message) error {
	if !b.state.suspended() {
		return ErrRunning
	}
	return b.inflight.set(b.cfg.Mapper, m.Files[0], m.Inflight, b.cfg.Rings, b.state.features&featureRingPacked != 0)
}

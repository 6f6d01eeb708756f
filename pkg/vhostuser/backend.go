// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"context"
	"errors"
	"io"
	"net"
	"time"

	"github.com/netbackd/netbackd/pkg/virtqueue"
)

// Handler does what the front end asks for. Its methods are called by [Backend.Serve], one
// at a time, once per message at most: never per packet. An error refuses the message: the
// front end gets it as a failed acknowledgement, or, if it asked for none, the connection
// ends.
type Handler interface {
	// SetFeatures is called when virtio features were accepted.
	SetFeatures(features uint64) error
	// SetMemory replaces the memory, and with it the parts of all rings that are started.
	// When it returns nil the old memory is unmapped, so no worker may use it any more. t
	// is nil at the end of the session, when no ring is started.
	SetMemory(t *Table, rings []Ring) error
	// StartRing begins to serve a ring, from its first kick on.
	StartRing(r Ring, t *Table, log *virtqueue.Log) error
	// UpdateRing tells of a ring that is started and has other descriptors, is enabled or
	// disabled, or is recorded in the log. When it returns, the old ones are not used.
	UpdateRing(r Ring) error
	// StopRing ends the use of a ring: no read, no write and no notification follow. It
	// returns the base, from which the ring can be started again.
	StopRing(index int) (base uint32, err error)
	// SetLog replaces the log of dirty pages. The old one is unmapped when it returns. l
	// is nil at the end of the session.
	SetLog(l *virtqueue.Log) error
	// SetStatus tells of the device's status byte; 0 is a reset by the driver.
	SetStatus(status uint8) error
	// Reset brings the device back to its first state. All rings are stopped.
	Reset() error
	// SetMTU refuses an MTU that the device cannot have.
	SetMTU(mtu uint16) error
	// SendRARP announces a guest that has moved.
	SendRARP(mac [6]byte) error
}

// ConfigHandler is a handler that has a configuration, for ProtocolConfig.
type ConfigHandler interface {
	// ReadConfig fills p from offset on.
	ReadConfig(p []byte, offset uint32) error
	// WriteConfig changes the configuration. Migration says that this continues a device
	// of another host, so that fields may be written that the driver may not write.
	WriteConfig(p []byte, offset uint32, migration bool) error
}

// BackendConfig holds the offers and limits of a back end.
type BackendConfig struct {
	// Features are virtio's. VHOST_USER_F_PROTOCOL_FEATURES is always offered.
	Features uint64
	// ProtocolFeatures are the bits Protocol*. Others are not offered. Offer
	// ProtocolXenMmap only on Xen: it makes front ends send other regions.
	ProtocolFeatures uint64
	// Rings is the number of rings, at most 256. A network device has two per pair of
	// queues, for whose number GET_QUEUE_NUM asks.
	Rings int
	// Mapper maps memory; nil is [Kernel].
	Mapper Mapper
	// Timeout bounds the rest of a message that began, and the wait for a front end that
	// does not read answers; 0 is [DefaultTimeout].
	Timeout time.Duration
}

// Backend is a session with a front end.
type Backend struct {
	cfg     BackendConfig
	conn    *conn
	handler Handler
	state   *state

	table    *Table // nil: none yet
	rings    []Ring // those that are started, and the descriptors of all
	log      *virtqueue.Log
	logMap   Mapping
	inflight inflightRegion
	events   events
}

// NewBackend makes a session on a connection, which is its own from then on.
func NewBackend(c *net.UnixConn, cfg BackendConfig, h Handler) *Backend {
	if cfg.Mapper == nil {
		cfg.Mapper = Kernel{}
	}
	cfg.Rings = max(0, min(cfg.Rings, vringIndexMask+1))
	if _, ok := h.(ConfigHandler); !ok {
		cfg.ProtocolFeatures &^= ProtocolConfig
	}
	b := &Backend{cfg: cfg, conn: newConn(c, cfg.Timeout), handler: h,
		state: newState(cfg.Features, cfg.ProtocolFeatures, cfg.Rings), rings: make([]Ring, cfg.Rings)}
	for i := range b.rings {
		b.rings[i] = Ring{Index: i, Kick: -1, Call: -1, Err: -1}
	}
	return b
}

// refusal is an error that the front end may survive.
type refusal struct{ error }

func (r refusal) Unwrap() error { return r.error }

// refused wraps the error of a handler, if there is one.
func refused(err error) error {
	if err != nil {
		return refusal{err}
	}
	return nil
}

// Serve answers messages until the front end closes the connection, which is no error, the
// context ends, or the front end breaks the protocol. Then all rings are stopped, all memory
// is unmapped and the connection is closed.
func (b *Backend) Serve(ctx context.Context) (err error) {
	stop := context.AfterFunc(ctx, func() { _ = b.conn.c.Close() }) // ends the wait for a message
	defer func() {
		stop()
		err = errors.Join(err, b.close())
	}()
	for {
		h, payload, files, err := b.conn.receive()
		if ctx.Err() != nil {
			closeAll(files)
			return ctx.Err()
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := b.message(h, payload, files); err != nil {
			return err
		}
	}
}

// message handles one message and answers it. It closes the files that nothing keeps.
func (b *Backend) message(h Header, payload []byte, files []int) error {
	m, err := Decode(h, payload)
	m.Files = files
	defer func() { closeAll(m.Files) }()
	if err == nil && (len(files) < layouts[h.Request].minFiles || len(files) > layouts[h.Request].maxFiles) {
		err = ErrFiles
	}
	var reply *Message
	if err == nil {
		b.events.waiting(func() { reply, err = b.handle(&m) })
	}
	answered := reply != nil
	if reply == nil {
		reply = &Message{}
		if err != nil {
			reply.U64 = 1
		}
	}
	defer func() { closeAll(reply.Files) }()
	ack := h.NeedReply() && b.state.has(ProtocolReplyAck)
	if answered || ack {
		reply.Request, reply.Flags = h.Request, flagReply
		if sendErr := b.conn.send(reply); sendErr != nil {
			return errors.Join(err, sendErr)
		}
	}
	var r refusal
	if err != nil && ack && (errors.As(err, &r) || errors.Is(err, ErrUnknown)) {
		return nil // the front end knows
	}
	if err == nil {
		return nil
	}
	var e *MessageError
	if errors.As(err, &e) {
		return err
	}
	return &MessageError{h.Request, err}
}

// keep takes descriptor 0 out of the message, so that it is not closed.
func (m *Message) keep() int {
	fd := m.Files[0]
	m.Files = m.Files[1:]
	return fd
}

// close ends the session.
func (b *Backend) close() error {
	errs := []error{b.conn.c.Close()}
	if errors.Is(errs[0], net.ErrClosed) {
		errs[0] = nil
	}
	b.events.waiting(func() {
		errs = append(errs, b.stopAll())
		if b.log != nil {
			errs = append(errs, b.handler.SetLog(nil), b.logMap.Unmap())
		}
		if b.table != nil {
			errs = append(errs, b.handler.SetMemory(nil, nil), b.table.closeUnless(nil))
		}
	})
	errs = append(errs, b.inflight.close())
	for i := range b.rings {
		for _, fd := range []int{b.rings[i].Kick, b.rings[i].Call, b.rings[i].Err} {
			if fd >= 0 {
				b.events.close(fd)
			}
		}
	}
	return errors.Join(errs...)
}

// stopAll stops all rings that are started.
func (b *Backend) stopAll() error {
	var errs []error
	for i := range b.rings {
		if b.state.rings[i].started {
			_, err := b.stopRing(i)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

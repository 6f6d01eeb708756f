// SPDX-License-Identifier: Apache-2.0

package netengine

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/budget"
	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/procs"
	"github.com/netbackd/netbackd/internal/procwire"
	"github.com/netbackd/netbackd/internal/steer"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xen"
)

// served is a link in a packet process. Its goroutine carries out the messages of the broker,
// one after the other.
type served struct {
	s    *server
	id   uint32
	link *link
	turn *budget.Turn

	// Devices that came with the present message, for [handed].
	events []int
	mapper int // -1: none

	connection uint32 // number of the present one, of the broker
	taps       []int  // its TAP queues
	stats      []byte // memory of the counters of all connections

	// A goroutine runs only while there is something to do: most links are idle.
	mu      sync.Mutex   // guards all below
	mail    []func()     // messages of the broker
	running bool         // a goroutine carries them out
	told    []wireNotice // notices that wait for the broker
	telling bool         // a goroutine sends them
}

// wireNotice is a notice of a connection.
type wireNotice struct {
	connection uint32
	notice     Notice
}

// post has f run after what was posted before.
func (l *served) post(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mail = append(l.mail, f)
	if !l.running {
		l.running = true
		go l.run()
	}
}

// run runs what was posted.
func (l *served) run() {
	debug.SetPanicOnFault(true) // a bad ring page costs this link only
	for {
		l.mu.Lock()
		if len(l.mail) == 0 {
			l.mail, l.running = nil, false
			l.mu.Unlock()
			return
		}
		f := l.mail[0]
		l.mail = l.mail[1:]
		l.mu.Unlock()
		l.turn.Do(f)
	}
}

// obey carries out a message. A panic in it is answered with ErrFault.
func (l *served) obey(m *procwire.Message, r *procwire.Reader, fds []int) {
	body, err := l.guard(func() []byte {
		defer l.closeHanded()
		return l.do(m, r, fds)
	})
	if err != nil {
		l.add(wireNotice{l.connection, Notice{Kind: dataplane.Breach, Err: err}})
		var w procwire.Writer
		putError(&w, err)
		body = w.Bytes()
	}
	if body != nil {
		l.s.answer(m, body)
	}
}

// guard runs f and returns a panic of it as an error.
func (l *served) guard(f func() []byte) (body []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			l.link.cfg.Log.Error("internal error", zap.Any("panic", p), zap.ByteString("stack", debug.Stack()))
			err = fmt.Errorf("%w: %v", ErrFault, p)
		}
	}()
	return f(), nil
}

// closeHanded closes files of the present message that were not used.
func (l *served) closeHanded() {
	procs.CloseFiles(l.events)
	l.events = nil
	if l.mapper >= 0 {
		_ = unix.Close(l.mapper)
	}
	l.mapper = -1
}

// do carries out a message and returns the body of the answer, nil for a notice.
func (l *served) do(m *procwire.Message, r *procwire.Reader, fds []int) []byte {
	var w procwire.Writer
	c := l.link.conn
	switch m.Kind {
	case kindRate:
		bytes, interval := r.U64(), time.Duration(r.I64())
		l.link.SetRate(bytes, interval)
		return nil
	case kindWeight:
		l.link.SetWeight(int(r.U8()))
		return nil
	case kindMcast:
		l.link.SetMcast(r.Bool())
		return nil
	case kindPrepare:
		l.prepare(&w, r, fds)
		return w.Bytes()
	case kindClose:
		l.link.Close(Ending(r.U8()))
		l.release()
		putError(&w, nil)
		return w.Bytes()
	case kindRingStamp:
		stamp, err := l.link.RingStamp(xen.Gref(r.U32()))
		putError(&w, err)
		if err == nil {
			putStamp(&w, stamp)
		}
		return w.Bytes()
	}
	if c == nil {
		procs.CloseFiles(fds)
		putError(&w, fmt.Errorf("there is no connection: %w", unix.ENOTCONN))
		return w.Bytes()
	}
	switch m.Kind {
	case kindStart:
		putError(&w, l.start(r, fds))
	case kindHeadroom:
		putError(&w, l.link.SetHeadroom(r.U16()))
	case kindPause:
		putError(&w, l.link.PauseCoalescing(r.Bool()))
	case kindStatus:
		if c.data == nil {
			putError(&w, fmt.Errorf("the connection is not served: %w", unix.ENOTCONN))
			break
		}
		s := l.link.Status()
		putError(&w, nil)
		putStatus(&w, &s)
	case kindRings:
		putError(&w, nil)
		w.Bool(l.link.RingsRenewed())
	case kindChannels:
		l.events = fds
		putError(&w, nil)
		w.Bool(l.link.ChannelsRenewed())
	}
	return w.Bytes()
}

// prepare carries out kindPrepare.
func (l *served) prepare(w *procwire.Writer, r *procwire.Reader, fds []int) {
	l.connection = r.U32()
	rings, journals := takeRings(r)
	n := len(rings.Queues) * l.s.set.eventFiles
	want := n
	if journals {
		want += len(rings.Queues)
	}
	if err := r.End(); err != nil || len(fds) != want {
		procs.CloseFiles(fds)
		putError(w, fmt.Errorf("rings with %d files: %w", len(fds), procwire.ErrBody))
		return
	}
	l.events, rings.Journals = fds[:n], fds[n:]
	connection := l.connection
	rings.Notice = func(n Notice) { l.add(wireNotice{connection, n}) }
	found, err := l.link.Prepare(rings)
	putError(w, err)
	if err == nil {
		putFound(w, &found)
	}
}

// start carries out kindStart.
func (l *served) start(r *procwire.Reader, fds []int) error {
	s, records, record := takeServing(r)
	n := len(l.link.conn.queues)
	want := n
	if s.Control != nil {
		want += 1 + l.s.set.eventFiles
	}
	if err := r.End(); err != nil || len(fds) != want || len(s.Stalled) != n {
		procs.CloseFiles(fds)
		return fmt.Errorf("service with %d files: %w", len(fds), procwire.ErrBody)
	}
	rest := fds[n:]
	l.taps = fds[:n]
	stats := dataplane.StatsIn(l.stats, n)
	for i, fd := range l.taps {
		s.Taps = append(s.Taps, tap.NewQueue(fd, i))
		l.link.conn.queues[i].Stats = &stats[i]
	}
	if c := s.Control; c != nil {
		l.mapper, l.events = rest[0], rest[1:]
		if records {
			c.Records = &remoteRecords{l: l, connection: l.connection, record: record}
		}
		if c.NoBPF == nil {
			c.Steering = &remoteSteering{l: l, connection: l.connection}
			c.SetSteering = func(int) error { return c.Steering.Set(nil) } // is called to remove a program
		}
	}
	return l.link.Start(s)
}

// release releases what belongs to the connection that was closed.
func (l *served) release() {
	procs.CloseFiles(l.taps)
	l.taps = nil
}

// maxNotices bounds the notices that wait. A worker sends few, and those about the state of a
// queue not often.
const maxNotices = 4096

// add has a notice sent to the broker. It does not block.
func (l *served) add(n wireNotice) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.told) < maxNotices {
		l.told = append(l.told, n)
	}
	if !l.telling {
		l.telling = true
		go l.tell()
	}
}

// tell sends notices to the broker.
func (l *served) tell() {
	for {
		l.mu.Lock()
		list := l.told
		l.told = nil
		l.telling = len(list) > 0
		l.mu.Unlock()
		if len(list) == 0 {
			return
		}
		for i := range list {
			var w procwire.Writer
			w.U32(l.id)
			w.U32(list[i].connection)
			putNotice(&w, &list[i].notice)
			_ = l.s.conn.Post(kindNotice, w.Bytes()) // the end of the connection ends the process
		}
	}
}

// request sends a request about a connection to the broker.
func (l *served) request(kind procwire.Kind, w *procwire.Writer) error {
	reply, err := l.s.conn.Call(context.Background(), kind, w.Bytes())
	if err != nil {
		return err
	}
	defer reply.Close()
	r := reply.Reader()
	err = takeError(r)
	if e := r.End(); e != nil {
		return e
	}
	return err
}

// remoteRecords keeps the record of a control ring with the broker.
type remoteRecords struct {
	l          *served
	connection uint32
	record     []byte // of a predecessor; empty: there is none
}

// Load implements [ctrlserver.Records].
func (p *remoteRecords) Load() ([]byte, error) {
	if len(p.record) == 0 {
		return nil, fs.ErrNotExist
	}
	return p.record, nil
}

// Store implements [ctrlserver.Records].
func (p *remoteRecords) Store(record []byte) error {
	if len(record) > maxRecord {
		return fmt.Errorf("a record of %d bytes: %w", len(record), os.ErrInvalid)
	}
	var w procwire.Writer
	w.U32(p.l.id)
	w.U32(p.connection)
	w.Blob(record)
	return p.l.request(kindStore, &w)
}

// remoteSteering has the broker steer packets.
type remoteSteering struct {
	l          *served
	connection uint32
}

// Set implements [ctrlserver.Steering].
func (p *remoteSteering) Set(c *steer.Config) error {
	var w procwire.Writer
	w.U32(p.l.id)
	w.U32(p.connection)
	putSteering(&w, c)
	return p.l.request(kindSteer, &w)
}

// Close implements [ctrlserver.Steering]. The broker closes the program with the connection.
func (p *remoteSteering) Close() error { return nil }

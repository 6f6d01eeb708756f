// SPDX-License-Identifier: Apache-2.0

package blkengine

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/blkplane"
	"github.com/netbackd/netbackd/internal/disk"
	"github.com/netbackd/netbackd/internal/procs"
	"github.com/netbackd/netbackd/internal/procwire"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Adopter makes devices of descriptors that an [Opener] has opened in another process. The
// devices own them.
type Adopter interface {
	Grants(fd int) (blkplane.Grants, error)
	Events(fds []int) blkplane.Events
}

// ProcessConfig describes what a disk process gets from its program.
type ProcessConfig struct {
	Adopter Adopter
	Log     *zap.Logger
	// Begin is called before the first queue. The process makes its rings.
	Begin func(uring bool) error
	// Lock is called once the process has all that it opens itself. From then on it opens
	// nothing.
	Lock func() error
	// Uring tells the state of io_uring.
	Uring func(on bool) string
	// AtStep is [blkplane.Options.AtStep], for tests.
	AtStep func(step string)
}

// server is a disk process.
type server struct {
	cfg  ProcessConfig
	conn *procwire.Conn
	set  setup
	pool *blkplane.Pool // nil: not set up

	mu     sync.Mutex // guards all below
	conns  map[uint32]served
	guests map[xen.Domid]*guest
}

// served is a connection of a link.
type served struct {
	*blkplane.Conn
	link uint32
}

// guest has the memory that the connections of a domain share.
type guest struct {
	memory *blkplane.Guest
	users  int
}

// Serve is a disk process: it obeys the broker at the other end of the socket until that ends.
// Then the process must end at once.
func Serve(socket int, cfg ProcessConfig) error {
	s := &server{cfg: cfg, conns: map[uint32]served{}, guests: map[xen.Domid]*guest{}}
	conn, err := procwire.New(socket, procwire.Config{
		In: toProcess(), Out: toBroker(), Handle: s.handle, Timeout: callTimeout, Pending: pending,
	})
	if err != nil {
		return err
	}
	s.conn = conn
	conn.Serve()
	<-conn.Gone()
	if err := conn.Err(); !errors.Is(err, procwire.ErrClosed) {
		return err
	}
	return nil
}

// handle carries out a message of the broker. What may take long has a goroutine of its own.
func (s *server) handle(m *procwire.Message) {
	r := m.Reader()
	if m.Kind == kindSetup {
		s.answer(m, s.setUp(r))
		return
	}
	if s.pool == nil {
		s.broken(m, errors.New("it was not set up"))
		return
	}
	fds, err := m.TakeAll(m.Len())
	if err != nil {
		s.broken(m, err)
		return
	}
	switch m.Kind {
	case kindPing:
		s.pool.Watch()
		var w procwire.Writer
		causes.Put(&w, nil)
		procs.PutJSON(&w, &Health{Queues: s.pool.Threads(), Maps: s.pool.Maps()})
		s.answer(m, w.Bytes())
	case kindConnect:
		go s.connect(m, r, fds)
	case kindStamp:
		go s.stamp(m, r, fds[0])
	default:
		s.tell(m, r)
	}
}

// broken ends the connection because of a message that the broker should not have sent.
func (s *server) broken(m *procwire.Message, why error) {
	s.cfg.Log.Error("message of the broker refused", zap.Uint16("kind", uint16(m.Kind)), zap.Error(why))
	s.conn.Close()
}

// answer answers with a body.
func (s *server) answer(m *procwire.Message, body []byte) {
	if err := m.Answer(body); err != nil && s.conn.Err() == nil {
		s.cfg.Log.Error("answer to the broker failed", zap.Error(err))
	}
}

// setUp makes the data path, and returns the body of the answer.
func (s *server) setUp(r *procwire.Reader) []byte {
	var w procwire.Writer
	s.set.take(r)
	err := r.End()
	if err == nil && s.pool != nil {
		err = errors.New("set up twice")
	}
	if err == nil {
		err = s.cfg.Begin(!s.set.noUring)
	}
	if err == nil {
		s.pool = blkplane.NewPool(blkplane.Options{
			MaxThreads: s.set.maxQueues, NoUring: s.set.noUring, KeepThreads: true, AtStep: s.cfg.AtStep,
			Warn: func(err error) { s.cfg.Log.Warn("data path degraded", zap.Error(err)) },
		})
		err = s.cfg.Lock()
	}
	causes.Put(&w, err)
	if err == nil {
		procs.PutJSON(&w, &Ready{Uring: s.cfg.Uring(!s.set.noUring)})
	}
	return w.Bytes()
}

// handed is the host of a connection: its devices come with the message.
type handed struct {
	adopter Adopter
	grants  []int
	events  [][]int
}

// errNotHanded is returned for a device that did not come with the message.
var errNotHanded = fmt.Errorf("a device was not handed over: %w", unix.EBADF)

// OpenGrants implements [blkplane.Host].
func (h *handed) OpenGrants() (blkplane.Grants, error) {
	if len(h.grants) == 0 {
		return nil, errNotHanded
	}
	fd := h.grants[0]
	h.grants = h.grants[1:]
	return h.adopter.Grants(fd)
}

// OpenEvents implements [blkplane.Host].
func (h *handed) OpenEvents() (blkplane.Events, error) {
	if len(h.events) == 0 {
		return nil, errNotHanded
	}
	fds := h.events[0]
	h.events = h.events[1:]
	return h.adopter.Events(fds), nil
}

// close closes the devices that were not used.
func (h *handed) close() {
	procs.CloseFiles(h.grants)
	for _, fds := range h.events {
		procs.CloseFiles(fds)
	}
}

// connect carries out kindConnect.
func (s *server) connect(m *procwire.Message, r *procwire.Reader, fds []int) {
	debug.SetPanicOnFault(true) // a bad ring page costs this connection only
	link := r.U32()
	var c connecting
	c.take(r)
	if err := r.End(); err != nil || len(fds) != c.files(s.set.eventFiles) {
		procs.CloseFiles(fds)
		s.broken(m, fmt.Errorf("connection with %d files: %w", len(fds), procwire.ErrBody))
		return
	}
	var w procwire.Writer
	conn, err := s.make(link, &c, fds)
	causes.Put(&w, err)
	if err == nil {
		w.Bool(conn.Adopted())
	}
	s.answer(m, w.Bytes())
}

// make makes a connection. It owns the files.
func (s *server) make(link uint32, c *connecting, fds []int) (conn *blkplane.Conn, err error) {
	next := func() int {
		fd := fds[0]
		fds = fds[1:]
		return fd
	}
	queues := len(c.cfg.Queues)
	mem, err := unix.Mmap(fds[0], 0, shownSize(queues), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	_ = unix.Close(next()) // the mapping stays
	if err != nil {
		procs.CloseFiles(fds)
		return nil, fmt.Errorf("memory of counters: %w", err)
	}
	file := -1
	if c.hasFile() {
		file = next()
	}
	host := &handed{adopter: s.cfg.Adopter}
	var journals, again []int
	shown := blkplane.ShownIn(mem, queues)
	for i := range c.cfg.Queues {
		q := &c.cfg.Queues[i]
		q.Shown = &shown[i]
		host.grants = append(host.grants, next())
		host.events = append(host.events, fds[:s.set.eventFiles])
		fds = fds[s.set.eventFiles:]
		if c.journals {
			q.JournalFile = next()
			journals = append(journals, q.JournalFile)
		}
		if c.flushes() {
			again = append(again, next())
		}
	}
	d := disk.Adopt(c.disk, file, again)
	memory := s.enter(c.domid)
	defer func() {
		if p := recover(); p != nil {
			s.cfg.Log.Error("internal error", zap.Any("panic", p), zap.ByteString("stack", debug.Stack()))
			err = fmt.Errorf("internal error: %v", p)
		}
		host.close()
		procs.CloseFiles(journals) // the mappings stay
		if err != nil {
			s.release(c, d, mem)
		}
	}()
	conn, err = s.pool.Connect(blkplane.Config{
		Host: host, Domid: c.domid, Protocol: c.cfg.Protocol, Disk: d, ReadOnly: c.cfg.ReadOnly,
		MaxSegments: c.cfg.MaxSegments, Persistent: c.cfg.Persistent, NoDiscard: c.cfg.NoDiscard,
		Guest: memory, Weight: c.cfg.Weight, Queues: c.cfg.Queues,
		// Queues do not wait for the broker. They send few notices.
		Notice: func(n blkplane.Notice) {
			go s.post(kindNotice, link, c.number, func(w *procwire.Writer) { putNotice(w, &n) })
		},
	})
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.conns[c.number] = served{conn, link}
	s.mu.Unlock()
	go func() {
		<-conn.Done()
		s.mu.Lock()
		delete(s.conns, c.number)
		s.mu.Unlock()
		s.release(c, d, mem)
		s.post(kindEnded, link, c.number, nil)
	}()
	return conn, nil
}

// enter returns the memory that the connections of a domain share, for one more.
func (s *server) enter(domid xen.Domid) *blkplane.Guest {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.guests[domid]
	if g == nil {
		g = &guest{memory: blkplane.NewGuest(s.set.memory)}
		s.guests[domid] = g
	}
	g.users++
	return g.memory
}

// release releases what a connection that has ended had.
func (s *server) release(c *connecting, d *disk.Disk, mem []byte) {
	if err := errors.Join(d.Close(), unix.Munmap(mem)); err != nil {
		s.cfg.Log.Warn("disk not closed", zap.String("vbd", c.name), zap.Error(err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if g := s.guests[c.domid]; g.users > 1 {
		g.users--
	} else {
		delete(s.guests, c.domid)
	}
}

// tell carries out a notice about a connection, unless that has ended meanwhile.
func (s *server) tell(m *procwire.Message, r *procwire.Reader) {
	number := r.U32()
	s.mu.Lock()
	c, ok := s.conns[number]
	s.mu.Unlock()
	if !ok {
		return
	}
	switch m.Kind {
	case kindStart:
		c.Start()
	case kindDrain:
		go func() {
			if c.Drain(context.Background()) == nil {
				s.post(kindDrained, c.link, number, nil)
			}
		}()
	case kindClose:
		c.Close()
	case kindWeight:
		c.SetWeight(int(r.U8()))
	case kindResize:
		c.Resize(r.U64())
	}
}

// post sends a notice about a connection. The end of the broker ends the process.
func (s *server) post(kind procwire.Kind, link, number uint32, put func(*procwire.Writer)) {
	var w procwire.Writer
	w.U32(link)
	w.U32(number)
	if put != nil {
		put(&w)
	}
	_ = s.conn.Post(kind, w.Bytes())
}

// stamp carries out kindStamp.
func (s *server) stamp(m *procwire.Message, r *procwire.Reader, file int) {
	debug.SetPanicOnFault(true)
	domid, ref := xen.Domid(r.U16()), xen.Gref(r.U32())
	if err := r.End(); err != nil {
		_ = unix.Close(file)
		s.broken(m, err)
		return
	}
	host := &handed{adopter: s.cfg.Adopter, grants: []int{file}}
	stamp, err := readStamp(host, domid, ref)
	var w procwire.Writer
	causes.Put(&w, err)
	if err == nil {
		putStamp(&w, stamp)
	}
	s.answer(m, w.Bytes())
}

// readStamp reads the stamp of a ring page. A page that cannot be read is an error.
func readStamp(host blkplane.Host, domid xen.Domid, ref xen.Gref) (stamp xen.Stamp, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("read the stamp: %v", p)
		}
	}()
	return ringStamp(host, domid, ref)
}

// SPDX-License-Identifier: Apache-2.0

package netengine

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/budget"
	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/host"
	"github.com/netbackd/netbackd/internal/procs"
	"github.com/netbackd/netbackd/internal/procwire"
	"github.com/netbackd/netbackd/pkg/staticgrant"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Ready describes a packet process that has started.
type Ready struct {
	Workers  int    `json:"workers"`
	Uring    string `json:"io_uring"`
	Priority string `json:"priority"`
	Denied   string `json:"denied,omitempty"`
}

// Health is the answer of a packet process to a ping.
type Health struct {
	Silent    string             `json:"silent,omitempty"` // the reason why a worker does not answer
	OwnPages  dataplane.OwnPages `json:"own_pages"`
	OwnReason string             `json:"own_reason,omitempty"` // why there are none
	Classes   []string           `json:"classes,omitempty"`
}

// ProcessConfig describes what a packet process gets from its program.
type ProcessConfig struct {
	Adopter Adopter
	Log     *zap.Logger
	// Begin is called before so many workers start.
	Begin func(workers int, uring bool) error
	// Lock is called once the process has all that it opens itself. From then on it opens
	// nothing.
	Lock func() error
	// Links gets the number of vifs that the process serves.
	Links *atomic.Int64
	// Uring tells the state of io_uring.
	Uring func(on bool) string
}

// server is a packet process.
type server struct {
	cfg  ProcessConfig
	conn *procwire.Conn
	set  setup

	pool   *dataplane.Pool // nil: not set up
	grants GrantDevice
	pages  *host.OwnPages // nil: there are none

	budgets *budget.Host
	guests  map[xen.Domid]*guest
	static  *staticgrant.Budget // of all guests
	links   map[uint32]*served

	saidMu sync.Mutex
	said   map[string]time.Time // failures that were reported, and when; guarded by saidMu
}

// guest holds the budgets of a domain.
type guest struct {
	budget *budget.Guest
	static *staticgrant.Budget
	links  int
}

const (
	// callTimeout bounds the wait for an answer. A page of a guest that is paged out takes
	// half a minute; pings find a process that hangs before.
	callTimeout = 3 * time.Minute
	// closeTimeout is the same of closing a connection.
	closeTimeout = 24 * time.Hour
	// pending bounds the messages that wait for an answer.
	pending = 8192
	// healthTime bounds the wait for workers in the answer to a ping.
	healthTime = 2 * time.Second
	// maxStatic bounds the static grants of all guests of a process: half of the mappings
	// that Linux allows a process by default (vm.max_map_count).
	maxStatic = 65530 / 2
)

// Serve is a packet process: it obeys the broker at the other end of the socket until that
// ends. Then the process must end at once.
func Serve(socket int, cfg ProcessConfig) error {
	s := &server{
		cfg: cfg, budgets: budget.NewHost(budget.Turns), guests: map[xen.Domid]*guest{},
		static: staticgrant.NewBudget(maxStatic, nil), links: map[uint32]*served{}, said: map[string]time.Time{},
	}
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

// handle carries out a message of the broker, or hands it to the goroutine of its link.
func (s *server) handle(m *procwire.Message) {
	r := m.Reader()
	switch m.Kind {
	case kindSetup:
		s.answer(m, s.setUp(m, r))
		return
	case kindPing:
		go s.health(m)
		return
	case kindOwnDomid:
		s.ownDomid(xen.Domid(r.U16()))
		return
	}
	id := r.U32()
	if m.Kind == kindOpen {
		s.open(id, r, m.Take(0))
		return
	}
	l := s.links[id]
	if l == nil {
		s.broken(m, "of an unknown link")
		return
	}
	if m.Kind == kindEnd {
		s.end(l)
		return
	}
	fds, err := m.TakeAll(m.Len())
	if err != nil {
		s.broken(m, err.Error())
		return
	}
	l.post(func() { l.obey(m, r, fds) })
}

// broken ends the connection because of a message that the broker should not have sent.
func (s *server) broken(m *procwire.Message, why string) {
	s.cfg.Log.Error("message of the broker refused", zap.Uint16("kind", uint16(m.Kind)), zap.String("reason", why))
	s.conn.Close()
}

// answer answers with a body, which is the error if it is nil.
func (s *server) answer(m *procwire.Message, body []byte) {
	if err := m.Answer(body); err != nil && s.conn.Err() == nil {
		s.cfg.Log.Error("answer to the broker failed", zap.Error(err))
	}
}

// setUp makes the data path, and returns the body of the answer.
func (s *server) setUp(m *procwire.Message, r *procwire.Reader) []byte {
	var w procwire.Writer
	s.set.take(r)
	err := r.End()
	if err == nil && s.pool != nil {
		err = errors.New("set up twice")
	}
	if err == nil {
		err = s.start(m)
	}
	putError(&w, err)
	if err != nil {
		return w.Bytes()
	}
	state, denied := s.pool.Priority()
	ready := Ready{Workers: s.pool.Workers(), Uring: s.cfg.Uring(!s.set.noUring), Priority: state}
	if denied != nil {
		ready.Denied = denied.Error()
	}
	procs.PutJSON(&w, &ready)
	return w.Bytes()
}

// start adopts the devices and starts the workers.
func (s *server) start(m *procwire.Message) (err error) {
	if s.grants, err = s.cfg.Adopter.Grants(m.Take(0)); err != nil {
		return err
	}
	opts := dataplane.Options{
		Workers: s.set.workers, NoUring: s.set.noUring, NoPriority: s.set.noPriority, Shared: s.set.shared,
		Warn: s.degraded,
		Note: func(text string) { s.cfg.Log.Info("guests moved", zap.String("why", text)) },
	}
	if s.set.pages {
		var limit func() (int, error)
		if n := s.set.pageLimit; n >= 0 {
			limit = func() (int, error) { return int(n), nil }
		}
		s.pages = host.NewOwnPages(s.cfg.Adopter.Pages(m.Take(1)), s.grants, limit)
		opts.OwnPager = s.pages
	}
	if opts.Workers <= 0 {
		opts.Workers = runtime.NumCPU()
	}
	if err := s.cfg.Begin(opts.Workers, !opts.NoUring); err != nil {
		return err
	}
	if s.pool, err = dataplane.NewPool(opts); err != nil {
		return err
	}
	return s.cfg.Lock()
}

// degraded reports a failure in the data path that does not end it, and the same one once a
// minute: workers try some things again with each vif.
func (s *server) degraded(err error) {
	text := err.Error()
	s.saidMu.Lock()
	again := s.said[text]
	now := time.Now()
	due := now.Sub(again) > time.Minute && len(s.said) < maxSaid
	if due {
		s.said[text] = now
	}
	s.saidMu.Unlock()
	if due {
		s.cfg.Log.Warn("data path degraded", zap.Error(err))
	}
}

// maxSaid bounds the failures that are remembered.
const maxSaid = 1000

// ownDomid tells the number of this domain to the own pages.
func (s *server) ownDomid(domid xen.Domid) {
	if s.pages == nil {
		return
	}
	if err := s.pages.Told(domid); err != nil {
		s.cfg.Log.Warn("packets are copied by address, for want of own pages", zap.Error(err))
	}
}

// health answers a ping.
func (s *server) health(m *procwire.Message) {
	var h Health
	if s.pool != nil {
		ctx, cancel := context.WithTimeout(context.Background(), healthTime)
		defer cancel()
		if err := s.pool.Ping(ctx); err != nil {
			h.Silent = procs.Cut(err.Error())
		}
		h.OwnPages, h.Classes = s.pool.OwnPages(), s.pool.Classes()
	}
	if s.pages != nil {
		if _, err := s.pages.Domid(); err != nil {
			h.OwnReason = procs.Cut(err.Error())
		}
	}
	var w procwire.Writer
	putError(&w, nil)
	procs.PutJSON(&w, &h)
	s.answer(m, w.Bytes())
}

// open makes a link.
func (s *server) open(id uint32, r *procwire.Reader, file int) {
	defer unix.Close(file)
	domid, name := xen.Domid(r.U16()), r.String(maxName)
	stats, err := unix.Mmap(file, 0, statsSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil || r.End() != nil || s.links[id] != nil || s.pool == nil {
		s.cfg.Log.Error("link not opened", zap.Error(err))
		s.conn.Close()
		return
	}
	g := s.guests[domid]
	if g == nil {
		g = &guest{budget: s.budgets.Guest(), static: staticgrant.NewBudget(staticgrant.DefaultBudget, s.static)}
		s.guests[domid] = g
	}
	g.links++
	l := &served{s: s, id: id, mapper: -1, stats: stats}
	l.turn = g.budget.Turn()
	l.link = &link{
		cfg: LinkConfig{
			Domid: domid, Name: name, Log: s.cfg.Log.With(zap.String("vif", name)),
			Guest: g.budget, Turn: l.turn, GrantBudget: g.static,
		},
		pool: s.pool, host: (*handed)(l),
	}
	s.links[id] = l
	s.cfg.Links.Add(1)
}

// end ends a link.
func (s *server) end(l *served) {
	delete(s.links, l.id)
	s.cfg.Links.Add(-1)
	domid := l.link.cfg.Domid
	if g := s.guests[domid]; g.links > 1 {
		g.links--
	} else {
		delete(s.guests, domid)
	}
	l.post(func() {
		_, err := l.guard(func() []byte { l.link.Close(Leave); return nil })
		if err != nil {
			return // workers may still use what would be released
		}
		l.release()
		_ = unix.Munmap(l.stats)
	})
}

// handed is the host of a link in a packet process: its devices come with the messages.
type handed served

// Grants implements [Host].
func (h *handed) Grants() Grants { return h.s.grants }

// errNotHanded is returned for a device that did not come with the message.
var errNotHanded = fmt.Errorf("a device was not handed over: %w", unix.EBADF)

// OpenMapper implements [Host].
func (h *handed) OpenMapper() (Mapper, error) {
	if h.mapper < 0 {
		return nil, errNotHanded
	}
	fd := h.mapper
	h.mapper = -1
	return h.s.cfg.Adopter.Grants(fd)
}

// OpenEvents implements [Host].
func (h *handed) OpenEvents(xen.Domid) (Events, error) {
	n := h.s.set.eventFiles
	if len(h.events) < n {
		return nil, errNotHanded
	}
	fds := h.events[:n]
	h.events = h.events[n:]
	return h.s.cfg.Adopter.Events(fds), nil
}

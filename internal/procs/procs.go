// SPDX-License-Identifier: Apache-2.0

package procs

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"github.com/netbackd/netbackd/internal/procwire"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Isolation tells which devices share a process.
type Isolation string

// The values of an Isolation.
const (
	IsolateNone   Isolation = "none"   // no process: the daemon serves rings itself
	IsolateShared Isolation = "shared" // one process for all
	IsolateGuest  Isolation = "guest"  // one for each guest
	IsolateGroup  Isolation = "group"  // one for each group that the toolstack names
)

// Isolations are the values, for messages.
const Isolations = "none, shared, guest or group"

// ParseIsolation parses an Isolation.
func ParseIsolation(s string) (Isolation, error) {
	switch i := Isolation(s); i {
	case IsolateNone, IsolateShared, IsolateGuest, IsolateGroup:
		return i, nil
	}
	return "", fmt.Errorf("%q: want %s", s, Isolations)
}

// Config configures a Set.
type Config struct {
	Isolation Isolation
	Log       *zap.Logger
	Words     Words
	// Start starts a process.
	Start func() (Child, error)
	// SetUp returns the body of the first request to a process, and its files, which are closed
	// then. alone says that the process is for one guest that was separated.
	SetUp func(alone bool) (body *procwire.Writer, files []int, err error)
	// Entered is called once a process is in use, and may send it notices. It must not wait.
	Entered func(p *Process)
	Wire    Wire
}

// Words are those of messages.
type Words struct {
	Process string // a "packet process"
	Devices string // that it serves: "vifs"
}

// Wire describes the messages between the broker and a process. Each message of a process begins
// with the number of its link.
type Wire struct {
	In, Out     procwire.Rules // of the process, of the broker
	Setup, Ping procwire.Kind  // requests to the process
	Causes      Causes
	Timeout     time.Duration // bounds the wait for an answer, beside pings
	Pending     int           // bounds the requests that wait for an answer
	Died        error         // matches the errors of calls to a process that has ended

	// Ready reads the answer to the setup, and Health that to a ping. silent is the reason why
	// a thread of the process does not answer; empty: all do. A process may be in the hands of a
	// guest, so they check everything.
	Ready  func(*procwire.Reader) (ready any)
	Health func(*procwire.Reader) (health any, silent string)
}

// Link is a device of the broker that a process serves.
type Link interface {
	Domid() xen.Domid
	// Died is called when a process that had the link open has ended, from another goroutine.
	// It must not block.
	Died(p *Process, why error)
	// Handle takes a message of the process about the link, of which r has read the number. An
	// error means that the process must not go on.
	Handle(m *procwire.Message, r *procwire.Reader) error
}

// Seat is a link's place in a Set.
type Seat struct {
	link   Link
	id     uint32
	named  string // group that the toolstack named, when it last wanted a process; guarded by Set.mu
	joined *group // that it last wanted a process of; nil: none; guarded by Set.mu
}

// ID is the number of the link in messages.
func (s *Seat) ID() uint32 { return s.id }

// Set starts processes when they are needed, and again when they end.
type Set struct {
	cfg  Config
	next atomic.Uint32 // number of the last link

	mu     sync.Mutex // guards all below
	groups map[string]*group
	apart  map[xen.Domid]string // groups of guests whose shared process died again and again
	links  map[xen.Domid]int    // number of links
	starts *rate.Limiter        // of starts after deaths, of all groups
	closed bool
}

// group is the set of links that share a process. Guarded by Set.mu.
type group struct {
	name     string
	alone    bool          // one guest that was separated
	proc     *Process      // nil: none runs
	starting chan struct{} // closed when a start has ended; nil: none is under way
	deaths   []time.Time   // of the last minute
	restarts int           // processes that have died
	born     time.Time     // when proc was started
	short    int           // processes in a row that died soon
	starts   *rate.Limiter // of starts after a death
	after    time.Time     // none is started before
	last     error         // reason of the last death
	users    map[*Seat]bool
}

const (
	// deathWindow is the time for which the death of a process counts.
	deathWindow = time.Minute
	// maxDeaths is the number of deaths in that time after which the guests of a process are
	// separated.
	maxDeaths = 3
	// maxParts is the number of groups that such guests get, at most. A thousand processes at
	// once would cost more than all that a guest can do.
	maxParts = 16
	// A process that dies within shortLife for the maxShort-th time in a row is started again
	// after firstPause. The pause doubles with each such death, up to maxPause.
	shortLife            = 250 * time.Millisecond
	maxShort             = 3
	firstPause, maxPause = 100 * time.Millisecond, 30 * time.Second
	// startRate and startBurst bound the starts after deaths, per second and at once: a start
	// takes some 50 ms of processor time.
	startRate, startBurst = 1, 64
	// hostRate and hostBurst bound the starts after deaths of all groups together, which take
	// turns. A process that had lived for a deathWindow does not count, and is replaced at once: so
	// many groups whose processes die again and again do not hold up another one.
	hostRate, hostBurst = 8, 256
	// lostTime bounds the wait for the end of a process.
	lostTime = 5 * time.Second
)

// New makes a set. If all devices share a process it is started now, so that a host on which that
// fails is found at the start.
func New(cfg Config) (*Set, error) {
	e := &Set{
		cfg: cfg, groups: map[string]*group{}, apart: map[xen.Domid]string{}, links: map[xen.Domid]int{},
		starts: rate.NewLimiter(hostRate, hostBurst),
	}
	if cfg.Isolation != IsolateShared {
		return e, nil
	}
	_, err := e.running(e.group(e.shared()))
	return e, err
}

// shared is the name of the group of all devices.
func (e *Set) shared() string { return "all " + e.cfg.Words.Devices }

// Open gives a link its seat.
func (e *Set) Open(l Link) *Seat {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.links[l.Domid()]++
	return &Seat{link: l, id: e.next.Add(1)}
}

// End forgets a link.
func (e *Set) End(l *Seat) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.quit(l)
	domid := l.link.Domid()
	if e.links[domid]--; e.links[domid] <= 0 {
		delete(e.links, domid)
		delete(e.apart, domid)
	}
}

// Running returns the processes that are in use.
func (e *Set) Running() (ps []*Process) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, g := range e.groups {
		if g.proc != nil {
			ps = append(ps, g.proc)
		}
	}
	return ps
}

// Look has all processes pinged, and those killed that do not answer. It does not wait. A
// process that is idle is pinged at no other time, so that it can sleep.
func (e *Set) Look() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, g := range e.groups {
		if g.proc != nil {
			g.proc.look()
		}
	}
}

// Refresh asks all processes for their state, and waits for their answers for a bounded time.
func (e *Set) Refresh(within time.Duration) {
	e.mu.Lock()
	var asked sync.WaitGroup
	for _, g := range e.groups {
		if p := g.proc; p != nil {
			asked.Go(p.refresh)
		}
	}
	e.mu.Unlock()
	answered := make(chan struct{})
	go func() {
		asked.Wait()
		close(answered)
	}()
	t := time.NewTimer(within)
	defer t.Stop()
	select {
	case <-answered:
	case <-t.C:
	}
}

// nameFor returns the name of the group of a link. Preconditions: mu held.
func (e *Set) nameFor(l *Seat, group string) string {
	switch apart := e.apart[l.link.Domid()]; {
	case apart != "":
		return apart
	case e.cfg.Isolation == IsolateShared:
		return e.shared()
	case e.cfg.Isolation == IsolateGroup && group != "":
		return "group " + group
	}
	return fmt.Sprintf("domain %d", l.link.Domid())
}

// apartName is the name of the group of a guest that was separated from all others.
func apartName(domid xen.Domid) string { return fmt.Sprintf("domain %d, apart", domid) }

// quit takes a link out of its group. One that is not used any more is forgotten, and its
// process ends, unless it is that of all devices. Preconditions: mu held.
func (e *Set) quit(l *Seat) {
	g := l.joined
	if l.joined = nil; g == nil {
		return
	}
	delete(g.users, l)
	if len(g.users) > 0 || g.name == e.shared() {
		return
	}
	if g.proc != nil {
		g.proc.conn.Close()
	}
	delete(e.groups, g.name)
}

// group returns the group of a name.
func (e *Set) group(name string) *group {
	g := e.groups[name]
	if g == nil {
		g = &group{name: name, users: map[*Seat]bool{}, starts: rate.NewLimiter(startRate, startBurst)}
		e.groups[name] = g
	}
	return g
}

// Acquire returns the process for a link, and starts it if need be. group is the group that the
// toolstack names, if it does.
func (e *Set) Acquire(l *Seat, group string) (*Process, error) {
	e.mu.Lock()
	g := e.group(e.nameFor(l, group))
	g.alone = g.name == apartName(l.link.Domid())
	if l.joined != g {
		g.users[l] = true // first: the group that it leaves may be of its process
		e.quit(l)
	}
	l.named, l.joined = group, g
	e.mu.Unlock()
	return e.running(g)
}

// LastGroup returns the group that the toolstack named when the link last wanted a process.
func (e *Set) LastGroup(l *Seat) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return l.named
}

// running returns the process of a group, and starts it if need be.
func (e *Set) running(g *group) (*Process, error) {
	for {
		e.mu.Lock()
		switch {
		case e.closed:
			e.mu.Unlock()
			return nil, e.cfg.Wire.Died
		case g.proc != nil && !g.proc.gone():
			p := g.proc
			e.mu.Unlock()
			return p, nil
		case g.proc != nil: // its end has not been dealt with yet
			lost := g.proc.lost
			e.mu.Unlock()
			select {
			case <-lost:
				continue
			case <-time.After(lostTime): // the kernel holds it up: the device has other work
				return nil, e.cfg.Wire.Died
			}
		case g.starting != nil:
			wait := g.starting
			e.mu.Unlock()
			<-wait
			continue
		}
		if time.Now().Before(g.after) {
			err := fmt.Errorf("%w: it died again and again, the last time because %w, and is started again later", e.cfg.Wire.Died, g.last)
			e.mu.Unlock()
			return nil, err
		}
		g.starting = make(chan struct{})
		e.mu.Unlock()
		p, err := e.start(g)
		e.mu.Lock()
		close(g.starting)
		g.starting = nil
		switch {
		case err != nil:
			e.died(g, err)
			err = fmt.Errorf("%w: %w", e.cfg.Wire.Died, err)
		case e.closed:
			p.Kill(e.cfg.Wire.Died)
			err = e.cfg.Wire.Died
		default:
			g.proc, g.born = p, time.Now()
		}
		e.mu.Unlock()
		if err == nil && e.cfg.Entered != nil {
			e.cfg.Entered(p)
		}
		return p, err
	}
}

// start starts the process of a group.
func (e *Set) start(g *group) (*Process, error) {
	body, files, err := e.cfg.SetUp(g.alone)
	if err != nil {
		return nil, err
	}
	child, err := e.cfg.Start()
	if err != nil {
		CloseFiles(files)
		return nil, err
	}
	log := e.cfg.Log.With(zap.Int("process", child.PID()))
	p, err := newProcess(log, child, &e.cfg, body, files, func(p *Process) { e.lost(g, p) })
	if err != nil {
		return nil, err
	}
	log.Info(e.cfg.Words.Process+" started", zap.String("for", g.name), zap.Any("says", p.ready))
	return p, nil
}

// died notes the death of a process of g, or that it could not be started. Preconditions: mu
// held.
func (e *Set) died(g *group, why error) {
	now := time.Now()
	g.last = why
	var lived time.Duration
	if !g.born.IsZero() {
		lived = now.Sub(g.born)
	}
	g.born = time.Time{}
	if g.short++; lived > shortLife {
		g.short = 0
	}
	g.deaths = slices.DeleteFunc(g.deaths, func(t time.Time) bool { return now.Sub(t) > deathWindow })
	g.deaths = append(g.deaths, now)
	if g.after = now; lived >= deathWindow {
		return
	}
	pause := max(g.starts.ReserveN(now, 1).DelayFrom(now), e.starts.ReserveN(now, 1).DelayFrom(now))
	if n := g.short - maxShort; n >= 0 {
		pause = max(pause, min(firstPause<<min(n, 20), maxPause))
	}
	g.after = now.Add(pause)
}

// lost is called when a process of g has ended.
func (e *Set) lost(g *group, p *Process) {
	why := p.end()
	e.mu.Lock()
	if g.proc == p {
		g.proc = nil
	}
	wanted := len(g.users) > 0 && !e.closed
	p.mu.Lock()
	links := make([]*Seat, 0, len(p.links))
	for _, l := range p.links {
		links = append(links, l)
	}
	p.mu.Unlock()
	if wanted {
		g.restarts++
		e.died(g, why)
		e.separate(g, links)
	}
	e.mu.Unlock()
	if wanted {
		words := &e.cfg.Words
		p.log.Warn(words.Process+" died; its "+words.Devices+" continue with another one", zap.String("for", g.name),
			zap.Int(words.Devices, len(links)), zap.Error(why))
	}
	for _, l := range links {
		l.link.Died(p, why)
	}
}

// separate gives each guest of a group whose process dies again and again a process of its
// own, so that the guest that causes it harms no other. Many guests get maxParts groups, of which
// the one with that guest is separated again. Preconditions: mu held.
func (e *Set) separate(g *group, links []*Seat) {
	if len(g.deaths) < maxDeaths {
		return
	}
	guests := map[xen.Domid]bool{}
	for _, l := range links {
		guests[l.link.Domid()] = true
	}
	if len(guests) < 2 {
		return
	}
	for i, domid := range slices.Sorted(maps.Keys(guests)) {
		if e.apart[domid] = apartName(domid); len(guests) > maxParts {
			e.apart[domid] = fmt.Sprintf("%s, part %d", g.name, i%maxParts+1)
		}
	}
	parts := min(len(guests), maxParts)
	e.starts.ReserveN(time.Now(), parts) // others wait for their starts
	g.after = time.Time{}
	e.cfg.Log.Error("a "+e.cfg.Words.Process+" of several guests died again and again; they are separated",
		zap.String("for", g.name), zap.Int("guests", len(guests)), zap.Int("processes", parts))
}

// Left is called when a link has left a process, which it may still have wanted.
func (e *Set) Left(p *Process, l *Seat) {
	p.leave(l)
	e.mu.Lock()
	defer e.mu.Unlock()
	if g := l.joined; g != nil && g.proc == p {
		e.quit(l)
	}
}

// Close ends all processes, and waits for their ends for lostTime: the kernel may hold one up, as
// long as a disk does not answer. It kills them with this process. The links were ended before.
func (e *Set) Close() {
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	limit := time.NewTimer(lostTime)
	defer limit.Stop()
	all := e.Running()
	for _, p := range all {
		p.conn.Close()
	}
	for _, p := range all {
		for _, ended := range []<-chan struct{}{p.child.Done(), p.conn.Done()} {
			select {
			case <-ended:
			case <-limit.C:
				return
			}
		}
	}
}

// Status describes a process.
type Status struct {
	For      string `json:"for"`
	PID      int    `json:"pid"` // 0: it does not run
	Links    int    `json:"links"`
	Restarts int    `json:"restarts"`
	Last     string `json:"last_death,omitempty"` // reason of the last one
	Ready    any    `json:"ready"`                // nil: it does not run; see [Wire]
	Health   any    `json:"health"`               // nil: it was not asked yet
}

// Status describes the processes, ordered by name.
func (e *Set) Status() []Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	list := []Status{}
	for _, g := range e.groups {
		s := Status{For: g.name, Restarts: g.restarts}
		if g.last != nil {
			s.Last = g.last.Error()
		}
		if p := g.proc; p != nil {
			p.mu.Lock()
			s.PID, s.Links, s.Ready, s.Health = p.child.PID(), len(p.links), p.ready, p.health
			p.mu.Unlock()
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b Status) int { return cmp.Compare(a.For, b.For) })
	return list
}

// errNoProcess is the state of a set whose process of all devices does not run.
var errNoProcess = errors.New("no process runs")

// Shared returns the answer to the setup of the process of all devices.
func (e *Set) Shared() (ready any, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if g := e.groups[e.shared()]; g != nil && g.proc != nil {
		return g.proc.ready, nil
	}
	return nil, errNoProcess
}

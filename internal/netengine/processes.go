// SPDX-License-Identifier: Apache-2.0

package netengine

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

	"github.com/netbackd/netbackd/pkg/xen"
)

// Isolation tells which vifs share a packet process.
type Isolation string

// The values of an Isolation.
const (
	IsolateNone   Isolation = "none"   // no process: packets move in the daemon
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

// ProcessesConfig configures the engine of packet processes.
type ProcessesConfig struct {
	Isolation Isolation
	Opener    Opener
	Log       *zap.Logger
	// Start starts a packet process, which calls [Serve].
	Start func() (Child, error)

	Workers    int // threads of a process; 0: one for each CPU
	Alone      int // threads of a process of a guest that was separated; 0: as Workers
	NoUring    bool
	NoPriority bool
	Shared     int64 // see dataplane.Options
	OwnPages   bool
	// PageLimit returns the number of own pages that all programs of this domain may have
	// granted; nil, or an error of it: only the device knows.
	PageLimit func() (int, error)
}

// Processes is the engine whose connections are served by packet processes. It starts them
// when they are needed, and again when they end.
type Processes struct {
	cfg  ProcessesConfig
	next atomic.Uint32 // number of the last link

	mu     sync.Mutex // guards all below
	groups map[string]*group
	apart  map[xen.Domid]string // groups of guests whose shared process died again and again
	links  map[xen.Domid]int    // number of links
	domid  *xen.Domid           // of this domain; nil: not known yet
	starts *rate.Limiter        // of starts after deaths, of all groups
	closed bool
}

// group is the set of links that share a process. Guarded by Processes.mu.
type group struct {
	name     string
	alone    bool          // one guest that was separated
	proc     *process      // nil: none runs
	starting chan struct{} // closed when a start has ended; nil: none is under way
	deaths   []time.Time   // of the last minute
	restarts int           // processes that have died
	born     time.Time     // when proc was started
	short    int           // processes in a row that died soon
	starts   *rate.Limiter // of starts after a death
	after    time.Time     // none is started before
	last     error         // reason of the last death
	users    map[*remoteLink]bool
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

// NewProcesses makes the engine. If all vifs share a process it is started now, so that a host
// on which that fails is found at the start.
func NewProcesses(cfg ProcessesConfig) (*Processes, error) {
	e := &Processes{
		cfg: cfg, groups: map[string]*group{}, apart: map[xen.Domid]string{}, links: map[xen.Domid]int{},
		starts: rate.NewLimiter(hostRate, hostBurst),
	}
	if cfg.Isolation != IsolateShared {
		return e, nil
	}
	_, err := e.running(e.group(sharedGroup))
	return e, err
}

// sharedGroup is the name of the group of all vifs.
const sharedGroup = "all vifs"

// Open implements [Engine].
func (e *Processes) Open(cfg LinkConfig) Link {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.links[cfg.Domid]++
	return &remoteLink{cfg: cfg, engine: e, id: e.next.Add(1)}
}

// ended forgets a link that has ended.
func (e *Processes) ended(l *remoteLink) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.quit(l)
	if e.links[l.cfg.Domid]--; e.links[l.cfg.Domid] <= 0 {
		delete(e.links, l.cfg.Domid)
		delete(e.apart, l.cfg.Domid)
	}
}

// Told tells the processes the number of their domain, which own pages need.
func (e *Processes) Told(domid xen.Domid) {
	e.mu.Lock()
	e.domid = &domid
	var ps []*process
	for _, g := range e.groups {
		if g.proc != nil {
			ps = append(ps, g.proc)
		}
	}
	e.mu.Unlock()
	for _, p := range ps {
		p.tellDomid(domid)
	}
}

// Look has all processes pinged, and those killed that do not answer. It does not wait. A
// process that is idle is pinged at no other time, so that it can sleep.
func (e *Processes) Look() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, g := range e.groups {
		if g.proc != nil {
			g.proc.look()
		}
	}
}

// Refresh asks all processes for their state, and waits for their answers for a bounded time.
func (e *Processes) Refresh(within time.Duration) {
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
func (e *Processes) nameFor(l *remoteLink, group string) string {
	switch apart := e.apart[l.cfg.Domid]; {
	case apart != "":
		return apart
	case e.cfg.Isolation == IsolateShared:
		return sharedGroup
	case e.cfg.Isolation == IsolateGroup && group != "":
		return "group " + group
	}
	return fmt.Sprintf("domain %d", l.cfg.Domid)
}

// apartName is the name of the group of a guest that was separated from all others.
func apartName(domid xen.Domid) string { return fmt.Sprintf("domain %d, apart", domid) }

// quit takes a link out of its group. One that is not used any more is forgotten, and its
// process ends, unless it is that of all vifs. Preconditions: mu held.
func (e *Processes) quit(l *remoteLink) {
	g := l.joined
	if l.joined = nil; g == nil {
		return
	}
	delete(g.users, l)
	if len(g.users) > 0 || g.name == sharedGroup {
		return
	}
	if g.proc != nil {
		g.proc.conn.Close()
	}
	delete(e.groups, g.name)
}

// group returns the group of a name.
func (e *Processes) group(name string) *group {
	g := e.groups[name]
	if g == nil {
		g = &group{name: name, users: map[*remoteLink]bool{}, starts: rate.NewLimiter(startRate, startBurst)}
		e.groups[name] = g
	}
	return g
}

// acquire returns the process for a link, and starts it if need be.
func (e *Processes) acquire(l *remoteLink, group string) (*process, error) {
	e.mu.Lock()
	g := e.group(e.nameFor(l, group))
	g.alone = g.name == apartName(l.cfg.Domid)
	if l.joined != g {
		g.users[l] = true // first: the group that it leaves may be of its process
		e.quit(l)
	}
	l.groupName, l.joined = group, g
	e.mu.Unlock()
	return e.running(g)
}

// lastGroup returns the group that the toolstack named when the link was last connected.
func (e *Processes) lastGroup(l *remoteLink) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return l.groupName
}

// running returns the process of a group, and starts it if need be.
func (e *Processes) running(g *group) (*process, error) {
	for {
		e.mu.Lock()
		switch {
		case e.closed:
			e.mu.Unlock()
			return nil, ErrDied
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
			case <-time.After(lostTime): // the kernel holds it up: the vif has other work
				return nil, ErrDied
			}
		case g.starting != nil:
			wait := g.starting
			e.mu.Unlock()
			<-wait
			continue
		}
		if time.Now().Before(g.after) {
			err := fmt.Errorf("%w: it died again and again, the last time because %w, and is started again later", ErrDied, g.last)
			e.mu.Unlock()
			return nil, err
		}
		g.starting = make(chan struct{})
		e.mu.Unlock()
		p, err := e.start(g)
		e.mu.Lock()
		close(g.starting)
		g.starting = nil
		domid := e.domid
		switch {
		case err != nil:
			e.died(g, err)
			err = fmt.Errorf("%w: %w", ErrDied, err)
		case e.closed:
			p.kill(ErrDied)
			err = ErrDied
		default:
			g.proc, g.born = p, time.Now()
		}
		e.mu.Unlock()
		if err == nil && domid != nil {
			p.tellDomid(*domid)
		}
		return p, err
	}
}

// start starts the process of a group.
func (e *Processes) start(g *group) (*process, error) {
	set := setup{
		eventFiles: e.cfg.Opener.EventFiles(), pageLimit: -1,
		workers: e.cfg.Workers, noUring: e.cfg.NoUring, noPriority: e.cfg.NoPriority, shared: e.cfg.Shared,
	}
	if g.alone && e.cfg.Alone > 0 {
		set.workers = e.cfg.Alone
	}
	grants, err := e.cfg.Opener.OpenGrantFile()
	if err != nil {
		return nil, err
	}
	devices := []int{grants}
	if e.cfg.OwnPages {
		fd, err := e.cfg.Opener.OpenPageFile()
		if err != nil {
			e.cfg.Log.Warn("packets are copied by address, for want of own pages", zap.Error(err))
		} else {
			devices = append(devices, fd)
			set.pages = true
		}
		if e.cfg.PageLimit != nil {
			if n, err := e.cfg.PageLimit(); err == nil {
				set.pageLimit = int64(n)
			}
		}
	}
	child, err := e.cfg.Start()
	if err != nil {
		CloseFiles(devices)
		return nil, err
	}
	log := e.cfg.Log.With(zap.Int("process", child.PID()))
	p, err := newProcess(log, child, &set, devices, func(p *process) { e.lost(g, p) })
	if err != nil {
		return nil, err
	}
	log.Info("packet process started", zap.String("for", g.name), zap.Int("workers", p.ready.Workers))
	return p, nil
}

// died notes the death of a process of g, or that it could not be started. Preconditions: mu
// held.
func (e *Processes) died(g *group, why error) {
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
func (e *Processes) lost(g *group, p *process) {
	why := p.end()
	e.mu.Lock()
	if g.proc == p {
		g.proc = nil
	}
	wanted := len(g.users) > 0 && !e.closed
	p.mu.Lock()
	links := make([]*remoteLink, 0, len(p.links))
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
		p.log.Warn("packet process died; its vifs continue with another one", zap.String("for", g.name),
			zap.Int("vifs", len(links)), zap.Error(why))
	}
	for _, l := range links {
		l.died(p, why)
	}
}

// separate gives each guest of a group whose process dies again and again a process of its
// own, so that the guest that causes it harms no other. Many guests get maxParts groups, of which
// the one with that guest is separated again. Preconditions: mu held.
func (e *Processes) separate(g *group, links []*remoteLink) {
	if len(g.deaths) < maxDeaths {
		return
	}
	guests := map[xen.Domid]bool{}
	for _, l := range links {
		guests[l.cfg.Domid] = true
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
	e.cfg.Log.Error("a packet process of several guests died again and again; they are separated",
		zap.String("for", g.name), zap.Int("guests", len(guests)), zap.Int("processes", parts))
}

// left is called when a link has left a process, which it may still have wanted.
func (e *Processes) left(p *process, l *remoteLink) {
	p.leave(l)
	e.mu.Lock()
	defer e.mu.Unlock()
	if g := l.joined; g != nil && g.proc == p {
		e.quit(l)
	}
}

// Close ends all processes. The links were ended before.
func (e *Processes) Close() {
	e.mu.Lock()
	e.closed = true
	var ps []*process
	for _, g := range e.groups {
		if g.proc != nil {
			ps = append(ps, g.proc)
		}
	}
	e.mu.Unlock()
	for _, p := range ps {
		p.conn.Close()
		<-p.child.Done()
		<-p.conn.Done()
	}
}

// ProcessStatus describes a packet process.
type ProcessStatus struct {
	For      string `json:"for"`
	PID      int    `json:"pid"` // 0: it does not run
	Vifs     int    `json:"vifs"`
	Restarts int    `json:"restarts"`
	Last     string `json:"last_death,omitempty"` // reason of the last one
	Ready
	Health
}

// Status describes the processes, ordered by name.
func (e *Processes) Status() []ProcessStatus {
	e.mu.Lock()
	defer e.mu.Unlock()
	list := []ProcessStatus{}
	for _, g := range e.groups {
		s := ProcessStatus{For: g.name, Restarts: g.restarts}
		if g.last != nil {
			s.Last = g.last.Error()
		}
		if p := g.proc; p != nil {
			p.mu.Lock()
			s.PID, s.Vifs, s.Ready, s.Health = p.child.PID(), len(p.links), p.ready, p.health
			p.mu.Unlock()
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b ProcessStatus) int { return cmp.Compare(a.For, b.For) })
	return list
}

// errNoProcess is the state of an engine whose process of all vifs does not run.
var errNoProcess = errors.New("no packet process runs")

// Shared describes the process of all vifs.
func (e *Processes) Shared() (Ready, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if g := e.groups[sharedGroup]; g != nil && g.proc != nil {
		return g.proc.ready, nil
	}
	return Ready{}, errNoProcess
}

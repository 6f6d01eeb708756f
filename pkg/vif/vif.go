// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/dataplane"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// Store is what a vif needs of xenstore. *xenstore.Client is one.
type Store interface {
	Read(path string) (string, error)
	Write(path, value string) error
	Transaction(func(*xenstore.Tx) error) error
	Watch(path string) (*xenstore.Watch, error)
	IsIntroduced(domid uint16) (bool, error)
}

// Config is what a vif is made from.
type Config struct {
	Domid uint16
	Devid int
	// Path is the backend directory, absolute, without a slash at the end:
	// /local/domain/<own>/backend/vif/<domid>/<devid>.
	Path string
	// ErrorPath is where the text of an error goes:
	// /local/domain/<own>/error/backend/vif/<domid>/<devid>/error.
	ErrorPath string

	Store Store
	Host  Host
	Pool  *dataplane.Pool
	Log   *zap.Logger // made for this vif: fields set, lines limited

	MaxQueues int
	Offload   bool          // TAPs with vnet headers
	RunDir    string        // where journals go; empty: nowhere
	Closers   *tap.Closers  // shared by all vifs
	Drain     time.Duration // 0: dataplane.DefaultDrain
	Stall     time.Duration // 0: dataplane.DefaultStall
}

// grace is how long a live frontend may take to close after the toolstack asked
// for it. libxl waits 10 s; ours is to answer within one.
const grace = 900 * time.Millisecond

// A guest may write its state node as often as it likes. A vif looks at most so
// often: burst times in a row, then once per interval.
const (
	lookBurst    = 64
	lookInterval = 20 * time.Millisecond
)

// Vif is one vif. All fields belong to the goroutine in Run.
type Vif struct {
	cfg Config
	log *zap.Logger

	poke    chan struct{}
	calls   chan func()
	notices chan notice
	done    chan struct{}

	tap     *tap.Device
	link    *link
	limiter dataplane.Limiter
	mcast   dataplane.McastList
	watches []*xenstore.Watch
	watched string // frontend directory the watches are on

	own       State // where the vif is; see situation
	shown     State // what we last wrote
	front     State
	online    bool
	plugged   bool
	rate      Rate
	nodes     nodes
	detachAt  time.Time // when the frontend's grace ends
	refused   *Frontend // rings that were tried in vain
	trouble   string    // the last error, as in the error node
	reason    string    // why it is quarantined
	stalled   map[int]bool
	badRate   string
	gone      bool
	connected time.Time
	totals    [dataplane.NumCounters]uint64 // of connections that are over

	looks     int // since lookStart
	lookStart time.Time
	timer     *time.Timer
}

// nodes is what the backend directory says.
type nodes struct {
	present     bool
	state       State
	front       string
	online      bool
	hotplug     string
	hasHotplug  bool
	rate        string
	mac, bridge string
	script      string
	mtu         string
}

// New makes a vif. It does nothing before Run.
func New(cfg Config) *Vif {
	return &Vif{
		cfg: cfg, log: cfg.Log,
		poke:    make(chan struct{}, 1),
		calls:   make(chan func()),
		notices: make(chan notice, 64),
		done:    make(chan struct{}),
		stalled: map[int]bool{},
		timer:   time.NewTimer(0),
	}
}

// Name is the name the vif's TAP is made with.
func (v *Vif) Name() string { return fmt.Sprintf("vif%d.%d", v.cfg.Domid, v.cfg.Devid) }

// Domid is the frontend's domain.
func (v *Vif) Domid() uint16 { return v.cfg.Domid }

// Devid is the number of the vif in its domain.
func (v *Vif) Devid() int { return v.cfg.Devid }

// Poke makes the vif look at xenstore again. It never blocks; pokes that come
// while one is pending are one.
func (v *Vif) Poke() {
	select {
	case v.poke <- struct{}{}:
	default:
	}
}

// Do runs f in the vif's goroutine and waits for it. It reports false if the
// vif has ended.
func (v *Vif) Do(f func()) bool {
	ran := make(chan struct{})
	select {
	case v.calls <- func() { defer close(ran); f() }:
		<-ran
		return true
	case <-v.done:
		return false
	}
}

// SetStore gives the vif another connection to xenstore, after the old one was
// lost. The data path has gone on meanwhile.
func (v *Vif) SetStore(s Store) {
	v.Do(func() {
		v.cfg.Store = s
		v.watches, v.watched = nil, "" // they went with the connection
		v.Poke()
	})
}

// Done is closed when Run has returned.
func (v *Vif) Done() <-chan struct{} { return v.done }

// notice is what the data plane has to tell about a connection.
type notice struct {
	of *link
	dataplane.Notice
}

// noticeOf makes the callback of a connection. It runs in a worker. A queue has
// few things to tell and tells each once, so the channel has room for all.
func (v *Vif) noticeOf(l *link) func(dataplane.Notice) {
	return func(n dataplane.Notice) {
		select {
		case v.notices <- notice{l, n}:
		default:
		}
	}
}

// Run is the life of the vif. It returns when the backend directory is gone, or
// when ctx ends: then the TAP and the state in xenstore stay as they are, for a
// successor to take over.
func (v *Vif) Run(ctx context.Context) {
	defer close(v.done)
	defer v.timer.Stop()
	v.adoptState()
	for !v.gone {
		var front <-chan xenstore.Event
		var mcast <-chan xenstore.Event
		if len(v.watches) == 2 {
			front, mcast = v.watches[0].C(), v.watches[1].C()
		}
		select {
		case <-ctx.Done():
			v.handOver()
			return
		case <-v.poke:
		case <-v.timer.C:
		case _, ok := <-front:
			if !ok {
				v.watches, v.watched = nil, ""
			}
		case _, ok := <-mcast:
			if !ok {
				v.watches, v.watched = nil, ""
			}
		case n := <-v.notices:
			v.guard(func() { v.handle(n) })
			continue
		case f := <-v.calls:
			v.guard(f)
			continue
		}
		if wait := v.pace(); wait > 0 {
			v.timer.Reset(wait)
			continue
		}
		v.guard(v.look)
	}
	v.unwatch()
}

// guard keeps a mistake in this code from costing more than this vif.
func (v *Vif) guard(f func()) {
	defer func() {
		if r := recover(); r != nil {
			v.log.Error("internal error", zap.Any("panic", r), zap.ByteString("stack", debug.Stack()))
			v.quarantine(fmt.Errorf("internal error: %v", r))
		}
	}()
	f()
}

// pace says how long to wait before looking again, so that a guest cannot make
// the vif look all the time.
func (v *Vif) pace() time.Duration {
	now := time.Now()
	if passed := int(now.Sub(v.lookStart) / lookInterval); passed > 0 {
		v.looks = max(v.looks-passed, 0)
		v.lookStart = now
	}
	if v.looks >= lookBurst {
		return lookInterval
	}
	v.looks++
	return 0
}

// adoptState finds out where a predecessor left the vif.
func (v *Vif) adoptState() {
	v.own = Initialising
	s, err := v.cfg.Store.Read(v.cfg.Path + "/state")
	if err != nil {
		return
	}
	switch st, _ := parseState(s); st {
	case Connected, Reconfigured:
		v.own = Connected
	case Closing, Closed:
		v.own = st
	}
	v.shown = v.own
}

// look reads both directories and does what they call for.
func (v *Vif) look() {
	if err := v.observe(); err != nil {
		if !errors.Is(err, xenstore.ErrClosed) {
			v.fail(err)
		}
		return // SetStore will poke
	}
	if !v.nodes.present {
		v.leave()
		return
	}
	v.applyRate()
	s := v.situation()
	for _, st := range plan(s) {
		if err := v.do(st); err != nil {
			if errors.Is(err, xenstore.ErrClosed) {
				return
			}
			if errors.Is(err, errDirGone) {
				v.leave()
				return
			}
			v.fail(err)
			if st == stepConnect || st == stepUnexpected || st == stepPublish {
				v.giveUp()
			}
			return
		}
	}
}

// observe reads what decides.
func (v *Vif) observe() error {
	n, err := readNodes(v.cfg.Store, v.cfg.Path)
	if err != nil {
		return err
	}
	v.nodes = n
	if !n.present {
		return nil
	}
	v.online = n.online
	v.plugged = !n.hasHotplug || n.hotplug == "connected"
	if err := v.watch(n.front); err != nil {
		return err
	}
	v.front = Unknown
	alive, err := v.cfg.Store.IsIntroduced(v.cfg.Domid)
	if err != nil {
		return err
	}
	if !alive || n.front == "" {
		return nil
	}
	s, err := v.cfg.Store.Read(n.front + "/state")
	switch {
	case errors.Is(err, xenstore.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	st, err := parseState(s)
	if err != nil {
		return fmt.Errorf("frontend %w", err)
	}
	v.front = st
	return nil
}

// readNodes reads the backend directory. A directory without a state is one
// that has been removed.
func readNodes(r reader, path string) (n nodes, err error) {
	k := keyReader{r: r, dir: path}
	s, ok := k.get("state")
	if k.err != nil || !ok {
		return n, k.err
	}
	n.present = true
	if n.state, err = parseState(s); err != nil {
		n.state = Unknown
	}
	n.front, _ = k.get("frontend")
	online, _ := k.get("online")
	n.online = online == "1"
	n.hotplug, n.hasHotplug = k.get("hotplug-status")
	n.rate, _ = k.get("rate")
	n.mac, _ = k.get("mac")
	n.bridge, _ = k.get("bridge")
	n.script, _ = k.get("script")
	n.mtu, _ = k.get("mtu")
	return n, k.err
}

// watch follows the frontend's nodes that may change while connected: single
// nodes, never a directory the guest could fill.
func (v *Vif) watch(dir string) error {
	if dir == v.watched || dir == "" {
		return nil
	}
	v.unwatch()
	for _, key := range []string{"state", "request-multicast-control"} {
		w, err := v.cfg.Store.Watch(dir + "/" + key)
		if err != nil {
			v.unwatch()
			return err
		}
		v.watches = append(v.watches, w)
	}
	v.watched = dir
	return nil
}

func (v *Vif) unwatch() {
	for _, w := range v.watches {
		_ = w.Close()
	}
	v.watches, v.watched = nil, ""
}

func (v *Vif) situation() situation {
	s := situation{
		own: v.own, front: v.front,
		online:    v.online,
		connected: v.link != nil,
		plugged:   v.plugged,
	}
	// The toolstack takes online away and writes Closing into our node in one
	// transaction.
	switch {
	case v.online:
		v.detachAt = time.Time{}
	case v.nodes.state == Closing && v.detachAt.IsZero():
		v.detachAt = time.Now().Add(grace)
	}
	if !v.detachAt.IsZero() {
		s.detach = true
		s.forced = !time.Now().Before(v.detachAt)
	}
	if v.front != Connected {
		v.refused = nil
		return s
	}
	if v.own == Connected && v.link == nil && v.reason != "" {
		return s // quarantined until the frontend comes again
	}
	f, err := readFrontend(v.cfg.Store, v.nodes.front, v.cfg.MaxQueues)
	if err == nil {
		s.refused = v.refused.same(f)
	} else {
		s.refused = v.refused == nil && v.own == Closed && v.trouble == errText(err)
	}
	if v.own == Connected || v.link != nil {
		s.stale = v.link == nil || err == nil && !sameRings(v.link.front, f)
	}
	return s
}

// sameRings is whether two connections have the same rings and channels; what
// else the frontend writes counts only when it connects.
func sameRings(a, b *Frontend) bool {
	if len(a.Queues) != len(b.Queues) {
		return false
	}
	for i := range a.Queues {
		if a.Queues[i] != b.Queues[i] {
			return false
		}
	}
	return true
}

// do takes one step.
func (v *Vif) do(s step) error {
	v.log.Debug("step", zap.Stringer("step", s), zap.Stringer("own", v.own), zap.Stringer("frontend", v.front))
	switch s {
	case stepPublish:
		return v.publish()
	case stepInitWait:
		return v.show(InitWait)
	case stepConnect:
		return v.open()
	case stepPlug:
		return v.plug()
	case stepConnected:
		if err := v.show(Connected); err != nil {
			return err
		}
		v.log.Info("connected", zap.Int("queues", len(v.link.front.Queues)), zap.Strings("features", v.link.front.Features.Names()))
		v.clearTrouble()
	case stepDisconnect:
		v.close()
	case stepClosing:
		return v.show(Closing)
	case stepClosed:
		v.reason = ""
		return v.show(Closed)
	case stepReconfigured:
		// Our own state stays Connected: the frontend goes on with the same
		// rings and does not connect again.
		if v.shown == Reconfigured {
			return nil
		}
		if err := v.write(Reconfigured); err != nil {
			return err
		}
		v.shown = Reconfigured
	case stepUnregister:
		return v.unregister()
	case stepGrace:
		v.timer.Reset(max(time.Until(v.detachAt), 0) + time.Millisecond)
	case stepUnexpected:
		return fmt.Errorf("frontend is in state %v, which no frontend goes to", v.front)
	}
	return nil
}

// show moves the vif to a state and tells the frontend.
func (v *Vif) show(s State) error {
	if err := v.write(s); err != nil {
		return err
	}
	v.own, v.shown = s, s
	return nil
}

// errDirGone: the toolstack removed the backend directory.
var errDirGone = errors.New("backend directory is gone")

// write writes the state node, unless it is not there any more: a write would
// bring a directory back that the toolstack has removed.
func (v *Vif) write(s State) error {
	return v.cfg.Store.Transaction(func(tx *xenstore.Tx) error {
		old, err := tx.Read(v.cfg.Path + "/state")
		if errors.Is(err, xenstore.ErrNotExist) {
			return errDirGone
		}
		if err != nil {
			return err
		}
		if was, err := parseState(old); err == nil && was == s {
			return nil
		}
		return tx.Write(v.cfg.Path+"/state", fmt.Sprint(int(s)))
	})
}

// publish makes the TAP, which has to be there before the state tells the
// toolstack to run its script on it, and writes what the backend can do.
func (v *Vif) publish() error {
	if _, err := parseMAC(v.nodes.mac); err != nil && v.nodes.mac != "" {
		return err
	}
	if err := v.makeTap(); err != nil {
		return err
	}
	return v.cfg.Store.Transaction(func(tx *xenstore.Tx) error {
		if _, err := tx.Read(v.cfg.Path + "/state"); err != nil {
			if errors.Is(err, xenstore.ErrNotExist) {
				return errDirGone
			}
			return err
		}
		for _, p := range backFeatures(v.cfg.MaxQueues, v.cfg.Offload) {
			if err := tx.Write(v.cfg.Path+"/"+p.key, p.value); err != nil {
				return err
			}
		}
		return nil
	})
}

// txQueueLen is how many packets the TAP keeps per queue for a guest that is
// slow to take them.
const txQueueLen = 512

// makeTap makes the TAP, or takes over the one a predecessor left.
func (v *Vif) makeTap() error {
	if v.tap != nil {
		if _, err := v.tap.Name(); err == nil {
			return nil
		}
		// Somebody deleted it. What depended on it, such as its place in a
		// bridge, the hotplug script has to do again.
		_ = v.tap.Close()
		v.tap = nil
	}
	d, err := tap.Create(tap.Config{
		Name:      v.Name(),
		Queues:    1,
		VnetHdr:   v.cfg.Offload,
		Persist:   true,
		NoCarrier: v.own != Connected,
		Closers:   v.cfg.Closers,
	})
	if err != nil {
		return err
	}
	if d.Adopted() {
		v.log.Info("took over the TAP that was there")
	}
	v.tap = d
	if err := d.SetTxQueueLen(txQueueLen); err != nil {
		return err
	}
	if v.nodes.mtu != "" && !d.Adopted() {
		mtu, err := parseMTU(v.nodes.mtu)
		if err != nil {
			return err
		}
		return d.SetMTU(mtu)
	}
	return nil
}

// open connects to the frontend's rings.
func (v *Vif) open() error {
	f, err := readFrontend(v.cfg.Store, v.nodes.front, v.cfg.MaxQueues)
	if err != nil {
		return err
	}
	if err := v.makeTap(); err != nil {
		return err
	}
	l, err := v.connect(f)
	if err != nil {
		v.refused = f
		return err
	}
	v.link = l
	v.connected = time.Now()
	v.reason = ""
	return nil
}

// plug lets packets pass.
func (v *Vif) plug() error { return v.tap.SetCarrier(true) }

// close ends the connection: no packet passes any more, no page of the guest is
// mapped, and what only this connection knew is forgotten.
func (v *Vif) close() {
	if v.link == nil {
		return
	}
	if err := v.tap.SetCarrier(false); err != nil && !errors.Is(err, tap.ErrGone) {
		v.log.Warn("carrier", errField(err))
	}
	v.link.release(v)
	v.link.forget()
	v.link = nil
	v.mcast.Clear()
	clear(v.stalled)
	if err := v.tap.SetQueues(1); err != nil && !errors.Is(err, tap.ErrGone) {
		v.log.Warn("tap queues", errField(err))
	}
	v.log.Info("disconnected")
}

// unregister removes the device: the toolstack, or the end of the guest, has
// taken it away. The directory is the toolstack's to remove.
func (v *Vif) unregister() error {
	v.close()
	if v.tap == nil {
		return nil
	}
	err := v.tap.Close()
	v.tap = nil
	if err != nil && !errors.Is(err, tap.ErrGone) {
		return err
	}
	v.log.Info("device removed")
	return nil
}

// leave ends the vif: its directory is gone.
func (v *Vif) leave() {
	if err := v.unregister(); err != nil {
		v.log.Warn("remove device", errField(err))
	}
	v.gone = true
}

// handOver stops serving without telling anybody: the TAP stays, the journals
// stay, the frontend's rings stay as they are.
func (v *Vif) handOver() {
	if v.link != nil {
		v.link.release(v)
		v.link = nil
	}
	v.unwatch()
	if v.tap == nil {
		return
	}
	if err := v.tap.CloseKeep(); err != nil {
		v.log.Warn("keep tap", errField(err))
	}
	v.tap = nil
}

// giveUp closes the device after an error that left it without a connection.
// The frontend may come again.
func (v *Vif) giveUp() {
	v.close()
	for _, s := range []State{Closing, Closed} {
		if v.own == s {
			continue
		}
		if err := v.show(s); err != nil {
			if errors.Is(err, errDirGone) {
				v.leave()
			}
			return
		}
	}
}

// handle acts on what the data plane noticed.
func (v *Vif) handle(n notice) {
	if v.link == nil || v.link != n.of {
		return // of a connection that is over
	}
	switch n.Kind {
	case dataplane.Breach:
		v.quarantine(fmt.Errorf("queue %d: %w", n.Queue, n.Err))
	case dataplane.Stalled:
		v.stalled[n.Queue] = true
		v.log.Warn("guest gives no rx slots", zap.Int("queue", n.Queue))
		if len(v.stalled) == len(v.link.front.Queues) {
			_ = v.tap.SetCarrier(false)
		}
	case dataplane.Resumed:
		delete(v.stalled, n.Queue)
		v.log.Info("guest gives rx slots again", zap.Int("queue", n.Queue))
		if v.own == Connected {
			_ = v.tap.SetCarrier(true)
		}
	case dataplane.TapGone:
		v.fail(errors.New("somebody deleted the TAP; detach and attach the vif"))
		v.giveUp()
	}
}

// quarantine takes a vif whose frontend broke the protocol out of service. Its
// state stays, so that toolstack and guest can still close it properly; it comes
// back when the frontend connects again.
func (v *Vif) quarantine(err error) {
	v.fail(fmt.Errorf("quarantined: %w", err))
	v.reason = err.Error()
	v.close()
}

// Reset lets a quarantined vif try again with the rings it has.
func (v *Vif) Reset() error {
	err := errors.New("the vif is gone")
	v.Do(func() {
		if err = nil; v.reason == "" {
			return
		}
		v.reason = ""
		v.Poke()
	})
	return err
}

// applyRate follows the key "rate". One that makes no sense changes nothing.
func (v *Vif) applyRate() {
	r, err := parseRate(v.nodes.rate)
	if err != nil {
		if v.badRate != v.nodes.rate {
			v.badRate = v.nodes.rate
			v.fail(err)
		}
		return
	}
	v.badRate = ""
	if r != v.rate {
		v.rate = r
		v.limiter.Set(r.Bytes, r.Interval)
		v.log.Info("rate", zap.Stringer("limit", r))
	}
	if v.link != nil {
		v.followMcast()
	}
}

// followMcast follows request-multicast-control, which a frontend may change
// while it is connected (feature-dynamic-multicast-control).
func (v *Vif) followMcast() {
	s, err := v.cfg.Store.Read(v.nodes.front + "/request-multicast-control")
	if errors.Is(err, xenstore.ErrNotExist) {
		s, err = "0", nil
	}
	if err != nil {
		return
	}
	on, err := parseBool("request-multicast-control", s)
	if err != nil {
		v.fail(err)
		return
	}
	v.mcast.SetFilter(on)
	v.link.front.Features.Mcast = on
}

// fail makes an error known: in the log, and where the toolstack's people look.
func (v *Vif) fail(err error) {
	text := errText(err)
	if text == v.trouble {
		return
	}
	v.trouble = text
	v.log.Error("vif", errField(err))
	if v.cfg.ErrorPath == "" {
		return
	}
	if werr := v.cfg.Store.Write(v.cfg.ErrorPath, text); werr != nil && !errors.Is(werr, xenstore.ErrClosed) {
		v.log.Warn("error node", errField(werr))
	}
}

// clearTrouble forgets the last error. Its node stays, as xen-netback's does.
func (v *Vif) clearTrouble() { v.trouble = "" }

// errText is an error as Linux back ends write it: an errno and a text.
func errText(err error) string {
	errno := unix.EINVAL // what was found makes no sense
	_ = errors.As(err, &errno)
	text := fmt.Sprintf("%d %v", int(errno), err)
	const most = 512
	if len(text) > most {
		text = text[:most]
	}
	return text
}

func errField(err error) zap.Field { return zap.NamedError("reason", err) }

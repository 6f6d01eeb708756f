// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xentest"
)

// A child that a test starts has these files besides the standard ones.
const (
	fdGuest   = 3 + iota // the guest's memory
	fdJournal            // the journal
	fdTap                // the TAP queue
	fdKick               // eventfd: event from the guest
	fdNotify             // eventfd: event to the guest
)

const (
	helpStepped = "stepped" // one turn, between two SIGSTOPs
	helpKilled  = "killed"  // a daemon, until killed
	helpMoved   = "moved"   // as stepped, but the queue moves to another worker, which has the turn
	helpMoving  = "moving"  // as killed, but the queue moves between workers all the time

	// envSyscalls makes a helper use system calls instead of io_uring.
	envSyscalls = "DATAPLANE_TEST_SYSCALLS"
)

// childTB has the methods of testing.TB that the harness needs in a child.
type childTB struct{ testing.TB }

func (childTB) Helper()        {}
func (childTB) Cleanup(func()) {} // the child is killed
func (childTB) Fatal(args ...any) {
	fmt.Fprintln(os.Stderr, args...)
	os.Exit(1)
}
func (childTB) Error(args ...any) { childTB{}.Fatal(args...) }
func (childTB) Errorf(format string, args ...any) {
	childTB{}.Fatal(fmt.Sprintf(format, args...))
}

// startChild starts this binary as a helper with the given files. With trace the child is
// stopped at once, and the calling thread is its tracer.
func startChild(t *testing.T, help string, m mode, trace bool, fds ...int) (pid int) {
	t.Helper()
	files := []uintptr{0, 1, 2}
	for _, fd := range fds {
		files = append(files, uintptr(fd))
	}
	env := append(os.Environ(), envHelper+"="+help)
	if !m.uring {
		env = append(env, envSyscalls+"=1")
	}
	if trace {
		env = append(env, "GODEBUG=asyncpreemptoff=1", "GOGC=off")
	}
	pid, err := syscall.ForkExec("/proc/self/exe", os.Args[:1], &syscall.ProcAttr{
		Env:   env,
		Files: files,
		Sys:   &syscall.SysProcAttr{Ptrace: trace, Pdeathsig: syscall.SIGKILL},
	})
	if trace && errors.Is(err, unix.EPERM) {
		t.Skip("this process may not trace its children")
	}
	must(t, err)
	return pid
}

// crash is the memory that a crash leaves: both ring pages, the pages that a packet goes
// into, and the journal.
type crash struct {
	rings   [2 * netif.PageSize]byte
	pages   [2 * netif.PageSize]byte
	journal [JournalSize]byte
	frames  int // that had reached the host
}

// TestKilledAtAnyInstruction single-steps a child through one turn, both ways, and starts
// a successor on the memory after each instruction. The successor must read only requests
// from the ring and answer each of them once, and every answered packet must have reached
// the host.
func TestKilledAtAnyInstruction(t *testing.T) {
	if raced {
		t.Skip("most of the instructions would be the race detector's")
	}
	inModes(t, allModes[:2], func(t *testing.T, m mode) { testKilledAtAnyInstruction(t, m, helpStepped) })
}

// TestKilledWhileAQueueMoves does the same at any system call, while the queue moves to another
// worker and has a turn there.
func TestKilledWhileAQueueMoves(t *testing.T) {
	if raced {
		t.Skip("the race detector's system calls are not those of a daemon")
	}
	inModes(t, allModes[:2], func(t *testing.T, m mode) { testKilledAtAnyInstruction(t, m, helpMoved) })
}

func testKilledAtAnyInstruction(t *testing.T, m mode, help string) {
	b := newBed(t, m, setup{cfg: full, ownTAP: true})
	b.disconnect()

	const start netif.Index = 1<<32 - 3 // the batches wrap
	f := newFront(t, testDomid)
	f.grants.worker = func() *worker { return b.w }
	f.startAt(start)
	jfd, err := unix.MemfdCreate("journal", 0)
	must(t, err)
	defer unix.Close(jfd)
	j, err := sizedJournal(jfd)
	must(t, err)
	defer unix.Munmap(j.mem)

	// Five packets, the second over two slots with an extra, the third bad.
	answers := f.put(packet{frame: udp(20, 1)})
	answers = append(answers, f.put(packet{frame: udp(60, 2), slots: cut(102, 50), extras: []netif.ExtraInfo{netif.NewHash(netif.HashInfo{})}})...)
	bad := f.requests(packet{frame: udp(20, 3)})
	bad[0].Gref = 1
	answers = append(answers, errored(f.ring(bad, 62, 0))...)
	answers = append(answers, f.put(packet{frame: udp(20, 4)})...)
	answers = append(answers, f.put(packet{frame: udp(2100, 5), slots: parts(2142, 2)})...)
	f.tx.Push()
	toHost := [][]byte{udp(20, 1), udp(60, 2), udp(20, 4), udp(2100, 5)}
	f.post(20)
	large := partial(tcp(4, 5000))
	b.host.send(hostFrame{vnetOf(large, 1448), large.Bytes()})
	toGuest := [][]byte{large.Bytes()}
	requests := bytes.Clone(f.mem[:2*netif.PageSize])
	tx, rx := *f.tx, *f.rx

	states, frames := stepThrough(t, m, help, b, f, jfd, j)
	if frames != len(toHost) {
		t.Errorf("%d frames at the host in the end, want %d", frames, len(toHost))
	}

	var torn [2]int
	for i := range states {
		s := &states[i]
		*f.tx, *f.rx = tx, rx
		copy(f.mem, s.rings[:])
		copy(f.mem[rxPages:], s.pages[:netif.PageSize])
		copy(f.mem[rxPages+2*netif.PageSize:], s.pages[netif.PageSize:]) // the slot between them holds the extra
		jj := NewJournal()
		copy(jj.mem, s.journal[:])
		for k := range torn {
			now, then := s.rings[k*netif.PageSize:][:netif.PageSize], requests[k*netif.PageSize:][:netif.PageSize]
			if !bytes.Equal(now[64:], then[64:]) && bytes.Equal(now[8:12], then[8:12]) {
				torn[k]++
			}
		}
		what := fmt.Sprintf("state %d of %d, journal %v", i, len(states), jj)

		cfg := full
		cfg.Domid, cfg.VnetHdr = testDomid, true
		must(t, f.events.Close())
		f.events = newEvents(t, f.guest)
		q := f.config()
		q.Tap, q.Journal = b.tap.Queue(0), jj
		b.conn, err = newConn(cfg, []QueueConfig{q})
		must(t, err)
		b.queue().worker.Store(b.w)
		must(t, b.w.attach(b.queue()))
		// The child may not have sent the event of a published response.
		if f.events.notifies(txPort) == 0 || f.events.notifies(rxPort) == 0 {
			t.Fatalf("%s: the guest is not woken", what)
		}
		unanswered := uint32(f.tx.ReqProd()) - uint32(b.queue().tx.ReqCons())
		b.settle()

		if diff := cmp.Diff(answers, f.answers()); diff != "" {
			t.Fatalf("%s: answers (-want +got):\n%s", what, diff)
		}
		// No answered packet is missing; the successor sends the others now.
		again := b.host.frames()
		switch {
		case unanswered == 0 && s.frames == len(toHost) && len(again) == 0:
		case unanswered == uint32(len(answers)) && cmp.Equal(again, toHost):
		default:
			t.Fatalf("%s: %d requests left, %d frames before, %d again", what, unanswered, s.frames, len(again))
		}
		got := framesOf(f.received())
		if len(got) != 0 && !cmp.Equal(got, toGuest) {
			t.Fatalf("%s: %d packets to the guest", what, len(got))
		}
		// The ring can be used from there on.
		b.host.sendPlain(udp(30, 9))
		want := f.put(packet{frame: udp(31, 10)})
		f.push()
		b.settle()
		if diff := cmp.Diff(want, f.answers()); diff != "" {
			t.Fatalf("%s: later answers (-want +got):\n%s", what, diff)
		}
		if diff := cmp.Diff([][]byte{udp(30, 9)}, framesOf(f.received()), asBytes); diff != "" {
			t.Fatalf("%s: later packets to the guest (-want +got):\n%s", what, diff)
		}
		if n := b.host.drain(); n != 1 {
			t.Fatalf("%s: %d later frames to the host", what, n)
		}
		b.disconnect()
	}
	t.Logf("%d states, in %d (tx) and %d (rx) of which responses had replaced requests and were not published", len(states), torn[0], torn[1])
	if help == helpStepped && (torn[0] < len(answers)-1 || torn[1] < 3) {
		t.Error("the test saw no batch half written: it is not worth anything")
	}
}

// stepThrough runs one turn of a child, the helper help, instruction by instruction, or, with a
// move, system call by system call, and returns every state of its memory.
func stepThrough(t *testing.T, m mode, help string, b *bed, f *front, jfd int, j *Journal) (states []crash, frames int) {
	t.Helper()
	efd := f.events.FD()
	pid := startChild(t, help, m, true, f.guest.File(), jfd, b.tap.Queue(0).FD(), efd, efd)
	defer func() {
		_ = unix.Kill(pid, unix.SIGKILL)
		var ws unix.WaitStatus
		for {
			if _, err := unix.Wait4(pid, &ws, 0, nil); err != nil || ws.Exited() || ws.Signaled() {
				return
			}
		}
	}()
	wait := func() unix.Signal {
		t.Helper()
		var ws unix.WaitStatus
		for {
			_, err := unix.Wait4(pid, &ws, 0, nil)
			if err == unix.EINTR {
				continue
			}
			must(t, err)
			if !ws.Stopped() {
				t.Fatalf("the child ended: %#x", ws)
			}
			return ws.StopSignal()
		}
	}
	snapshot := func() {
		var s crash
		copy(s.rings[:], f.mem)
		copy(s.pages[:netif.PageSize], f.mem[rxPages:])
		copy(s.pages[netif.PageSize:], f.mem[rxPages+2*netif.PageSize:])
		copy(s.journal[:], j.mem)
		s.frames = frames
		if n := len(states); n == 0 || s != states[n-1] {
			states = append(states, s)
		}
	}

	wait() // for its exec
	for sig := 0; ; {
		must(t, unix.PtraceCont(pid, sig))
		s := wait()
		if s == unix.SIGSTOP {
			break
		}
		sig = int(s)
	}
	snapshot()
	steps := 0
	for ; ; steps++ {
		var err error
		if help == helpMoved {
			err = unix.PtraceSyscall(pid, 0)
		} else {
			err = unix.PtraceSingleStep(pid)
		}
		if err != nil {
			t.Skipf("single-stepping: %v", err)
		}
		if wait() == unix.SIGSTOP {
			break
		}
		frames += b.host.drain()
		snapshot()
	}
	t.Logf("%d steps", steps)
	return states, frames
}

// steppedChild serves one turn of a queue that another process has prepared, or moves it to
// another worker, which does.
func steppedChild() error {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		return errors.New("not on the main thread, the only one that is traced")
	}
	p := &Pool{opts: Options{OwnPager: childPager()}}
	for i := range 2 {
		w, err := newWorker(p, i)
		if err != nil {
			return err
		}
		w.now = w.clock()
		if os.Getenv(envSyscalls) == "" {
			if err := w.openRing(); err != nil {
				return err
			}
		}
		p.workers = append(p.workers, w)
	}
	var c *Conn
	w := p.workers[0]
	cfg, q, err := adopted(func() *worker { return c.queues[0].worker.Load() }, noEvents{fdKick})
	if err != nil {
		return err
	}
	if c, err = newConn(cfg, []QueueConfig{q}); err != nil {
		return err
	}
	c.queues[0].worker.Store(w)
	if err := w.attach(c.queues[0]); err != nil {
		return err
	}
	stop := func() error { return unix.Tgkill(unix.Getpid(), unix.Gettid(), unix.SIGSTOP) }
	if err := stop(); err != nil {
		return err
	}
	if os.Getenv(envHelper) == helpMoved {
		w.moveAway(c.queues[0], 1, "for a test")
		w = p.workers[1]
		w.readMail()
	}
	again := w.turn(c.queues[0])
	if err := stop(); err != nil {
		return err
	}
	return fmt.Errorf("the child was not killed, again %v", again)
}

// adopted makes a queue from the files that a child was given.
func adopted(w func() *worker, ev Events) (Config, QueueConfig, error) {
	cfg := full
	cfg.Domid, cfg.VnetHdr = testDomid, true
	g, err := xentest.On(testDomid, fdGuest)
	if err != nil {
		return cfg, QueueConfig{}, err
	}
	f := frontOf(childTB{}, g)
	f.grants.worker = w
	q := f.config()
	q.Events = ev
	d, err := tap.Adopt(tap.Config{VnetHdr: true, Offload: tap.Offload{Csum: true, TSO4: true, TSO6: true}}, []int{fdTap})
	if err != nil {
		return cfg, q, err
	}
	q.Tap = d.Queue(0)
	q.Journal, err = sizedJournal(fdJournal)
	return cfg, q, err
}

// childPager returns the device for own pages of a helper, which has some if it uses
// io_uring. They go with the process.
func childPager() OwnPager {
	if os.Getenv(envSyscalls) != "" {
		return nil
	}
	return ownPager{xentest.NewOwn(MaxOwnPages)}
}

// killedChild is a daemon with one queue, which may move all the time.
func killedChild() error {
	p, err := NewPool(Options{Workers: 2, NoUring: os.Getenv(envSyscalls) != "", OwnPager: childPager()})
	if err != nil {
		return err
	}
	var c *Conn
	cfg, q, err := adopted(func() *worker { return c.queues[0].worker.Load() }, eventfds{kick: fdKick, notify: fdNotify})
	if err != nil {
		return err
	}
	cfg.Notice = func(n Notice) { childTB{}.Fatal(n) }
	if c, err = newConn(cfg, []QueueConfig{q}); err != nil {
		return err
	}
	if err := p.serve(c); err != nil {
		return err
	}
	for to := 1; os.Getenv(envHelper) == helpMoving; to = 1 - to {
		moved := c.queues[0]
		if err := moved.call(func() error { return nil }); err != nil {
			return err
		}
		moved.worker.Load().post(moved, func(w *worker) { w.moveAway(moved, to, "for a test") })
	}
	select {}
}

// eventfds are a queue's two event channels, to another process.
type eventfds struct{ kick, notify int }

func (e eventfds) FD() int { return e.kick }

func (e eventfds) Pending(ports []evtchn.Port) (int, error) {
	var b [8]byte
	_, _ = unix.Read(e.kick, b[:])
	return copy(ports, []evtchn.Port{txPort, rxPort}), nil
}

func (eventfds) Unmask([]evtchn.Port) error { return nil }
func (eventfds) Reset() error               { return nil }

func (e eventfds) Notify(evtchn.Port) error {
	one := [8]byte{1}
	_, err := unix.Write(e.notify, one[:])
	return err
}

// TestKilledUnderTraffic kills a daemon repeatedly while a guest and its host exchange
// packets. Each time a successor takes over.
func TestKilledUnderTraffic(t *testing.T) {
	inModes(t, allModes[:2], func(t *testing.T, m mode) { testKilledUnderTraffic(t, m, helpKilled) })
}

// TestKilledUnderMoves does the same with a daemon whose queue moves between workers all the time.
func TestKilledUnderMoves(t *testing.T) {
	inModes(t, allModes[:1], func(t *testing.T, m mode) { testKilledUnderTraffic(t, m, helpMoving) })
}

func testKilledUnderTraffic(t *testing.T, m mode, help string) {
	kills := 25
	if help == helpMoving {
		kills = 10
	}
	if testing.Short() || raced {
		kills = 5
	}
	b := newBed(t, m, setup{cfg: full, ownTAP: true})
	b.disconnect()
	f := newFront(t, testDomid)
	var fds [3]int
	var err error
	fds[0], err = unix.MemfdCreate("journal", 0)
	must(t, err)
	must(t, unix.Ftruncate(fds[0], JournalSize))
	for i := range 2 {
		fds[1+i], err = unix.Eventfd(0, unix.EFD_NONBLOCK)
		must(t, err)
	}
	jfd, kick, notify := fds[0], fds[1], fds[2]
	t.Cleanup(func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	})

	// Each packet carries its number at the start of its payload.
	numbered := func(n uint32) []byte {
		frame := udp(20+int(n%1400), 5)
		binary.BigEndian.PutUint32(frame[14+20+8:], n)
		frame[40], frame[41] = 0, 0 // no checksum
		return frame
	}
	number := func(frame []byte) uint32 {
		n := binary.BigEndian.Uint32(frame[14+20+8:])
		if !bytes.Equal(frame, numbered(n)) {
			t.Fatalf("packet %d of %d bytes is corrupted", n, len(frame))
		}
		return n
	}
	var sent, answered, hostNext, repeated uint32 // from the guest
	var sentDown, downNext, lost uint32           // to the guest
	var pending []answer

	// round sends and receives for guest and host, concurrently with the daemon.
	round := func() {
		for f.tx.Free() >= 4 {
			frame := numbered(sent)
			sent++
			p := packet{frame: frame}
			if sent%5 == 0 {
				p.slots = cut(len(frame), 20, len(frame)-30)
				p.extras = []netif.ExtraInfo{netif.NewHash(netif.HashInfo{})}
			}
			pending = append(pending, f.put(p)...)
		}
		wants := f.tx.Push()
		if n := int(f.rx.Free()); n > 64 {
			for range n {
				i := f.nextRx % frontPages
				f.nextRx++
				q := netif.RxRequest{ID: uint16(7*f.nextRx + 3), Gref: firstRef + frontPages + xen.Gref(i)}
				f.posted[f.rx.ReqProd()%netif.RxRingSize] = q
				f.rx.Put(q)
			}
			wants = f.rx.Push() || wants
		}
		if wants {
			one := [8]byte{1}
			_, _ = unix.Write(kick, one[:])
		}
		for range 20 {
			b.host.sendPlain(numbered(sentDown))
			sentDown++
		}
		for _, d := range f.received() {
			n := number(d.Frame)
			if n < downNext {
				t.Fatalf("the guest got packet %d again, after %d", n, downNext-1)
			}
			lost += n - downNext
			downNext = n + 1
		}
		got := f.answers()
		if len(got) > len(pending) || !slices.Equal(got, pending[:len(got)]) {
			t.Fatalf("answers %v, want %v", got, pending[:min(len(got), len(pending))])
		}
		pending = pending[len(got):]
		for _, a := range got {
			if a.Status == netif.StatusOkay {
				answered++
			}
		}
		for _, frame := range b.host.frames() {
			n := number(frame)
			switch {
			case n > hostNext:
				t.Fatalf("the host missed packets %d to %d", hostNext, n-1)
			case n < hostNext:
				repeated++
			default:
				hostNext++
			}
		}
	}
	for range kills {
		pid := startChild(t, help, m, false, f.guest.File(), jfd, b.tap.Queue(0).FD(), kick, notify)
		before := answered
		until := before + uint32(rand.IntN(5000))
		for answered == before || answered < until {
			round()
			fds := []unix.PollFd{{Fd: int32(notify), Events: unix.POLLIN}, {Fd: int32(b.host.fd), Events: unix.POLLIN}}
			_, _ = unix.Poll(fds, 1)
			var n [8]byte
			_, _ = unix.Read(notify, n[:])
			var ws unix.WaitStatus
			if p, _ := unix.Wait4(pid, &ws, unix.WNOHANG, nil); p == pid {
				t.Fatalf("the daemon ended by itself: %#x", ws)
			}
		}
		// The kill comes while the daemon is busy.
		round()
		for end := time.Now().Add(time.Duration(rand.IntN(600)) * time.Microsecond); time.Now().Before(end); {
		}
		must(t, unix.Kill(pid, unix.SIGKILL))
		var ws unix.WaitStatus
		for {
			if _, err := unix.Wait4(pid, &ws, 0, nil); err != unix.EINTR {
				break
			}
		}
		round()
	}
	t.Logf("%d kills; guest to host %d packets, %d of them twice, none lost; host to guest %d packets, %d lost",
		kills, hostNext, repeated, downNext, lost)
	if limit := uint32(kills * batchPackets); repeated > limit {
		t.Errorf("%d packets repeated, more than a batch per kill (%d)", repeated, limit)
	}
}

// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// onThread runs f on a thread of its own, which ends afterwards.
func onThread(f func()) {
	done := make(chan struct{})
	go func() {
		runtime.LockOSThread() // for good
		defer close(done)
		f()
	}()
	<-done
}

func TestFindNice(t *testing.T) {
	normal, eager := class{unix.SCHED_NORMAL, 0}, class{unix.SCHED_NORMAL, raisedNice}
	for _, tt := range []struct {
		name    string
		normal  class
		lowest  int32 // that RLIMIT_NICE allows
		cap     bool  // CAP_SYS_NICE
		refuses error // of all calls

		want  int32
		tried []class
		fails bool
	}{
		{"allowed", normal, raisedNice, false, nil, raisedNice, []class{eager, normal}, false},
		{"allowed by a capability", normal, 0, true, nil, raisedNice, []class{eager, normal}, false},
		{"allowed in part", normal, -5, false, nil, -5, []class{eager, {unix.SCHED_NORMAL, -5}, normal}, true},
		{"not allowed", normal, 0, false, nil, 0, []class{eager}, true},
		{"refused by a filter", normal, raisedNice, false, unix.EPERM, 0, []class{eager}, true},
		{"no such call", normal, raisedNice, false, unix.ENOSYS, 0, []class{eager}, true},
		{"the daemon has a lower one", class{unix.SCHED_NORMAL, -15}, -15, false, nil, -15, nil, false},
		{"the daemon has a higher one", class{unix.SCHED_NORMAL, 5}, raisedNice, false, nil, raisedNice, []class{eager, {unix.SCHED_NORMAL, 5}}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var tried []class
			got, err := findNice(tt.normal, tt.lowest, func(c class) error {
				tried = append(tried, c)
				if tt.refuses == nil && !tt.cap && c.nice < min(tt.lowest, tt.normal.nice) {
					return unix.EPERM
				}
				return tt.refuses
			})
			if got != tt.want || (err != nil) != tt.fails {
				t.Errorf("%v, %v; want %v, an error: %t", got, err, tt.want, tt.fails)
			}
			if diff := cmp.Diff(tt.tried, tried, cmp.AllowUnexported(class{})); diff != "" {
				t.Errorf("calls (-want +got):\n%s", diff)
			}
		})
	}
}

// TestClassOfThread changes the class of a real thread, which no other thread shares.
func TestClassOfThread(t *testing.T) {
	var warned []error
	p := &Pool{opts: Options{Warn: func(err error) { warned = append(warned, err) }}}
	w := &worker{pool: p}
	onThread(func() {
		normal, err := threadClass()
		if err != nil {
			t.Error(err)
			return
		}
		p.openClass(w)
		if w.urge.set == nil {
			return
		}
		defer w.delay.close()
		for _, to := range []level{levelBatch, levelNormal, levelEager, levelBatch, levelEager} {
			w.urge.change(to)
			want := map[level]class{levelNormal: normal, levelEager: {unix.SCHED_NORMAL, raisedNice}, levelBatch: {unix.SCHED_BATCH, raisedNice}}[to]
			if got, err := threadClass(); err != nil || got != want {
				t.Errorf("%v, %v; want %v", got, err, want)
			}
			var other class
			onThread(func() { other, err = threadClass() })
			if err != nil || other != normal {
				t.Errorf("another thread: %v, %v; want %v", other, err, normal)
			}
		}
	})
	switch {
	case w.urge.set == nil && len(warned) == 1:
		t.Skip(warned[0])
	case w.urge.set == nil || len(warned) > 0:
		t.Errorf("warnings %v", warned)
	}
	if got, want := p.priority, "nice -10 while rates are high"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestClassWithoutRights: a worker without the right goes on as it is, which is said once.
func TestClassWithoutRights(t *testing.T) {
	if lowestNice() < 0 {
		t.Skipf("RLIMIT_NICE allows every process nice %d", lowestNice())
	}
	var warned []error
	p := &Pool{opts: Options{Warn: func(err error) { warned = append(warned, err) }}}
	for i := range 3 {
		w := &worker{pool: p, index: i}
		onThread(func() {
			if err := dropSysNice(); err != nil {
				t.Error(err)
				return
			}
			p.openClass(w)
		})
		if w.urge.set != nil {
			t.Error("the class is changed")
		}
		p.workers = append(p.workers, w)
	}
	if len(warned) != 1 || !errors.Is(warned[0], unix.EPERM) {
		t.Errorf("warnings: %v", warned)
	}
	state, denied := p.Priority()
	if !strings.Contains(state, "operation not permitted") || !errors.Is(denied, unix.EPERM) || p.Classes() != nil {
		t.Errorf("%q, %v, %v", state, denied, p.Classes())
	}
}

// dropSysNice takes CAP_SYS_NICE from the calling thread.
func dropSysNice() error {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	if err := unix.Capget(&h, &d[0]); err != nil {
		return err
	}
	d[0].Effective &^= 1 << unix.CAP_SYS_NICE
	return unix.Capset(&h, &d[0])
}

// TestClassLost: rights that end while the daemon runs are reported, and the worker stays as
// it is.
func TestClassLost(t *testing.T) {
	if lowestNice() < 0 {
		t.Skipf("RLIMIT_NICE allows every process nice %d", lowestNice())
	}
	var warned []error
	p := &Pool{opts: Options{Warn: func(err error) { warned = append(warned, err) }}}
	w := &worker{pool: p}
	able := false
	onThread(func() {
		p.openClass(w)
		if able = w.urge.set != nil; !able {
			return
		}
		if err := dropSysNice(); err != nil {
			t.Error(err)
			return
		}
		w.urge.change(levelEager)
		w.delay.close()
	})
	if !able {
		t.Skip(p.priority)
	}
	if len(warned) != 1 || w.urge.set != nil || w.urge.now() != levelNormal {
		t.Errorf("warnings %v, still tries: %t, level %d", warned, w.urge.set != nil, w.urge.now())
	}
}

func TestClassOfPool(t *testing.T) {
	for _, tt := range []struct {
		name     string
		off      bool
		priority string
	}{
		{"auto", false, "nice -10 while rates are high"},
		{"off", true, "switched off"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := NewPool(Options{Workers: 2, NoUring: true, NoPriority: tt.off})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			var want []string
			if !tt.off {
				if p.Classes() == nil {
					t.Skip(p.priority)
				}
				p.workers[1].urge.level.Store(uint32(levelBatch))
				normal, err := threadClass() // of the process
				must(t, err)
				want = []string{normal.String(), "batch, nice -10"}
			}
			if got, denied := p.Priority(); got != tt.priority || denied != nil {
				t.Errorf("%q, %v, want %q", got, denied, tt.priority)
			}
			if diff := cmp.Diff(want, p.Classes()); diff != "" {
				t.Errorf("classes (-want +got):\n%s", diff)
			}
		})
	}
}

// TestClassFollowsRates: the thread of a pool's worker changes its class with the worker's
// rates, and no other worker's does.
func TestClassFollowsRates(t *testing.T) {
	p, err := NewPool(Options{Workers: 2, NoUring: true})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if p.Classes() == nil {
		t.Skip(p.priority)
	}
	w := p.workers[0]
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	expect := func(want class, while func()) {
		t.Helper()
		late := time.After(patience)
		for {
			a, err := unix.SchedGetAttr(int(w.meter.tid.Load()), 0)
			if err != nil {
				t.Fatal(err)
			}
			if (class{a.Policy, a.Nice}) == want && p.Classes()[0] == want.String() {
				break
			}
			select {
			case <-tick.C:
				while()
			case <-late:
				t.Fatalf("thread %v, worker %s; want %v", a, p.Classes()[0], want)
			}
		}
		if got := p.Classes()[1]; got != p.classes[levelNormal].String() {
			t.Errorf("the other worker is %s", got)
		}
	}
	load := func(tx, rx uint32) func() {
		return func() {
			ran := make(chan struct{})
			w.post(nil, func(w *worker) {
				w.urge.tx += tx
				w.urge.rx += rx
				close(ran)
			})
			<-ran
		}
	}
	expect(class{unix.SCHED_NORMAL, raisedNice}, load(100_000, 0))
	expect(p.classes[levelNormal], func() {})
	expect(class{unix.SCHED_BATCH, raisedNice}, load(0, 100_000))
	expect(p.classes[levelNormal], func() {})
}

// TestClassOfSuccessor: the worker that replaces one whose grant copy is slow has a class of
// its own.
func TestClassOfSuccessor(t *testing.T) {
	p, err := NewPool(Options{Workers: 1, NoUring: true})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if p.Classes() == nil {
		t.Skip(p.priority)
	}
	normal := p.classes[levelNormal].String()
	w, held, end := p.workers[0], make(chan struct{}), make(chan struct{})
	defer close(end)
	w.post(nil, func(w *worker) {
		w.urge.change(levelEager)
		w.watch.begin(p, &Queue{conn: &Conn{}})
		close(held)
		<-end
		w.watch.underWay.Store(0)
	})
	<-held
	if got, want := p.Classes()[0], (class{unix.SCHED_NORMAL, raisedNice}).String(); got != want {
		t.Errorf("before: %s, want %s", got, want)
	}
	if err := p.relieve(w, w.watch.seq); err != nil {
		t.Fatal(err)
	}
	if got := p.Classes()[0]; got != normal {
		t.Errorf("successor: %s, want %s", got, normal)
	}
	changed := make(chan error)
	p.workers[0].post(nil, func(w *worker) {
		w.urge.change(levelBatch)
		got, err := threadClass()
		if want := (class{unix.SCHED_BATCH, raisedNice}); err == nil && got != want {
			err = fmt.Errorf("%v, want %v", got, want)
		}
		changed <- err
	})
	if err := <-changed; err != nil {
		t.Error(err)
	}
}

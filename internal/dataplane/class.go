// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// raisedNice is the nice value of a worker's thread while its rates are high.
const raisedNice = -10

// class is a thread's scheduling class and nice value.
type class struct {
	policy uint32
	nice   int32
}

func (c class) String() string {
	if c.policy == unix.SCHED_BATCH {
		return fmt.Sprintf("batch, nice %d", c.nice)
	}
	return fmt.Sprintf("normal, nice %d", c.nice)
}

// apply gives the calling thread the class. Threads that it starts, such as those of
// io_uring, do not inherit it.
func (c class) apply() error {
	err := unix.SchedSetAttr(0, &unix.SchedAttr{Policy: c.policy, Nice: c.nice, Flags: unix.SCHED_FLAG_RESET_ON_FORK}, 0)
	if err != nil {
		return fmt.Errorf("sched_setattr: %w", err)
	}
	return nil
}

// threadClass returns the class of the calling thread.
func threadClass() (class, error) {
	a, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		return class{}, fmt.Errorf("sched_getattr: %w", err)
	}
	return class{a.Policy, a.Nice}, nil
}

// lowestNice returns the lowest nice value that RLIMIT_NICE allows this process.
func lowestNice() int32 {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NICE, &l) != nil {
		return 0
	}
	return 20 - int32(min(l.Cur, 40))
}

// findNice returns the nice value of a worker's thread while its rates are high: raisedNice,
// or what the rights of the process allow instead, and then the reason. apply gives a class
// to the calling thread; normal is the class that the thread has afterwards.
func findNice(normal class, lowest int32, apply func(class) error) (nice int32, err error) {
	if normal.nice <= raisedNice {
		return normal.nice, nil // the operator's choice for the whole daemon
	}
	try := class{normal.policy, raisedNice}
	if err = apply(try); errors.Is(err, unix.EPERM) && lowest < normal.nice && lowest > raisedNice {
		try.nice = lowest
		if e := apply(try); e == nil {
			err = fmt.Errorf("no nice value below %d: %w", lowest, err)
			return lowest, errors.Join(err, apply(normal))
		}
	}
	if err != nil {
		return normal.nice, err
	}
	return raisedNice, apply(normal)
}

// openClass lets the class of w's thread, which it runs on, follow the worker's rates.
// A lack of rights is reported once for all workers.
func (p *Pool) openClass(w *worker) {
	if p.opts.NoPriority {
		p.noteClass("switched off", nil)
		return
	}
	normal, err := threadClass()
	if err != nil {
		p.noteClass("", err)
		return
	}
	if normal.policy != unix.SCHED_NORMAL {
		p.noteClass("left to the scheduling class of the process", nil)
		return
	}
	nice, err := findNice(normal, lowestNice(), class.apply)
	if nice == normal.nice && err != nil {
		p.noteClass("", err)
		return
	}
	classes := [levels]class{normal, {normal.policy, nice}, {unix.SCHED_BATCH, nice}}
	w.urge.times = w.delay.read
	if e := w.delay.open(); e != nil {
		classes[levelBatch] = normal
		w.urge.times = func() (ran, waited time.Duration) { return threadTime(), 0 }
		err = errors.Join(err, e)
	}
	p.noteClass(fmt.Sprintf("nice %d while rates are high", nice), err)
	p.mu.Lock()
	p.classes = classes
	p.mu.Unlock()
	w.urge.set = func(to level) {
		if err := classes[to].apply(); err != nil {
			w.urge.set = nil
			w.urge.level.Store(uint32(levelNormal))
			p.warn(fmt.Errorf("priority of worker %d: %w", w.index, err))
		}
	}
}

// noteClass keeps what [Pool.Priority] returns, and reports err if it is the first.
func (p *Pool) noteClass(state string, err error) {
	if state == "" {
		state = err.Error()
	}
	p.mu.Lock()
	p.priority, p.denied = state, err
	p.mu.Unlock()
	if err != nil {
		p.classWarned.Do(func() { p.warn(fmt.Errorf("priority of workers: %w", err)) })
	}
}

// Priority returns how the priority of the workers' threads follows their rates, or the
// reason why it does not. denied is the error if the process lacks the right to it, in
// whole or in part.
func (p *Pool) Priority() (state string, denied error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.priority, p.denied
}

// Classes returns the present scheduling class of each worker's thread, or nil if they do
// not change.
func (p *Pool) Classes() (classes []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.classes == [levels]class{} {
		return nil
	}
	for _, w := range p.workers {
		classes = append(classes, p.classes[w.urge.now()].String())
	}
	return classes
}

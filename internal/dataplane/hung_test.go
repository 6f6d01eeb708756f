// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// TestHungNamesOwnQueues: if a turn does not return, each vif of its guest is told of a queue
// that it has.
func TestHungNamesOwnQueues(t *testing.T) {
	w := &worker{}
	p := &Pool{conns: map[*Conn]bool{}}
	told := map[string]Notice{}
	vif := func(name string, queues int) *Conn {
		c := &Conn{cfg: Config{Domid: 7, Name: name, Notice: func(n Notice) { told[name] = n }}}
		for i := range queues {
			q := &Queue{conn: c, index: i}
			q.worker.Store(w)
			c.queues = append(c.queues, q)
		}
		p.conns[c] = true
		return c
	}
	large := vif("large", 8)
	vif("small", 1)
	large.queues[0].worker.Store(&worker{})
	w.watch.queue.Store(large.queues[7])
	p.checkHung(w, time.Now())
	got := map[string]int{}
	for name, n := range told {
		got[name] = n.Queue
	}
	if diff := cmp.Diff(map[string]int{"large": 1, "small": 0}, got); diff != "" {
		t.Errorf("queues (-want +got):\n%s", diff)
	}
}

// TestLaneOutlivesWorker: a lane that serves other guests stays when the worker of a guest that
// was to join it has ended.
func TestLaneOutlivesWorker(t *testing.T) {
	p := &Pool{}
	for range maxLanes {
		lane, err := newWorker(p, 0)
		if err != nil {
			t.Fatal(err)
		}
		lane.low, lane.started, lane.watch.spare, lane.watch.lane = true, true, true, true
		p.spares = append(p.spares, lane)
	}
	if err := p.giveOwnThread(overrun{&worker{mail: mailbox{closed: true}}, guestID{domid: 7}}); err != nil {
		t.Fatal(err)
	}
	for _, lane := range p.spares {
		if _, err := unix.FcntlInt(uintptr(lane.epoll.fd), unix.F_GETFD, 0); err != nil {
			t.Errorf("a lane has no epoll: %v", err)
		} else {
			lane.release()
		}
	}
}

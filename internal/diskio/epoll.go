// SPDX-License-Identifier: Apache-2.0

package diskio

import (
	"fmt"
	"math"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/iouring"
)

// polled is a file that an engine without io_uring polls.
type polled struct {
	fd   int
	user uint64
}

// openEpoll prepares the wait of an engine without io_uring.
func (e *Engine) openEpoll() error {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("epoll_create: %w", err)
	}
	e.epoll, e.events = fd, newFIFO(4*iouring.MaxPolls)
	return e.watch(e.done.event, unix.EPOLLIN)
}

// watch adds fd to the files to wait for. It wakes once whenever the file becomes ready,
// as io_uring's polls do.
func (e *Engine) watch(fd int, events uint32) error {
	err := unix.EpollCtl(e.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events | unix.EPOLLET, Fd: int32(fd)})
	if err != nil {
		return fmt.Errorf("poll fd %d: %w", fd, err)
	}
	return nil
}

func (e *Engine) addPoll(fd int, events uint32, user uint64) error {
	if len(e.polls) == iouring.MaxPolls-1 {
		return fmt.Errorf("poll fd %d: %d files are polled: %w", fd, len(e.polls), unix.ENOSPC)
	}
	if err := e.watch(fd, events); err != nil {
		return err
	}
	e.polls = append(e.polls, polled{fd: fd, user: user})
	return nil
}

func (e *Engine) removePoll(fd int) error {
	i := slices.IndexFunc(e.polls, func(p polled) bool { return p.fd == fd })
	if i < 0 {
		return fmt.Errorf("end poll of fd %d: %w", fd, unix.ENOENT)
	}
	if err := unix.EpollCtl(e.epoll, unix.EPOLL_CTL_DEL, fd, nil); err != nil {
		return fmt.Errorf("end poll of fd %d: %w", fd, err)
	}
	user := e.polls[i].user
	e.polls = slices.Delete(e.polls, i, i+1)
	for range e.events.n { // events that were not taken go with it
		var c [1]Completion
		if e.events.take(c[:]); c[0].User != user {
			e.events.put(c[0])
		}
	}
	return nil
}

// waitEpoll waits until n completions and events are there, or until timeout has passed.
func (e *Engine) waitEpoll(n int, timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	for {
		ms := 0
		if have := e.local.n + e.done.waiting() + e.events.n; have < n && timeout != 0 {
			ms = -1
			if timeout > 0 {
				ms = int(min((max(time.Until(deadline), 0)+time.Millisecond-1)/time.Millisecond, math.MaxInt32))
			}
		}
		list := &e.ready
		room := min(len(list), len(e.events.ring)-e.events.n)
		if room == 0 {
			return nil
		}
		got, err := unix.EpollWait(e.epoll, list[:room], ms)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("epoll_wait: %w", err)
		}
		for i := range got {
			e.event(int(list[i].Fd), list[i].Events)
		}
		if ms == 0 {
			return nil
		}
	}
}

// event notes one event of epoll.
func (e *Engine) event(fd int, events uint32) {
	if fd == e.done.event {
		e.done.clear()
		return
	}
	for _, p := range e.polls {
		if p.fd == fd {
			e.events.put(Completion{User: p.user, Res: int32(events)})
		}
	}
}

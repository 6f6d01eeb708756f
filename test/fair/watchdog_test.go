// SPDX-License-Identifier: Apache-2.0

package fair

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/internal/lab/hostile"
)

// watchdogPeriod is the period of the watchdog, three times shorter than in the unit. The
// daemon feeds it three times in a period.
const watchdogPeriod = 3 * time.Second

// manager is a service manager that only listens.
type manager struct {
	conn *net.UnixConn

	mu  sync.Mutex
	fed []time.Time // guarded by mu
}

// newManager has a new daemon in place of the present one report to a manager.
func newManager(h *host) *manager {
	h.tb.Helper()
	path := filepath.Join(h.XenDir(), "..", "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: path})
	h.must(err)
	m := &manager{conn: conn}
	ended := make(chan struct{})
	go func() { defer close(ended); m.listen() }()
	h.tb.Cleanup(func() {
		_ = conn.Close()
		<-ended
	})
	h.must(h.Daemon().Stop())
	h.must(h.StartService(h.ctx, []string{
		"NOTIFY_SOCKET=" + path, fmt.Sprintf("WATCHDOG_USEC=%d", watchdogPeriod.Microseconds()),
	}, nil))
	return m
}

// listen receives messages until the socket is closed. It closes the files that come with
// them.
func (m *manager) listen() {
	text, rights := make([]byte, 4096), make([]byte, 64)
	for {
		n, rn, _, _, err := m.conn.ReadMsgUnix(text, rights)
		if err != nil {
			return
		}
		if list, err := unix.ParseSocketControlMessage(rights[:rn]); err == nil {
			for i := range list {
				files, _ := unix.ParseUnixRights(&list[i]) // a message without files has none
				for _, fd := range files {
					_ = unix.Close(fd)
				}
			}
		}
		if strings.Contains(string(text[:n]), "WATCHDOG=1") {
			m.mu.Lock()
			m.fed = append(m.fed, time.Now())
			m.mu.Unlock()
		}
	}
}

// between returns how often the watchdog was fed between two times, and the longest pause.
func (m *manager) between(from, to time.Time) (n int, longest time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	last := from
	for _, at := range m.fed {
		if at.Before(from) || at.After(to) {
			continue
		}
		n++
		longest = max(longest, at.Sub(last))
		last = at
	}
	return n, max(longest, to.Sub(last))
}

// starved is the outcome of a run with a watchdog.
type starved struct {
	fed     int
	want    int
	longest time.Duration // without a message
	missed  int           // lines of the log that say that the daemon is not alive
	same    bool          // the daemon is the process that it was
	slots   float64       // per second, of all loads
}

// ok reports whether the watchdog was never starved. A message that is late is one in the
// next third of the period.
func (s starved) ok() bool {
	return s.same && s.missed == 0 && s.fed >= s.want-1 && s.longest < watchdogPeriod
}

func (s starved) String() string {
	return fmt.Sprintf("fed %d times of %d, longest pause %v of %v, not alive %d times, same process %v, %.0f slots/s",
		s.fed, s.want, s.longest.Round(time.Millisecond), watchdogPeriod, s.missed, s.same, s.slots)
}

// watchdog has 16 guests with 8 queues each load one worker for a time: half of them with the
// least segments, half with a flood.
func (h *host) watchdog(m *manager, d time.Duration) (s starved) {
	h.tb.Helper()
	sink := h.guest(func(c *lab.GuestConfig) {
		c.Front.Front.Features.GSOTCPv4, c.Front.Front.Features.GSOTCPv6 = false, false
	})
	cutters, flooders := h.crew(8, 1, 8, true), h.crew(8, 1, 8, true)
	pid := h.Daemon().PID()
	ends := []func() hostile.Strength{
		cutters.load(hostile.LoadArgs{Load: hostile.Segments, Dst: []string{sink.Info.MAC}}),
		flooders.load(hostile.LoadArgs{Load: hostile.Flood, Dst: []string{h.bridgeMAC()}}),
	}
	began := time.Now()
	select {
	case <-time.After(d):
	case <-h.Daemon().Done():
	}
	took := time.Since(began)
	for _, end := range ends {
		s.slots += end().SlotRate()
	}
	s.fed, s.longest = m.between(began, began.Add(took))
	s.want = int(took / (watchdogPeriod / 3))
	s.missed = strings.Count(h.Daemon().Log(), "not alive")
	s.same = h.Daemon().PID() == pid && !h.Daemon().Ended()
	return s
}

// TestWatchdog is the long run of the watchdog.
func TestWatchdog(t *testing.T) {
	long(t)
	h := newHost(t, "--workers=1")
	s := h.watchdog(newManager(h), time.Minute)
	t.Log(s)
	note(t, "watchdog: "+s.String())
	if !s.ok() {
		t.Error("the watchdog was starved")
	}
}

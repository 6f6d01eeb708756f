// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/sdnotify"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestAlive: workers have to answer at once; the control loop may wait for xenstored for
// a while.
func TestAlive(t *testing.T) {
	ok := func(context.Context) error { return nil }
	dead := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	gone := func(context.Context) error { return errors.New("worker 1: gone") }
	for _, tt := range []struct {
		name             string
		workers, control func(context.Context) error
		away             time.Duration
		want             string // part of the error
	}{
		{"all answer", ok, ok, time.Hour, ""},
		{"a worker does not", dead, ok, 0, "deadline"},
		{"a worker is gone", gone, ok, 0, "worker 1"},
		{"the control loop waits", ok, dead, time.Second, ""},
		{"the control loop waits for ever", ok, dead, controlTimeout + time.Second, "control loop"},
	} {
		s := service{workers: tt.workers, control: tt.control, answered: time.Now().Add(-tt.away)}
		err := s.alive(context.Background(), 5*time.Millisecond)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
		if tt.name == "all answer" && time.Since(s.answered) > time.Minute {
			t.Errorf("%s: heard at %v", tt.name, s.answered)
		}
	}
}

// TestWatchdogIsFed: the watchdog is fed at its interval while the daemon is alive, and
// not when it is not.
func TestWatchdogIsFed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "30000")
	notify, files, err := sdnotify.FromEnv()
	if err != nil || len(files) != 0 {
		t.Fatalf("%v, %v", files, err)
	}
	pings := 0
	s := service{
		notify: notify, log: zap.NewNop(), text: func() string { return "1 vif" },
		workers: func(context.Context) error {
			if pings++; pings > 3 {
				return errors.New("stuck")
			}
			return nil
		},
		control: func(context.Context) error { return nil },
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); s.watch(ctx) }()
	var got []string
	for buf := make([]byte, 64); len(got) < 4; {
		n, err := manager.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(buf[:n]))
	}
	if want := "WATCHDOG=1 STATUS=1 vif WATCHDOG=1 WATCHDOG=1"; strings.Join(got, " ") != want {
		t.Errorf("got %q, want %q", got, want)
	}
	_ = manager.SetReadDeadline(time.Now().Add(60 * time.Millisecond))
	if n, err := manager.Read(make([]byte, 64)); err == nil {
		t.Errorf("a message of %d bytes from a daemon that is stuck", n)
	}
	cancel()
	<-ended
}

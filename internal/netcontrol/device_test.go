// SPDX-License-Identifier: Apache-2.0

package netcontrol

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/netbackd/netbackd/internal/control"
	"github.com/netbackd/netbackd/internal/vhostnet"
)

// TestListenDevice: a name belongs to one process at a time, and its end leaves nothing.
func TestListenDevice(t *testing.T) {
	dir := t.TempDir()
	l, err := ListenDevice(dir, "tap1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ListenDevice(dir, "tap1"); !errors.Is(err, control.ErrRunning) {
		t.Errorf("a second one: %v", err)
	}
	for range 2 {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	if left, _ := os.ReadDir(filepath.Join(dir, devicesDir)); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// silent is a device that does not answer until the test ends.
type silent struct{ wait chan struct{} }

func (s silent) Status() vhostnet.Status { <-s.wait; return vhostnet.Status{} }
func (s silent) Reset() bool             { return false }

// TestSilentDevice: a device that does not answer is listed with the reason. Without a directory
// of devices there are none.
func TestSilentDevice(t *testing.T) {
	dir := t.TempDir()
	l, err := ListenDevice(dir, "hung")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	s := silent{make(chan struct{})}
	served := make(chan error, 1)
	go func() {
		served <- control.Serve(ctx, l, DeviceHandler(func() Daemon { return Daemon{} }, s), log.New(io.Discard, "", 0))
	}()
	list, err := Devices(ctx, dir)
	if err != nil || len(list) != 1 || list[0].Name != "hung" || list[0].Kind != vhostnet.Kind || !strings.Contains(list[0].Error, "deadline") {
		t.Errorf("%+v, %v", list, err)
	}
	close(s.wait)
	stop()
	if err := errors.Join(<-served, l.Close()); err != nil {
		t.Error(err)
	}
	if _, err := net.Dial("unix", DeviceSocket(dir, "hung")); err == nil {
		t.Error("the socket is still there")
	}
	if list, err := Devices(context.Background(), filepath.Join(dir, "none")); len(list) != 0 || err != nil {
		t.Errorf("no directory: %+v, %v", list, err)
	}
}

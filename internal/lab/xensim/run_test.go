// SPDX-License-Identifier: Apache-2.0

package xensim_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/xensim"
	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/internal/lab/xensim/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// run serves dir until stop is called, which returns the error of Run.
func run(t *testing.T, dir string) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- xensim.Run(ctx, dir, xensim.Options{Ready: func() { close(ready) }}) }()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	return func() error {
		cancel()
		return <-ended
	}
}

func TestRunMakesItsDirectoryAndLeavesNoSocket(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	stop := run(t, dir)
	for _, name := range []string{wire.HypercallSocket, wire.XenstoreSocket} {
		fi, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if fi.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", name, fi.Mode())
		}
	}
	if err := stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	left, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range left {
		if e.Name() != "lock" {
			t.Errorf("%s is left behind", e.Name())
		}
	}
}

func TestOneSimulationPerDirectory(t *testing.T) {
	dir := t.TempDir()
	stop := run(t, dir)
	if err := xensim.Run(context.Background(), dir, xensim.Options{}); !errors.Is(err, xensim.ErrBusy) {
		t.Errorf("second one: %v, want ErrBusy", err)
	}
	if err := stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if err := run(t, dir)(); err != nil {
		t.Errorf("after the first has ended: %v", err)
	}
}

func TestSocketsOfADeadSimulationAreReplaced(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{wire.HypercallSocket, wire.XenstoreSocket, wire.HypercallSocket + ".new"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	stop := run(t, dir)
	c, err := simclient.Dial(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if err := stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestDirectoryWithALongName(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long/", 40))
	stop := run(t, dir)
	c, err := simclient.Dial(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	xs, err := c.Xenstore()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := xs.List(t.Context(), "/"); err != nil {
		t.Error(err)
	}
	xs.Close()
	c.Close()
	if err := stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestRunWithoutADirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := xensim.Run(context.Background(), file, xensim.Options{}); err == nil {
		t.Error("served a file")
	}
}

func TestClientsSeeTheEnd(t *testing.T) {
	dir := t.TempDir()
	stop := run(t, dir)
	c, err := simclient.Dial(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	e, err := c.Events()
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	xs, err := c.Xenstore()
	if err != nil {
		t.Fatal(err)
	}
	defer xs.Close()
	if err := stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	<-c.Done()
	<-xs.Done()
	if _, err := e.BindUnbound(1); !errors.Is(err, simclient.ErrGone) {
		t.Errorf("bind: %v, want ErrGone", err)
	}
}

// TestGarbage: a client that breaks the protocol is disconnected, and no other client is
// affected.
func TestGarbage(t *testing.T) {
	dir := t.TempDir()
	stop := run(t, dir)
	hello := wire.AppendHello(nil, wire.Hello{Kind: wire.KindEvtchn})
	for name, first := range map[string][]byte{
		"short":           {1, 2, 3},
		"another version": wire.AppendU64(wire.AppendU32(nil, 0, 99, 1, 0), 0),
		"another call":    wire.AppendU32(nil, uint32(wire.OpNotify), 1, 2, 3, 4, 5),
		"unknown kind":    wire.AppendHello(nil, wire.Hello{Kind: 99}),
		"domid too large": wire.AppendU64(wire.AppendU32(nil, 0, wire.Version, uint32(wire.KindDomain), 1<<16), 0),
		"no memory":       wire.AppendHello(nil, wire.Hello{Kind: wire.KindGntdev, Probe: 8}),
	} {
		fd, err := wire.Connect(dir, wire.HypercallSocket, unix.SOCK_SEQPACKET)
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 1024)
		if err := wire.Send(fd, first); err != nil {
			t.Fatal(err)
		}
		n, err := wire.Receive(fd, buf)
		if err != nil || wire.NewReader(buf[:n]).U32() == 0 {
			t.Errorf("%s: answer %v, %v; want an errno", name, buf[:n], err)
		}
		if _, err := wire.Receive(fd, buf); err != io.EOF {
			t.Errorf("%s: then %v, want the end", name, err)
		}
		unix.Close(fd)
	}
	for kind := wire.KindDomain; kind <= wire.KindControl; kind++ {
		fd, err := wire.Connect(dir, wire.HypercallSocket, unix.SOCK_SEQPACKET)
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 65536)
		call := func(msg []byte) uint32 {
			t.Helper()
			if err := wire.Send(fd, msg); err != nil {
				t.Fatal(err)
			}
			n, err := wire.Receive(fd, buf)
			if err != nil {
				t.Fatal(err)
			}
			return wire.NewReader(buf[:n]).U32()
		}
		hello = wire.AppendHello(hello[:0], wire.Hello{Kind: kind, Probe: probe()})
		if errno := call(hello); errno != 0 {
			t.Fatalf("%v: errno %d", kind, errno)
		}
		for op := range wire.Op(0x70) {
			if !op.OneWay() && op != wire.OpCreateDomain && op != wire.OpReset && op != wire.OpMemory && op != wire.OpList && op != wire.OpJoin {
				if errno := call(wire.AppendU32(nil, uint32(op))); errno == 0 {
					t.Errorf("%v: call %#x without arguments succeeds", kind, op)
				}
			}
		}
		unix.Close(fd)
	}
	if err := stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
}

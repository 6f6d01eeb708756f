// SPDX-License-Identifier: Apache-2.0

package blkcontrol

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/netbackd/netbackd/internal/control"
	"github.com/netbackd/netbackd/internal/vbd"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errNoVbd = errors.New("no such vbd")

// source is a daemon with one vbd, 3/xvda. It notes the requests.
type source struct{ asked []string }

func (s *source) List() []vbd.Status {
	return []vbd.Status{vbd.NewStatus(xenbus.DeviceID{Class: xenbus.VBD, Domid: 3, Devid: 51712})}
}

func (s *source) Names() []string { return []string{"vbd-3-51712"} }

func (s *source) find(what, name string) error {
	s.asked = append(s.asked, what+" "+name)
	if name != "3/xvda" && name != "vbd-3-51712" {
		return fmt.Errorf("%s: %w", name, errNoVbd)
	}
	return nil
}

// Status has revision 7 until ctx ends, and then revision 8.
func (s *source) Status(ctx context.Context, name string, after uint64) (vbd.Status, error) {
	if err := s.find("status", name); err != nil {
		return vbd.Status{}, err
	}
	got := s.List()[0]
	got.Revision = 7
	if after == got.Revision {
		<-ctx.Done()
		got.Revision++
	}
	return got, nil
}

func (s *source) Reset(name string) error    { return s.find("reset", name) }
func (s *source) Resize(name string) error   { return s.find("resize", name) }
func (s *source) Adopt(name string) error    { return s.find("adopt", name) }
func (s *source) CanAdopt(name string) error { return errors.New("its guest is connected") }

// serve runs a daemon's end until the test ends, and returns the path of its socket.
func serve(t *testing.T, src Source) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "control.sock")
	l, err := control.Listen(Program, path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	h := Handler(func() Daemon {
		return Daemon{Version: "v1", PID: 4711, Since: time.Unix(1700000000, 0).UTC(), MaxQueues: 4}
	}, src, errNoVbd)
	go func() { served <- control.Serve(ctx, l, h, nil) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return path
}

func TestQuestions(t *testing.T) {
	src := &source{}
	c := NewClient(serve(t, src))
	defer c.Close()
	ctx := t.Context()
	if d, err := c.Daemon(ctx); d.PID != 4711 || d.Schema != Schema || d.MaxQueues != 4 || err != nil {
		t.Errorf("daemon %+v, %v", d, err)
	}
	list, err := c.Vbds(ctx)
	if diff := cmp.Diff(src.List(), list); diff != "" || err != nil {
		t.Errorf("unexpected vbds, error %v (-want +got):\n%s", err, diff)
	}
	if names, err := c.Names(ctx); len(names) != 1 || err != nil {
		t.Errorf("names %v, %v", names, err)
	}
	if s, err := c.Vbd(ctx, "3/xvda", 6); s.Revision != 7 || err != nil {
		t.Errorf("vbd %+v, %v", s, err)
	}
	for name, err := range map[string]error{
		"":       func() error { _, err := c.Vbd(ctx, "", 0); return err }(),
		"9/xvda": c.Reset(ctx, "9/xvda"),
	} {
		if !errors.Is(err, control.ErrNotFound) {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, err := range []error{c.Reset(ctx, "3/xvda"), c.Resize(ctx, "3/xvda"), c.Adopt(ctx, "vbd-3-51712")} {
		if err != nil {
			t.Error(err)
		}
	}
	if err := c.CanAdopt(ctx, "3/xvda"); err == nil || err.Error() != "its guest is connected" {
		t.Errorf("can adopt: %v", err)
	}
	want := []string{"status 3/xvda", "reset 9/xvda", "reset 3/xvda", "resize 3/xvda", "adopt vbd-3-51712"}
	if diff := cmp.Diff(want, src.asked); diff != "" {
		t.Errorf("unexpected requests (-want +got):\n%s", diff)
	}
}

// TestWire checks the protocol byte by byte, as other clients speak it.
func TestWire(t *testing.T) {
	path := serve(t, &source{})
	h := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}
	defer h.CloseIdleConnections()
	for _, tt := range []struct {
		method, path string
		code         int
		body         string
	}{
		{"GET", "/v1/names", 200, `{"schema":1,"names":["vbd-3-51712"]}` + "\n"},
		{"GET", "/v1/vbds/9%2Fxvda", 404, `{"error":"9/xvda: no such vbd"}` + "\n"},
		{"GET", "/v1/vbds/9/xvda", 404, "404 page not found\n"},
		{"GET", "/v1/vbds/3%2Fxvda?after=soon", 409, `{"error":"after is \"soon\", want a revision"}` + "\n"},
		{"POST", "/v1/vbds/3%2Fxvda/resize", 204, ""},
		{"GET", "/v1/vbds/3%2Fxvda/adopt", 409, `{"error":"its guest is connected"}` + "\n"},
		{"GET", "/v1/vifs", 404, "404 page not found\n"},
	} {
		req, err := http.NewRequest(tt.method, "http://blkbackd"+tt.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := h.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if err := errors.Join(err, resp.Body.Close()); err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != tt.code || string(body) != tt.body {
			t.Errorf("%s %s: status %d, %q; want %d, %q", tt.method, tt.path, resp.StatusCode, body, tt.code, tt.body)
		}
	}
}

func TestNoProcessListens(t *testing.T) {
	path := filepath.Join(t.TempDir(), "missing.sock")
	c := NewClient(path)
	_, err := c.Vbds(t.Context())
	want := "blkbackd is not running: no process listens at " + path + "; start it with `systemctl start blkbackd`, or `blkbackd run` by hand"
	if !errors.Is(err, control.ErrNotRunning) || err.Error() != want {
		t.Errorf("got %v", err)
	}
}

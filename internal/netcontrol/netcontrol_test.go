// SPDX-License-Identifier: Apache-2.0

package netcontrol

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"

	"github.com/netbackd/netbackd/internal/control"
	"github.com/netbackd/netbackd/internal/vif"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errNoVif = errors.New("no such vif")

// source is a daemon with two vifs.
type source struct{ resets []string }

func (s *source) List() []vif.Status {
	return []vif.Status{
		{Name: "vif1.0", Domid: 1, State: xenbus.Connected, Features: []string{"sg"}, Counters: map[string]uint64{"tx_packets": 1 << 60}},
		{Name: "vif2.0", Domid: 2, State: xenbus.InitWait, Waits: "the guest"},
	}
}

func (s *source) Lines() (lines []vif.Line) {
	for _, v := range s.List() {
		lines = append(lines, v.Line())
	}
	return lines
}

func (s *source) Names() []string { return []string{"vif1.0", "vif2.0"} }

// Status has revision 7 of vif1.0 until ctx ends, and then revision 8.
func (s *source) Status(ctx context.Context, name string, after uint64) (vif.Status, error) {
	for _, v := range s.List() {
		if v.Name != name {
			continue
		}
		v.Revision = 7
		if after == v.Revision {
			<-ctx.Done()
			v.Revision++
		}
		return v, nil
	}
	return vif.Status{}, fmt.Errorf("%s: %w", name, errNoVif)
}

func (s *source) Reset(name string) error {
	s.resets = append(s.resets, name)
	switch name {
	case "vif1.0":
		return nil
	case "vif2.0":
		return errors.New("vif2.0 does not answer")
	}
	return fmt.Errorf("%s: %w", name, errNoVif)
}

func (s *source) CanAdopt(name string) error {
	if name == "vif2.0" {
		return errors.New("its guest has a control ring")
	}
	return s.Reset(name)
}

func (s *source) Adopt(name string) error { return s.Reset(name) }

func (s *source) Release(name string) (int, error) { return 3, s.Reset(name) }

var testDaemon = Daemon{Version: "v1", PID: 4711, Since: time.Unix(1700000000, 0).UTC(), Workers: 2, Uring: "in use", Offload: true, Priority: "switched off"}

func daemon() Daemon { return testDaemon }

// serve runs a daemon's end at path until the test ends.
func serve(t *testing.T, path string, h http.Handler) {
	t.Helper()
	l, err := control.Listen(Program, path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- control.Serve(ctx, l, h, nil) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}

func client(t *testing.T, path string) *Client {
	c := NewClient(path)
	t.Cleanup(c.Close)
	return c
}

func TestQuestions(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "control.sock")
	src := &source{}
	serve(t, path, Handler(daemon, src, errNoVif))
	c := client(t, path)
	ctx := context.Background()

	d, err := c.Daemon(ctx)
	if err != nil {
		t.Fatal(err)
	}
	wantDaemon := testDaemon
	wantDaemon.Schema = Schema
	if diff := cmp.Diff(wantDaemon, d); diff != "" {
		t.Errorf("unexpected daemon (-want +got):\n%s", diff)
	}

	vifs, err := c.Vifs(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(src.List(), vifs); diff != "" {
		t.Errorf("unexpected vifs (-want +got):\n%s", diff)
	}

	lines, err := c.Lines(ctx)
	if diff := cmp.Diff(src.Lines(), lines); diff != "" || err != nil {
		t.Errorf("unexpected lines, error %v (-want +got):\n%s", err, diff)
	}
	// An older daemon answers with the whole status.
	all := Lines{}
	if err := c.Do(ctx, http.MethodGet, "/v1/vifs", &all); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(src.Lines(), all.Vifs, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("unexpected lines of a status (-want +got):\n%s", diff)
	}
	names, err := c.Names(ctx)
	if diff := cmp.Diff([]string{"vif1.0", "vif2.0"}, names); diff != "" || err != nil {
		t.Errorf("unexpected names, error %v (-want +got):\n%s", err, diff)
	}
	one, err := c.Vif(ctx, "vif1.0", 0)
	want := src.List()[0]
	want.Revision = 7
	if diff := cmp.Diff(want, one); diff != "" || err != nil {
		t.Errorf("unexpected vif, error %v (-want +got):\n%s", err, diff)
	}
	if _, err := c.Vif(ctx, "", 0); !errors.Is(err, control.ErrNotFound) {
		t.Errorf("without a name: %v", err)
	}
	if _, err := c.Vif(ctx, "vif9.0", 0); !errors.Is(err, control.ErrNotFound) || err.Error() != "vif9.0: no such vif" {
		t.Errorf("got %v", err)
	}

	if err := c.Reset(ctx, "vif1.0"); err != nil {
		t.Error(err)
	}
	if err := c.Reset(ctx, "vif2.0"); err == nil || err.Error() != "vif2.0 does not answer" || errors.Is(err, control.ErrNotFound) {
		t.Errorf("got %v", err)
	}
	if err := c.Reset(ctx, "../daemon?x=%"); !errors.Is(err, control.ErrNotFound) || err.Error() != "../daemon?x=%: no such vif" {
		t.Errorf("got %v", err)
	}
	if lost, err := c.Release(ctx, "vif1.0"); lost != 3 || err != nil {
		t.Errorf("release: %d lost, %v", lost, err)
	}
	if err := c.CanAdopt(ctx, "vif2.0"); err == nil || err.Error() != "its guest has a control ring" {
		t.Errorf("got %v", err)
	}
	if err := c.Adopt(ctx, "vif9.0"); !errors.Is(err, control.ErrNotFound) {
		t.Errorf("got %v", err)
	}
	if diff := cmp.Diff([]string{"vif1.0", "vif2.0", "../daemon?x=%", "vif1.0", "vif9.0"}, src.resets); diff != "" {
		t.Errorf("unexpected resets (-want +got):\n%s", diff)
	}
}

// TestWire checks the protocol byte by byte, as other clients speak it.
func TestWire(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control.sock")
	serve(t, path, Handler(daemon, &source{}, errNoVif))
	h := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}
	defer h.CloseIdleConnections()
	for _, tt := range []struct {
		method, path string
		code         int
		body         string
	}{
		{"GET", "/v1/daemon", 200, `{"schema":1,"version":"v1","pid":4711,"since":"2023-11-14T22:13:20Z","workers":2,"io_uring":"in use","offload":true,"worker_priority":"switched off","threads":0,"threads_max":0,"log_lines_lost":0}` + "\n"},
		{"GET", "/v1/names", 200, `{"schema":1,"names":["vif1.0","vif2.0"]}` + "\n"},
		{"GET", "/v1/vifs/vif9.0", 404, `{"error":"vif9.0: no such vif"}` + "\n"},
		{"GET", "/v1/vifs/vif1.0?after=soon", 409, `{"error":"after is \"soon\", want a revision"}` + "\n"},
		{"POST", "/v1/vifs/vif1.0/reset", 204, ""},
		{"POST", "/v1/vifs/vif9.0/reset", 404, `{"error":"vif9.0: no such vif"}` + "\n"},
		{"POST", "/v1/vifs/vif2.0/reset", 409, `{"error":"vif2.0 does not answer"}` + "\n"},
		{"GET", "/v1/vifs/vif1.0/adopt", 204, ""},
		{"GET", "/v1/vifs/vif2.0/adopt", 409, `{"error":"its guest has a control ring"}` + "\n"},
		{"POST", "/v1/vifs/vif1.0/adopt", 204, ""},
		{"POST", "/v1/vifs/vif9.0/adopt", 404, `{"error":"vif9.0: no such vif"}` + "\n"},
		{"POST", "/v1/vifs/vif1.0/release", 200, `{"lost_packets":3}` + "\n"},
		{"POST", "/v1/vifs/vif2.0/release", 409, `{"error":"vif2.0 does not answer"}` + "\n"},
		{"GET", "/v1/vifs/vif1.0/reset", 405, "Method Not Allowed\n"},
		{"GET", "/v2/vifs", 404, "404 page not found\n"},
		{"GET", "/", 404, "404 page not found\n"},
	} {
		req, err := http.NewRequest(tt.method, "http://netbackd"+tt.path, nil)
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
		if resp.StatusCode != tt.code {
			t.Errorf("%s %s: status %d, want %d", tt.method, tt.path, resp.StatusCode, tt.code)
		}
		if diff := cmp.Diff(tt.body, string(body)); diff != "" {
			t.Errorf("%s %s: unexpected body (-want +got):\n%s", tt.method, tt.path, diff)
		}
	}
}

// TestWaitForAnotherRevision: a request that waits for another revision is answered when
// the wait is over, and ends when the client disconnects.
func TestWaitForAnotherRevision(t *testing.T) {
	usual := control.MaxWait
	control.MaxWait = 100 * time.Millisecond
	t.Cleanup(func() { control.MaxWait = usual }) // after the server has ended
	path := filepath.Join(t.TempDir(), "control.sock")
	serve(t, path, Handler(daemon, &source{}, errNoVif))
	c := client(t, path)
	if s, err := c.Vif(t.Context(), "vif1.0", 6); err != nil || s.Revision != 7 {
		t.Errorf("after another revision: %+v, %v", s, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := c.Vif(ctx, "vif1.0", 7); !errors.Is(err, context.Canceled) {
		t.Errorf("taken back: %v", err)
	}
	began := time.Now()
	s, err := c.Vif(t.Context(), "vif1.0", 7)
	if err != nil || s.Revision != 8 || time.Since(began) < control.MaxWait {
		t.Errorf("after the same revision: %+v, %v, %v", s, err, time.Since(began))
	}
}

// TestStrangeDaemons: answers of a foreign daemon are errors, not guesses.
func TestStrangeDaemons(t *testing.T) {
	for _, tt := range []struct {
		name string
		h    http.HandlerFunc
		want string
	}{
		{"newer", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"schema":2}`) },
			"the daemon speaks version 2 of the control protocol, this command version 1; restart the daemon, or use the netbackd it was started from"},
		{"not JSON", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }, "invalid character"},
		{"nothing", func(http.ResponseWriter, *http.Request) {}, "EOF"},
		{"in trouble", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }, "500 Internal Server Error"},
		{"gone in mid sentence", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "EOF"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "control.sock")
			serve(t, path, tt.h)
			c := client(t, path)
			if _, err := c.Vifs(context.Background()); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("vifs: %v, want %q", err, tt.want)
			}
			if _, err := c.Daemon(context.Background()); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("daemon: %v, want %q", err, tt.want)
			}
		})
	}
}

// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// manyLen makes a list of 300 KiB. A socket holds net.core.wmem_default, 208 KiB.
const manyLen = 500

// many makes lists that are larger than a socket buffer, and counts the calls that make one.
type many struct{ now, most atomic.Int32 }

func (m *many) list() any {
	n := m.now.Add(1)
	defer m.now.Add(-1)
	for most := m.most.Load(); n > most && !m.most.CompareAndSwap(most, n); most = m.most.Load() {
	}
	return slices.Repeat([]string{strings.Repeat("x", 600)}, manyLen)
}

// TestClientsThatHang: clients that do not send or do not read take every connection.
// They lose theirs, and a client that waits behind them is answered.
func TestClientsThatHang(t *testing.T) {
	src := &many{}
	routes := NewRoutes(nil)
	routes.Get("/v1/daemon", func() any { return 4711 })
	routes.List("/v1/list", func(*http.Request) any { return src.list() })
	path := filepath.Join(t.TempDir(), "control.sock")
	l, err := Listen(testProgram, path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	m := limits{clients: 6, read: 200 * time.Millisecond, write: 400 * time.Millisecond, idle: time.Second}
	go func() { ended <- m.serve(ctx, l, routes, nil) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	for i := range 2 * m.clients {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if i%2 == 0 {
			if _, err := c.Write([]byte("GET /v1/list HTTP/1.1\r\nHost: netbackd\r\n\r\n")); err != nil {
				t.Fatal(err)
			}
		}
	}
	pid := 0
	if err := client(t, path).Do(t.Context(), http.MethodGet, "/v1/daemon", &pid); err != nil || pid != 4711 {
		t.Errorf("behind clients that hang: %d, %v", pid, err)
	}
	if most := src.most.Load(); most > MaxLists {
		t.Errorf("%d lists were made at a time", most)
	}
	var list []string
	if err := client(t, path).Do(t.Context(), http.MethodGet, "/v1/list", &list); err != nil || len(list) != manyLen {
		t.Errorf("then a list of %d, %v", len(list), err)
	}
}

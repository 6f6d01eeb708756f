// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/netbackd/netbackd/internal/vif"
)

// manyVifsLen makes a list of 300 KiB. A socket holds net.core.wmem_default, 208 KiB.
const manyVifsLen = 500

// manyVifs returns a list that is larger than a socket buffer, and counts the calls that
// make one.
type manyVifs struct {
	source
	now, most atomic.Int32
}

func (m *manyVifs) List() []vif.Status {
	n := m.now.Add(1)
	defer m.now.Add(-1)
	for most := m.most.Load(); n > most && !m.most.CompareAndSwap(most, n); most = m.most.Load() {
	}
	list := make([]vif.Status, manyVifsLen)
	for i := range list {
		list[i] = vif.Status{Name: fmt.Sprintf("vif%d.0", i), Error: strings.Repeat("x", 512)}
	}
	return list
}

// TestClientsThatHang: clients that do not send or do not read take every connection.
// They lose theirs, and a client that waits behind them is answered.
func TestClientsThatHang(t *testing.T) {
	src := &manyVifs{}
	path := filepath.Join(t.TempDir(), "control.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	m := limits{clients: 6, read: 200 * time.Millisecond, write: 400 * time.Millisecond, idle: time.Second}
	go func() { ended <- m.serve(ctx, l, Handler(daemon, src, errNoVif), nil) }()
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
			if _, err := c.Write([]byte("GET /v1/vifs HTTP/1.1\r\nHost: netbackd\r\n\r\n")); err != nil {
				t.Fatal(err)
			}
		}
	}
	d, err := client(t, path).Daemon(t.Context())
	if err != nil || d.PID != testDaemon.PID {
		t.Errorf("behind clients that hang: %+v, %v", d, err)
	}
	if most := src.most.Load(); most > maxLists {
		t.Errorf("%d lists were made at a time", most)
	}
	vifs, err := client(t, path).Vifs(t.Context())
	if err != nil || len(vifs) != manyVifsLen {
		t.Errorf("then %d vifs, %v", len(vifs), err)
	}
}

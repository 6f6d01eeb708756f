// SPDX-License-Identifier: Apache-2.0

package blkscenario

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/netbackd/netbackd/internal/lab/blkfront"
	"github.com/netbackd/netbackd/internal/lab/blklab"
	"github.com/netbackd/netbackd/internal/lab/xensim/wire"
	"github.com/netbackd/netbackd/internal/vbd"
)

// relay stands between a daemon and xenstored, so that a test can cut the connection.
type relay struct {
	dir  string // for the daemon
	real string // xenstored's socket

	all sync.WaitGroup

	mu       sync.Mutex
	listener net.Listener // nil while it is cut; guarded by mu
	conns    []net.Conn   // guarded by mu
}

func newRelay(xen, dir string) (*relay, error) {
	r := &relay{dir: dir, real: filepath.Join(xen, wire.XenstoreSocket)}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	if err := os.Symlink(filepath.Join(xen, wire.HypercallSocket), filepath.Join(dir, wire.HypercallSocket)); err != nil {
		return nil, err
	}
	return r, r.open()
}

// open lets connections pass.
func (r *relay) open() error {
	l, err := net.Listen("unix", filepath.Join(r.dir, wire.XenstoreSocket))
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.listener = l
	r.mu.Unlock()
	r.all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r.pass(c)
		}
	})
	return nil
}

func (r *relay) pass(c net.Conn) {
	d, err := net.Dial("unix", r.real)
	if err != nil {
		c.Close()
		return
	}
	r.mu.Lock()
	r.conns = append(r.conns, c, d)
	r.mu.Unlock()
	for _, pair := range [][2]net.Conn{{c, d}, {d, c}} {
		r.all.Go(func() {
			_, _ = io.Copy(pair[0], pair[1])
			pair[0].Close()
			pair[1].Close()
		})
	}
}

// cut ends all connections and refuses others.
func (r *relay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.listener != nil {
		r.listener.Close()
		r.listener = nil
	}
	for _, c := range r.conns {
		c.Close()
	}
	r.conns = nil
}

// TestXenstoreGoesAndComesBack: without xenstored requests are served. When it is there again
// the daemon does what was asked for meanwhile.
func TestXenstoreGoesAndComesBack(t *testing.T) {
	var r *relay
	w := newWorldWith(t, blklab.Options{Xen: func(dir string) (string, error) {
		var err error
		r, err = newRelay(dir, filepath.Join(filepath.Dir(dir), "relay"))
		return r.dir, err
	}})
	t.Cleanup(func() {
		r.cut()
		r.all.Wait()
	})
	stays, goes := w.guest(blkfront.Config{Indirect: 64}), w.guest(blkfront.Config{})
	stop := stays.running(endless(mixed))
	for range 3 {
		stays.waitCounter("okay", 20)
		r.cut()
		stays.waitCounter("okay", 100)
		w.must(r.open())
		stays.serving()
	}
	r.cut()
	detached := make(chan error, 1)
	go func() {
		_, err := w.DetachVbd(w.ctx, goes.Domid, xvda)
		detached <- err
	}()
	w.must(os.Truncate(stays.image, 2*sectors*512))
	stays.waitCounter("okay", 50)
	w.must(r.open())
	w.must(<-detached)
	w.must(w.Client().Resize(w.ctx, stays.ID(xvda).String()))
	stays.wait("the new size", func(s *vbd.Status) bool { return s.Disk.Sectors == 2*sectors })
	stop()
	w.must(stays.AwaitSize(w.ctx, "", 2*sectors))
	stays.innocent()
}

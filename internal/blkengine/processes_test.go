// SPDX-License-Identifier: Apache-2.0

package blkengine

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/blkplane"
	"github.com/netbackd/netbackd/internal/budget"
	"github.com/netbackd/netbackd/internal/disk"
	"github.com/netbackd/netbackd/internal/procs"
	"github.com/netbackd/netbackd/internal/procwire"
	"github.com/netbackd/netbackd/pkg/xen"
)

// double stands for a disk process. It keeps the files of connections open until it ends.
type double struct {
	socket int // of the broker
	conn   *procwire.Conn
	done   chan struct{}
	once   sync.Once
	links  map[uint32]uint32 // by connection; belongs to the handler
}

func (d *double) Socket() int           { return d.socket }
func (d *double) PID() int              { return 1 }
func (d *double) Done() <-chan struct{} { return d.done }
func (d *double) Err() error            { return errors.New("the double has ended") }

func (d *double) Kill() {
	d.once.Do(func() {
		d.conn.Close()
		close(d.done)
	})
}

// handle plays a process that drains and closes at once.
func (d *double) handle(m *procwire.Message) {
	r := m.Reader()
	var w procwire.Writer
	causes.Put(&w, nil)
	about := func(kind procwire.Kind, number uint32) {
		var n procwire.Writer
		n.U32(d.links[number])
		n.U32(number)
		_ = d.conn.Post(kind, n.Bytes())
	}
	switch m.Kind {
	case kindSetup:
		procs.PutJSON(&w, &Ready{Uring: "in use"})
		_ = m.Answer(w.Bytes())
	case kindConnect:
		link := r.U32()
		var c connecting
		c.take(r)
		if m.Len() != c.files(1) || r.End() != nil {
			causes.Put(&w, unix.EINVAL)
		}
		d.links[c.number] = link
		w.Bool(true)
		_ = m.Answer(w.Bytes())
	case kindDrain:
		about(kindDrained, r.U32())
	case kindClose:
		about(kindEnded, r.U32())
	}
}

// nullOpener opens the null device for each.
type nullOpener struct{}

func (nullOpener) OpenGrantFile() (int, error) {
	return unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
}
func (nullOpener) EventFiles() int { return 1 }
func (n nullOpener) OpenEventFiles(xen.Domid) ([]int, error) {
	fd, err := n.OpenGrantFile()
	return []int{fd}, err
}

// bench is an engine with doubles, and a disk.
type bench struct {
	*Processes
	t      *testing.T
	disk   *disk.Disk
	last   *double
	memory *blkplane.Guest
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, memory: blkplane.NewGuest(0)}
	path := filepath.Join(t.TempDir(), "disk.img")
	b.must(os.WriteFile(path, make([]byte, 1<<16), 0o600))
	var err error
	b.disk, err = disk.Open(t.Context(), disk.Options{Path: path})
	b.must(err)
	t.Cleanup(func() { b.must(b.disk.Close()) })
	b.Processes, err = NewProcesses(ProcessesConfig{
		Isolation: procs.IsolateGuest, Opener: nullOpener{}, Log: zap.NewNop(), MaxQueues: 3,
		Start: func() (procs.Child, error) { return b.start(), nil },
	})
	b.must(err)
	t.Cleanup(b.Processes.Close)
	return b
}

func (b *bench) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// start starts a double.
func (b *bench) start() *double {
	ours, theirs, err := procwire.Pair()
	b.must(err)
	d := &double{socket: ours, done: make(chan struct{}), links: map[uint32]uint32{}}
	d.conn, err = procwire.New(theirs, procwire.Config{In: toProcess(), Out: toBroker(), Handle: d.handle})
	b.must(err)
	d.conn.Serve()
	b.t.Cleanup(d.Kill)
	b.last = d
	return d
}

// link opens the link of a domain.
func (b *bench) link(domid xen.Domid) *remoteLink {
	turn := budget.NewHost(2).Guest().Turn()
	return b.Open(LinkConfig{Domid: domid, Name: "vbd-1-51712", Log: zap.NewNop(), Turn: turn, Memory: b.memory}).(*remoteLink)
}

// config is that of a connection with two queues.
func (b *bench) config(died func(error)) *Config {
	dir := b.t.TempDir()
	cfg := &Config{Disk: b.disk, Weight: 3, Notice: func(blkplane.Notice) {}, Died: died}
	for i := range 2 {
		cfg.Queues = append(cfg.Queues, blkplane.QueueConfig{
			Refs: []xen.Gref{xen.Gref(i)}, Port: 1, Journal: filepath.Join(dir, string(rune('a'+i))),
		})
	}
	return cfg
}

// closed waits until a channel is closed.
func (b *bench) closed(what string, c <-chan struct{}) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 10*time.Second)
	defer cancel()
	select {
	case <-c:
	case <-ctx.Done():
		b.t.Fatalf("%s: not closed", what)
	}
}

// TestConnection: a connection lives in a process, counts against the bounds of the host, and
// leaves nothing.
func TestConnection(t *testing.T) {
	b := newBench(t)
	l := b.link(1)
	c, err := l.Connect(b.config(nil))
	b.must(err)
	c.Start()
	c.Resize(100)
	if !c.Adopted() || c.Queues() != 2 || b.Queues() != 2 || b.memory.Weight() != 3 || c.Status(1).Size == 0 {
		t.Errorf("adopted %v, %d of %d queues, weight %d, %d slots", c.Adopted(), c.Queues(), b.Queues(), b.memory.Weight(), c.Status(1).Size)
	}
	other := b.link(2)
	if _, err := other.Connect(b.config(nil)); !errors.Is(err, blkplane.ErrThreads) {
		t.Errorf("more queues than the host has: %v", err)
	}
	other.End()
	b.closed("drained", c.Drain())
	c.Close()
	b.closed("done", c.Done())
	if c.Counters(1) != ([blkplane.NumCounters]uint64{}) || b.Queues() != 0 || b.memory.Weight() != 1 {
		t.Errorf("afterwards %d queues, weight %d", b.Queues(), b.memory.Weight())
	}
	l.End()
	if s := b.Status(); len(s) != 0 {
		t.Errorf("without links there are the processes %+v", s)
	}
}

// TestDeath: a connection whose process ends says so before it is done, and another process
// serves the next one. The end of the link does not wait for connections.
func TestDeath(t *testing.T) {
	b := newBench(t)
	l := b.link(1)
	var c Conn
	died := make(chan bool, 1)
	var err error
	c, err = l.Connect(b.config(func(error) {
		select {
		case <-c.Done():
			died <- false
		default:
			died <- true
		}
	}))
	b.must(err)
	first := b.last
	first.Kill()
	if !<-died {
		t.Error("it was done before it said that its process has died")
	}
	b.closed("done", c.Done())
	b.closed("drained", c.Drain())
	again, err := l.Connect(b.config(nil))
	b.must(err)
	c.SetWeight(9) // the vbd does not know yet that it has ended
	if b.last == first || b.Queues() != 2 || b.memory.Weight() != 3 {
		t.Errorf("%d queues, weight %d", b.Queues(), b.memory.Weight())
	}
	l.End() // while the connection is there
	again.Close()
	b.closed("done", again.Done())
	if s := b.Status(); len(s) != 0 {
		t.Errorf("without links there are the processes %+v", s)
	}
}

// TestLies: a process that says what it may not say is killed.
func TestLies(t *testing.T) {
	for name, put := range map[string]func(*procwire.Writer){
		"queue": func(w *procwire.Writer) { putNotice(w, &blkplane.Notice{Queue: 2}) },
		"kind":  func(w *procwire.Writer) { putNotice(w, &blkplane.Notice{Kind: blkplane.Held + 1}) },
		"cause": func(w *procwire.Writer) { putNotice(w, &blkplane.Notice{Reason: blkplane.NumCounters}) },
		"rest":  func(w *procwire.Writer) { putNotice(w, &blkplane.Notice{}); w.U8(0) },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			l := b.link(1)
			died := make(chan struct{})
			_, err := l.Connect(b.config(func(error) { close(died) }))
			b.must(err)
			var w procwire.Writer
			w.U32(l.seat.ID())
			w.U32(1)
			put(&w)
			b.must(b.last.conn.Post(kindNotice, w.Bytes()))
			b.closed("died", died)
			l.End()
		})
	}
}

// SPDX-License-Identifier: Apache-2.0

package blkplane

import (
	"errors"
	"fmt"
	"math/bits"
	"sync/atomic"
	"time"

	"github.com/netbackd/netbackd/internal/diskio"
	"github.com/netbackd/netbackd/internal/iouring"
	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
)

const (
	// DefaultQueueBytes is the memory of a queue for data in flight.
	DefaultQueueBytes = 16 << 20

	// maxChunk is the most bytes of one operation. Larger requests run as several.
	maxChunk = 512 << 10

	// maxChunkSegments is the most segments of one operation.
	maxChunkSegments = 512

	// metaBytes is the memory of a queue for indirect segments. A request takes up to
	// 8 pages of it until it is answered.
	metaBytes = 1 << 20

	// maxBatch is the most requests that a turn consumes.
	maxBatch = 64

	// maxOperations is the most operations under way at the disk, beside one flush.
	maxOperations = 256

	// RingEntries is the number of entries of a queue's io_uring.
	RingEntries = maxOperations + 1

	// maxCopies is the number of segments of one grant copy that may only be exceeded by
	// those of a single operation, and by indirect pages: 1 MiB. Without such a bound eight
	// writes of 1 MiB were copied before the first was submitted, which halved the speed.
	maxCopies = 256

	// maxAgain bounds the times that an operation which was interrupted is made again. The
	// frontend gets an error if the kernel has no thread for long.
	maxAgain = 1000

	// maxDeliver is the most reads whose data goes to the guest in one turn.
	maxDeliver = 16
)

// queue is one ring of a connected vbd. It belongs to its thread, except for what is
// shown and commands.
type queue struct {
	conn    *Conn
	index   int
	adopted bool  // a predecessor served the ring
	found   found // by the predecessor's journal
	*Shown
	tally tally

	commands atomic.Uint32
	bell     bell
	exchange *gntdev.Arena // a port that was read, and the port; nil: system calls
	asked    chan struct{} // closed with cmdClose
	drained  chan struct{} // closed when it has answered everything after cmdDrain
	ended    chan struct{} // closed when it has released everything

	// Devices.
	grants  Grants
	events  Events
	port    evtchn.Port // local; 0: not bound
	pages   *gntdev.Mapping
	ring    *blkif.Back
	journal *Journal
	engine  *diskio.Engine

	// State.
	state      state
	drainSent  bool // drained is closed
	rung       bool // there are commands
	deaf       bool // the bell does not wake it any more
	fired      bool // events has ports
	woken      bool // by an event, in this turn
	masked     bool // the port is to be unmasked
	unread     bool // the port that fired was not read
	failed     bool // an exchange failed
	noExchange bool // since then
	spurious   int  // events in a row that brought no request
	unmaskAt   time.Time
	more       bool // there is work, so it must not sleep
	resting    bool // asleep with a time limit
	sweepAt    time.Time
	turns      uint
	ports      [2]evtchn.Port
	limits     blkif.Limits
	noticed    [2]time.Time // last BadRequest and DiskError

	// Requests, by their entry in the journal.
	requests  []request
	free      []uint16 // entries
	pending   fifo     // consumed and not started, in ring order
	hungry    fifo     // started, with segments that no operation has yet
	started   int      // requests that were started and not finished
	waiting   []uint16 // flushes that wait for the next sync
	syncing   []uint16 // flushes that the sync under way answers
	syncAgain int      // times that the sync under way was made again
	barrier   int32    // entry of the write barrier that has begun; none
	// barrierWaits says that the first pending request is a barrier that was seen to wait.
	barrierWaits bool
	answers      []answer
	replies      []blkif.Response

	// A batch of requests that are being started.
	batch   []uint16
	decoded []blkif.Request
	fetched []int32 // of each request, its first copy of an indirect page

	// Operations.
	operations []operation
	freeOps    []uint16
	begun      []uint16 // writes whose data is being copied
	reads      []uint16 // reads whose data is to be copied
	copies     []gntdev.Segment
	done       []diskio.Completion
	data, meta *buffers
	share      share
	held       int64         // that the queue counts for in its guest's
	trimAt     time.Time     // earliest time of the next trim
	visit      visit         // to turns, which guards it
	lane       *lane         // of the disk's device
	laneAt     time.Duration // time of the last look at it
	laneTurns  uint
	units      int64           // that the queue has taken of it
	persistent *persistent     // nil: none
	vectors    *iouring.Iovecs // for operations on mapped pages; nil: there are none
}

// state is a queue's way from start to end.
type state uint8

const (
	serving  state = iota
	draining       // consumes no more
	closing        // starts no more; answers what is under way
	broken         // stopped for good: answers nothing
)

// fifo is a queue of entries, at most as many as the ring has.
type fifo struct {
	e          []uint16
	head, tail uint32
}

func newFIFO(n uint32) fifo   { return fifo{e: make([]uint16, n)} }
func (f *fifo) len() int      { return int(f.tail - f.head) }
func (f *fifo) push(e uint16) { f.e[f.tail&uint32(len(f.e)-1)] = e; f.tail++ }
func (f *fifo) first() uint16 { return f.e[f.head&uint32(len(f.e)-1)] }
func (f *fifo) pop()          { f.head++ }

// request is a request that was consumed.
type request struct {
	rsp    blkif.Response
	index  blkif.Index
	extent blkif.Extent
	kind   blkif.Op // what is done: read, write, barrier, flush, discard
	phase  phase    // of a barrier
	secure bool
	pages  int32 // block of its indirect segments in meta; none
	segs   []blkif.Segment
	next   int   // first segment that no operation has
	off    int64 // where it goes on the disk
	ops    int   // operations under way
	failed Counter
	direct [blkif.MaxDirect]blkif.Segment
}

// phase is a write barrier's progress.
type phase uint8

const (
	flushBefore phase = iota
	barrierWrite
	flushAfter
)

// operation is one transfer between the disk and a buffer: the segments first to end of a
// request.
type operation struct {
	entry      uint16
	first, end int
	block      int32 // of data
	units      int64 // of the device
	off        int64
	len, moved int
	again      int // times that it was made again

	copies, copiesEnd int  // its part of the grant copy
	vectored          bool // on mapped pages, without a block
}

// User values of the engine: the number of an operation, or one of these.
const (
	userSync = maxOperations + iota
	userEvents
	userWake
	userExchange
)

// newQueue opens what a queue needs before it can be served.
func newQueue(c *Conn, index int) (_ *queue, err error) {
	cfg := &c.cfg.Queues[index]
	n := len(cfg.Refs)
	if n < 1 || n > maxRingPages || n&(n-1) != 0 {
		return nil, fmt.Errorf("ring of %d pages: want 1, 2, 4, 8 or 16", n)
	}
	q := &queue{conn: c, index: index, Shown: cfg.Shown, bell: bell{fd: -1}, barrier: none,
		asked: make(chan struct{}), drained: make(chan struct{}), ended: make(chan struct{})}
	if q.Shown == nil {
		q.Shown = new(Shown)
	}
	defer func() {
		if err != nil {
			q.release()
		}
	}()
	if err = q.bell.open(); err != nil {
		return nil, err
	}
	grants, err := c.cfg.Host.OpenGrants()
	if err != nil {
		return nil, err
	}
	q.grants = grants
	if q.pages, err = q.grants.Map(c.cfg.Domid, cfg.Refs, gntdev.ReadWrite); err != nil {
		return nil, fmt.Errorf("map ring: %w", err)
	}
	events, err := c.cfg.Host.OpenEvents()
	if err != nil {
		return nil, err
	}
	q.events = events
	if q.port, err = q.events.BindInterdomain(c.cfg.Domid, cfg.Port); err != nil {
		return nil, fmt.Errorf("bind event channel: %w", err)
	}
	if err = q.attach(cfg); err != nil {
		return nil, err
	}
	return q, q.allocate()
}

// attach attaches to the ring: a new one, or that of a predecessor by its journal.
func (q *queue) attach(cfg *QueueConfig) (err error) {
	order := bits.Len(uint(len(cfg.Refs))) - 1
	if cfg.JournalFile > 0 {
		q.journal, err = adoptJournal(cfg.JournalFile, blkif.RingSize(order))
	} else if cfg.Journal == "" {
		q.journal = newJournal(blkif.RingSize(order))
	} else {
		q.journal, err = openJournal(cfg.Journal, blkif.RingSize(order))
	}
	if err != nil {
		return err
	}
	if f := q.conn.pool.opts.AtStep; f != nil {
		q.journal.hook = func(s step) { f(s.String()) }
	}
	mem := q.pages.Bytes()
	header, err := blkif.ReadHeader(mem)
	if err != nil {
		return err
	}
	if q.ring, err = blkif.AttachBack(mem, q.conn.cfg.Protocol); err != nil {
		return fmt.Errorf("ring: %w", err)
	}
	keys := &ringKeys{proto: q.conn.cfg.Protocol, port: cfg.Port, refs: cfg.Refs}
	if q.journal.names(keys, header.Stamp) {
		f, err := q.journal.examine(header.RspProd)
		if err == nil && q.sameRing(&f) {
			// Resume counts from rsp_prod as it is, so the batch that is to be
			// published again is among the requests in flight.
			q.adopted, q.found = true, f
			if q.journal.lost() {
				q.conn.lost.Store(true)
			}
			return q.ring.Resume(f.cons)
		}
		if header.RspProd != 0 {
			return ErrJournal
		}
	} else if header.RspProd != 0 {
		return ErrServed
	}
	stamp := xen.NewStamp()
	q.journal.begin(keys, stamp, header.RspProd)
	return blkif.WriteStamp(mem, stamp)
}

// sameRing reports whether the ring may be that of the journal, of which f is the content. A
// frontend that has made its ring anew may have left the stamp there. While a ring has no
// responses, the requests in flight are in it as they were consumed.
func (q *queue) sameRing(f *found) bool {
	if q.ring.RspProd() != 0 || q.journal.batches() > 1 {
		return true // their slots may have been overwritten
	}
	if n, err := q.ring.Available(); err != nil || uint32(f.cons) > n {
		return false
	}
	for _, list := range [...][]uint16{f.entries, f.answered} {
		for _, e := range list {
			i := q.journal.indexOf(e)
			if i < blkif.Index(len(f.replay)) {
				continue // a response may be there that was not published
			}
			var s blkif.Slot
			if q.ring.Copy(i, &s); s != *q.journal.slot(e) {
				return false
			}
		}
	}
	return true
}

// allocate makes the queue's tables.
func (q *queue) allocate() (err error) {
	n := q.ring.Size()
	q.requests = make([]request, n)
	q.free = make([]uint16, 0, n)
	q.pending, q.hungry = newFIFO(n), newFIFO(n)
	q.waiting, q.syncing = make([]uint16, 0, n), make([]uint16, 0, n)
	q.answers, q.replies = make([]answer, 0, n), make([]blkif.Response, 0, n)
	q.batch = make([]uint16, 0, maxBatch)
	q.decoded, q.fetched = make([]blkif.Request, maxBatch), make([]int32, maxBatch)
	q.operations = make([]operation, maxOperations)
	q.freeOps = make([]uint16, 0, maxOperations)
	for i := maxOperations - 1; i >= 0; i-- {
		q.freeOps = append(q.freeOps, uint16(i))
	}
	q.begun, q.reads = make([]uint16, 0, maxOperations), make([]uint16, 0, maxOperations)
	q.copies = make([]gntdev.Segment, 0, max(maxCopies, maxChunkSegments, maxBatch*blkif.MaxIndirectPages))
	q.done = make([]diskio.Completion, maxOperations)
	q.share = newShare(q.conn.cfg.Guest)
	q.conn.pool.turns.open(q, q.conn.cfg.Guest)
	q.lane = q.conn.pool.lanes.open(q.conn.cfg.Guest, q.conn.cfg.Disk)
	if q.conn.cfg.Persistent {
		q.persistent = newPersistent()
		if direct, _ := q.conn.cfg.Disk.Direct(); !direct {
			if q.vectors, err = newVectors(); err != nil {
				return err
			}
		}
	}
	if q.data, err = newBuffers(DefaultQueueBytes, maxChunk); err != nil {
		return err
	}
	q.meta, err = newBuffers(metaBytes, blkif.MaxIndirectPages*blkif.PageSize)
	return err
}

// release undoes newQueue, even if that failed half way. It returns false, and releases
// nothing, if operations are under way: the kernel may still write to the buffers.
func (q *queue) release() bool {
	var errs []error
	if q.engine != nil {
		err := q.engine.Close()
		if errors.Is(err, diskio.ErrBusy) {
			q.conn.pool.opts.Warn(fmt.Errorf("queue %d keeps its memory: %w", q.index, err))
			return false
		}
		errs = append(errs, err)
	}
	if q.persistent != nil {
		q.persistent.close(q)
	}
	if q.vectors != nil {
		errs = append(errs, q.vectors.Close())
	}
	for _, b := range []*buffers{q.data, q.meta} {
		if b != nil {
			errs = append(errs, b.close())
		}
	}
	q.hold(0)
	q.share.close() // a queue that has stopped does not end its operations one by one
	if q.lane != nil {
		q.lane.give(q.units)
		q.conn.pool.lanes.close(q.lane)
		q.conn.pool.turns.close(q)
	}
	q.ring = nil
	if q.pages != nil {
		errs = append(errs, q.pages.Unmap())
	}
	if q.journal != nil {
		errs = append(errs, q.journal.close())
	}
	if q.events != nil {
		errs = append(errs, q.events.Close()) // unbinds the port
	}
	if q.grants != nil {
		errs = append(errs, q.grants.Close())
	}
	q.bell.close()
	if q.exchange != nil {
		errs = append(errs, q.exchange.Close())
	}
	if err := errors.Join(errs...); err != nil {
		q.conn.pool.opts.Warn(fmt.Errorf("queue %d: release: %w", q.index, err))
	}
	return true
}

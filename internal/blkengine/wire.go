// SPDX-License-Identifier: Apache-2.0

package blkengine

import (
	"errors"

	"github.com/netbackd/netbackd/internal/blkplane"
	"github.com/netbackd/netbackd/internal/disk"
	"github.com/netbackd/netbackd/internal/procs"
	"github.com/netbackd/netbackd/internal/procwire"
	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Messages of the broker to a disk process, and their bodies. The broker numbers links and
// connections.
const (
	kindSetup   procwire.Kind = 1 + iota // setup -> ready
	kindConnect                          // link, connecting, with files -> adopted
	kindStart                            // connection
	kindDrain                            // connection
	kindClose                            // connection
	kindWeight                           // connection, weight
	kindResize                           // connection, sectors
	kindStamp                            // domid, gref, with a grant device -> stamp
	kindPing                             // -> health
)

// Messages of a disk process to the broker.
const (
	kindNotice  procwire.Kind = 64 + iota // link, connection, notice
	kindDrained                           // link, connection
	kindEnded                             // link, connection
)

const (
	// MaxQueues bounds the queues of a vbd of a disk process: by their number of files.
	MaxQueues = 32

	eventFiles = 2 // descriptors of an event channel device, at most
	queueFiles = 1 + eventFiles + 2
	maxRefs    = 1 << blkif.MaxOrder
	maxConnect = 16 << 10
	maxName    = 64
)

// toProcess are the rules of the broker's messages.
func toProcess() procwire.Rules {
	small := procwire.Size{Body: 64}
	answer := procwire.Size{Body: procs.AnswerSize + 64}
	state := procwire.Size{Body: procs.AnswerSize + procs.MaxJSON}
	notice := procwire.Rule{Notice: true, Ask: small}
	return procwire.Rules{
		kindSetup:   {Ask: small, Answer: state},
		kindConnect: {Ask: procwire.Size{Body: maxConnect, Files: 1, MaxFiles: 2 + MaxQueues*queueFiles}, Answer: answer},
		kindStart:   notice,
		kindDrain:   notice,
		kindClose:   notice,
		kindWeight:  notice,
		kindResize:  notice,
		kindStamp:   {Ask: procwire.Size{Body: 64, Files: 1, MaxFiles: 1}, Answer: answer},
		kindPing:    {Ask: small, Answer: state},
	}
}

// toBroker are the rules of the messages of a disk process, which may be in the hands of a guest.
func toBroker() procwire.Rules {
	small := procwire.Size{Body: 64}
	return procwire.Rules{
		kindNotice:  {Notice: true, Ask: procwire.Size{Body: procs.AnswerSize + 64}},
		kindDrained: {Notice: true, Ask: small},
		kindEnded:   {Notice: true, Ask: small},
	}
}

// causes are the errors that the answers of a disk process tell apart.
var causes = procs.Causes{blkif.ErrOverrun, blkplane.ErrThreads, blkplane.ErrServed, blkplane.ErrJournal}

// setup configures a disk process.
type setup struct {
	eventFiles int // descriptors of an event channel device
	noUring    bool
	maxQueues  int
	memory     int64 // of a guest's data in flight
}

func (s *setup) put(w *procwire.Writer) {
	w.U8(uint8(s.eventFiles))
	w.Bool(s.noUring)
	w.U32(uint32(s.maxQueues))
	w.I64(s.memory)
}

func (s *setup) take(r *procwire.Reader) {
	s.eventFiles, s.noUring, s.maxQueues, s.memory = int(r.U8()), r.Bool(), int(r.U32()), r.I64()
	if s.eventFiles < 1 || s.eventFiles > eventFiles {
		r.Fail()
	}
}

// connecting describes a connection for a disk process. Its files are those of [files].
type connecting struct {
	number   uint32
	domid    xen.Domid
	name     string // of the vbd
	cfg      Config // without files
	journals bool
	disk     disk.Description
}

func (c *connecting) put(w *procwire.Writer) {
	w.U32(c.number)
	w.U16(uint16(c.domid))
	w.String(c.name)
	w.U8(uint8(c.cfg.Protocol))
	w.U32(uint32(c.cfg.MaxSegments))
	w.U8(uint8(c.cfg.Weight))
	for _, v := range [...]bool{c.cfg.ReadOnly, c.cfg.Persistent, c.cfg.NoDiscard, c.journals} {
		w.Bool(v)
	}
	procs.PutJSON(w, &c.disk)
	w.U32(uint32(len(c.cfg.Queues)))
	for i := range c.cfg.Queues {
		q := &c.cfg.Queues[i]
		w.U32(uint32(q.Port))
		w.U32(uint32(len(q.Refs)))
		for _, ref := range q.Refs {
			w.U32(uint32(ref))
		}
	}
}

func (c *connecting) take(r *procwire.Reader) {
	c.number, c.domid, c.name = r.U32(), xen.Domid(r.U16()), r.String(maxName)
	c.cfg.Protocol, c.cfg.MaxSegments, c.cfg.Weight = blkif.Protocol(r.U8()), int(r.U32()), int(r.U8())
	c.cfg.ReadOnly, c.cfg.Persistent, c.cfg.NoDiscard, c.journals = r.Bool(), r.Bool(), r.Bool(), r.Bool()
	procs.TakeJSON(r, &c.disk)
	for range r.Count(MaxQueues, 12) {
		q := blkplane.QueueConfig{Port: evtchn.Port(r.U32())}
		for range r.Count(maxRefs, 4) {
			q.Refs = append(q.Refs, xen.Gref(r.U32()))
		}
		c.cfg.Queues = append(c.cfg.Queues, q)
	}
	if len(c.cfg.Queues) == 0 {
		r.Fail()
	}
}

// hasFile reports whether the disk is a file, and flushes whether queues have files for flushes.
func (c *connecting) hasFile() bool {
	return c.disk.Backing == disk.KindFile || c.disk.Backing == disk.KindBlock
}

func (c *connecting) flushes() bool { return c.hasFile() && !c.disk.ReadOnly }

// files returns the number of files of a connection: memory of what is shown, the disk, and of
// each queue a grant device, an event channel device, a journal and a file for flushes.
func (c *connecting) files(eventFiles int) int {
	each := 1 + eventFiles
	if c.journals {
		each++
	}
	if c.flushes() {
		each++
	}
	n := 1 + len(c.cfg.Queues)*each
	if c.hasFile() {
		n++
	}
	return n
}

func putStamp(w *procwire.Writer, s xen.Stamp) {
	for _, v := range s {
		w.U32(v)
	}
}

func takeStamp(r *procwire.Reader) (s xen.Stamp) {
	for i := range s {
		s[i] = r.U32()
	}
	return s
}

func putNotice(w *procwire.Writer, n *blkplane.Notice) {
	w.U8(uint8(n.Kind))
	w.U32(uint32(n.Queue))
	w.U16(uint16(n.Reason))
	text := ""
	if n.Err != nil {
		text = procs.Cut(n.Err.Error())
	}
	w.Blob([]byte(text))
}

// takeNotice reads a notice about one of so many queues.
func takeNotice(r *procwire.Reader, queues int) blkplane.Notice {
	n := blkplane.Notice{Kind: blkplane.NoticeKind(r.U8())}
	queue := r.U32()
	n.Reason = blkplane.Counter(r.U16())
	n.Err = errors.New(procs.Clean(r.Blob(procs.MaxText)))
	if n.Kind > blkplane.Held || uint64(queue) >= uint64(queues) || int(n.Reason) >= int(blkplane.NumCounters) {
		r.Fail()
		return blkplane.Notice{}
	}
	n.Queue = int(queue)
	return n
}

// Ready describes a disk process that has started.
type Ready struct {
	Uring string `json:"io_uring"`
}

// takeReady reads what a disk process tells of itself, which is shown.
func takeReady(r *procwire.Reader) (v Ready) {
	procs.TakeJSON(r, &v)
	v.Uring = procs.Clean([]byte(procs.Cut(v.Uring)))
	return v
}

// Health is the answer of a disk process to a ping.
type Health struct {
	Queues int `json:"queues"`
	Maps   int `json:"maps"` // persistent grants
}

// takeHealth reads the answer to a ping, which is shown.
func takeHealth(r *procwire.Reader) (h Health) {
	procs.TakeJSON(r, &h)
	if h.Queues < 0 || h.Maps < 0 {
		r.Fail()
	}
	return h
}

// SPDX-License-Identifier: Apache-2.0

package blkplane

import (
	"fmt"

	"github.com/netbackd/netbackd/internal/disk"
	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/xen"
)

// DefaultMaxSegments is the default of feature-max-indirect-segments: that of xen-blkback. By
// instructions on Xen, fio in a Linux guest reads 1 MiB at a time with 750, 827, 872, 888 and
// 888 MiB/s with 32, 64, 128, 256 and 1024 segments, and writes with 905, 979, 1021, 1043 and
// 1043. Linux's requests are no larger than 1280 KiB, 320 segments, by default.
const DefaultMaxSegments = 256

// Config configures a connection.
type Config struct {
	Host     Host
	Domid    xen.Domid
	Protocol blkif.Protocol

	// Disk serves all queues. Its owner closes it after [Conn.Done].
	Disk     *disk.Disk
	ReadOnly bool // every operation but reads is refused

	MaxSegments int  // as published in feature-max-indirect-segments; 0: no indirect requests
	Persistent  bool // both ends published feature-persistent
	NoDiscard   bool // discards are refused although the disk has them

	// Guest is the budget of the guest; nil: the connection has one of its own.
	Guest *Guest
	// Weight is as of [Conn.SetWeight]; 0: 1.
	Weight int

	Queues []QueueConfig

	// Notice is called from a queue's thread for events that the owner of the
	// connection must act on. It must not block.
	Notice func(Notice)
}

// QueueConfig configures one queue.
type QueueConfig struct {
	Refs    []xen.Gref  // pages of the ring: 1, 2, 4, 8 or 16
	Port    evtchn.Port // the frontend's
	Journal string      // path of the journal; "": it does not outlive the process
	// JournalFile is an open file of [OpenJournal], which counts before Journal and stays its
	// owner's; 0: there is none.
	JournalFile int
	// Shown is the memory of what is shown of the queue; nil: it has its own.
	Shown *Shown
}

// NoticeKind is the kind of a [Notice].
type NoticeKind uint8

// Kinds of notice.
const (
	// Broken: the queue has stopped for good, because the frontend broke the ring
	// protocol or because of an internal error. Err is the reason.
	Broken NoticeKind = iota
	// BadRequest: a request was refused, as the frontend should not have made it. It is
	// sent at most once a second for each queue. Reason is the counter.
	BadRequest
	// DiskError: a request failed at the disk. It is sent at most once a second for
	// each queue. Err is the error.
	DiskError
	// Held: the queue's thread does not come back from a call of the kernel. See [Pool.Watch].
	Held
)

func (k NoticeKind) String() string {
	switch k {
	case Broken:
		return "broken"
	case BadRequest:
		return "bad request"
	case DiskError:
		return "disk error"
	case Held:
		return "held"
	}
	return fmt.Sprintf("unknown(%d)", uint8(k))
}

// Notice is an event of a connection.
type Notice struct {
	Kind   NoticeKind
	Queue  int
	Reason Counter // of a BadRequest or a DiskError
	Err    error
}

// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"github.com/netbackd/netbackd/internal/lab/linerpc"
	"github.com/netbackd/netbackd/internal/lab/netfront"
	"github.com/netbackd/netbackd/internal/lab/traffic"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// This file has the types of the protocol: arguments and results of each command.

// defaultTimeout bounds a command that names no bound of its own.
const defaultTimeout = linerpc.DefaultTimeout

// Hello is the result in the agent's first line.
type Hello struct {
	PID int `json:"pid"`
}

// VifArgs names a vif; empty means the first one.
type VifArgs struct {
	Vif string `json:"vif,omitempty"`
}

// VifInfo describes a connected vif.
type VifInfo struct {
	Name    string          `json:"name"`
	MAC     string          `json:"mac"`
	State   xenbus.State    `json:"state"`
	Backend xenbus.State    `json:"backend"`
	Queues  int             `json:"queues"`
	Split   bool            `json:"split"`
	Control bool            `json:"control"`
	Offers  netfront.Offers `json:"offers"`
}

// VifStats holds the counters of a vif.
type VifStats struct {
	Name string `json:"name"`
	// Total counts all queues, those of earlier connections too.
	Total netfront.Stats `json:"total"`
	// Queues are those of the present connection.
	Queues []QueueStats `json:"queues"`
	// Violations describes the backend's breaches of the protocol, on all
	// connections; Total.Violations counts them.
	Violations []string `json:"violations,omitempty"`
	// Broken counts them by rule.
	Broken map[string]uint64 `json:"broken,omitempty"`
}

// QueueStats holds the counters of a queue.
type QueueStats struct {
	netfront.Stats
	Tx netif.RingState `json:"tx"`
	Rx netif.RingState `json:"rx"`
	// Error is the violation that ended the use of the queue.
	Error string `json:"error,omitempty"`
}

// PingArgs are the arguments of ping.
type PingArgs struct {
	Addr string `json:"addr"`
	traffic.PingOptions
}

// ServeArgs has the address to listen on, like ":7000".
type ServeArgs struct {
	Addr string `json:"addr"`
}

// Server names a server of the agent.
type Server struct {
	ID   int    `json:"server"`
	Addr string `json:"addr,omitempty"`
}

// JoinArgs has the multicast group to receive, like "239.1.2.3:7000", and the card.
type JoinArgs struct {
	Group string `json:"group"`
	VifArgs
}

// TCPSendArgs has the destination of a stream and its parameters.
type TCPSendArgs struct {
	Addr string `json:"addr"`
	traffic.TCPSend
}

// UDPSendArgs has the destination of a stream of packets and its parameters. Device is
// the card that sends multicast.
type UDPSendArgs struct {
	Addr   string `json:"addr"`
	Device string `json:"device,omitempty"`
	traffic.UDPSend
}

// McastArgs asks the backend for an edit of its multicast list.
type McastArgs struct {
	VifArgs
	Add  bool   `json:"add"`
	Addr string `json:"addr"` // Ethernet
}

// McastResult counts the outcomes of edits of the multicast list.
type McastResult struct {
	Okay   uint64   `json:"okay"`
	Failed uint64   `json:"failed"`
	List   []string `json:"list"` // the list that the backend should have now
}

// KeyArgs names a node of the frontend's directory or of the backend's.
type KeyArgs struct {
	VifArgs
	// Op is "read", "read-backend", "write" or "remove".
	Op    string `json:"op"`
	Key   string `json:"key"`
	Value string `json:"value,omitempty"`
}

// StateArgs has a state to write. The agent does not wait for the backend.
type StateArgs struct {
	VifArgs
	State xenbus.State `json:"state"`
}

// ConnectArgs connects a vif again, with the configuration Front if it is set.
type ConnectArgs struct {
	VifArgs
	Front *netfront.Config `json:"front,omitempty"`
}

// HashArgs configures hashing over the control ring.
type HashArgs struct {
	VifArgs
	netfront.Hash
}

// XDPArgs asks for room before each packet to the guest.
type XDPArgs struct {
	VifArgs
	Headroom uint16 `json:"headroom"` // bytes
}

// QueueArgs names a queue of a vif.
type QueueArgs struct {
	VifArgs
	Queue int `json:"queue"`
}

// StaticArgs asks the backend to keep the buffers of a queue mapped, at most Most of them
// if that is not 0, or to unmap them.
type StaticArgs struct {
	QueueArgs
	Most int  `json:"most,omitempty"`
	Off  bool `json:"off,omitempty"`
}

// Buffers are the grant references of a queue's buffers.
type Buffers struct {
	Tx []xen.Gref `json:"tx"` // for reading
	Rx []xen.Gref `json:"rx"` // for reading and writing
}

// ControlArgs is a message for the control ring.
type ControlArgs struct {
	VifArgs
	Type netif.CtrlType `json:"type"`
	Data []uint32       `json:"data,omitempty"`
	// Page, if there, is granted to the backend, and its reference put in
	// place of Data[PageAt].
	Page   []byte `json:"page,omitempty"`
	PageAt int    `json:"page_at,omitempty"`
	// ReadOnly grants the page for reading only.
	ReadOnly bool `json:"read_only,omitempty"`
}

// ControlResult has the response, and the content of the page after it.
type ControlResult struct {
	Status netif.CtrlStatus `json:"status"`
	Data   uint32           `json:"data"`
	Page   []byte           `json:"page,omitempty"`
}

// RawArgs are operations on the rings of a queue, done at once and without any check.
type RawArgs struct {
	QueueArgs
	Ops []RawOp `json:"ops,omitempty"`
}

// RawOp is one operation on a ring. Op is
//
//	tx         put a tx request: Ref, Page, Offset, Flags, RingID, Size
//	extra      put an extra behind it: Extra
//	flush      publish, and send an event if the backend asked for one
//	rx-target  keep Value buffers posted from now on
type RawOp struct {
	Op string `json:"op"`
	// Ref is a grant reference: a number, or "page" (a new page that holds
	// Page), "rx" (a page of the rx pool, which has one only while buffers are
	// withheld) or "bogus" (one that was never granted). Empty is 0.
	Ref    string        `json:"ref,omitempty"`
	Page   []byte        `json:"page,omitempty"`
	Offset uint16        `json:"offset,omitempty"`
	Flags  netif.TxFlags `json:"flags,omitempty"`
	// RingID is the request's id. Ordinary traffic uses the lowest 256, mixed
	// with the IDSalt.
	RingID uint16          `json:"ring_id,omitempty"`
	Size   uint16          `json:"size,omitempty"`
	Extra  netif.ExtraInfo `json:"extra,omitzero"`
	Value  int64           `json:"value,omitempty"`
}

// RawResult holds the responses to raw requests since the last command, and the
// state of the rings.
type RawResult struct {
	Tx     []netif.TxResponse `json:"tx,omitempty"`
	Grefs  []xen.Gref         `json:"grefs,omitempty"` // of each op that names a Ref
	TxRing netif.RingState    `json:"tx_ring"`
	RxRing netif.RingState    `json:"rx_ring"`
}

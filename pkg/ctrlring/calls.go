// SPDX-License-Identifier: Apache-2.0

package ctrlring

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
)

// HashHandler carries out a frontend's messages about hashing. Arguments are checked
// only as far as the methods state. A call that does not succeed changes nothing.
// Everything is reset when the frontend disconnects: algorithm none, no types, an empty
// key, no table.
type HashHandler interface {
	// GetHashFlags returns the supported hash types, a mask of 1<<netif.HashIPv4 and
	// so on. Without an algorithm it returns NOT_SUPPORTED.
	GetHashFlags() (types uint32, _ netif.CtrlStatus)

	// SetHashFlags sets the requested hash types; 0 stops hashing. It returns
	// INVALID_PARAMETER for unknown types and without an algorithm.
	SetHashFlags(types uint32) netif.CtrlStatus

	// SetHashKey replaces the key. It has at most 40 bytes; missing bytes are
	// zero.
	SetHashKey(key []byte) netif.CtrlStatus

	// GetHashMappingSize returns the largest number of entries of a table.
	GetHashMappingSize() (entries uint32, _ netif.CtrlStatus)

	// SetHashMappingSize replaces the table by one of that many entries, all of
	// them queue 0; with 0, by the hash modulo the number of queues. It returns
	// INVALID_PARAMETER for too many entries.
	SetHashMappingSize(entries uint32) netif.CtrlStatus

	// SetHashMapping sets the table's entries from offset on, at most 1024. It
	// returns INVALID_PARAMETER for entries beyond the table or that are not queues.
	SetHashMapping(offset uint32, queues []uint32) netif.CtrlStatus

	// ReplaceHashMapping replaces the table by one with these entries, 1 to 128,
	// at once. It returns INVALID_PARAMETER for an entry that is not a queue. Only
	// byte-stream rings use it.
	ReplaceHashMapping(queues []uint32) netif.CtrlStatus

	// SetHashAlgorithm sets netif.HashAlgorithmNone or HashAlgorithmToeplitz. It
	// returns INVALID_PARAMETER for others.
	SetHashAlgorithm(algorithm uint32) netif.CtrlStatus
}

// GrefHandler carries out a frontend's messages about static grants. The frontend is
// answered when a call returns, so the change must be complete then. The calls return
// INVALID_PARAMETER for a queue that does not exist.
type GrefHandler interface {
	// GetGrefMappingSize returns the number of grefs that a queue can keep mapped.
	GetGrefMappingSize(queue uint32) (grefs uint32, _ netif.CtrlStatus)

	// AddGrefMapping maps all of list, at most 512 entries, or none.
	AddGrefMapping(queue uint32, list []netif.GrefEntry) netif.CtrlStatus

	// DelGrefMapping unmaps the grefs in list that it can, at most 512 entries, sets
	// the Status of each, and returns the number of those with CtrlSuccess. It returns
	// INVALID_PARAMETER itself only if it has tried nothing.
	DelGrefMapping(queue uint32, list []netif.GrefEntry) (n uint32, _ netif.CtrlStatus)
}

// Mapper maps pages of a guest. *gntdev.Device is one.
type Mapper interface {
	Map(domid xen.Domid, refs []xen.Gref, prot gntdev.Prot) (*gntdev.Mapping, error)
}

// Limits of a page, and of the numbers in a message.
const (
	maxKey     = 40
	maxEntries = netif.PageSize / 4 // of a table, per message
	maxGrefs   = netif.PageSize / 8 // of a list
)

// Errors of messages that are refused before a handler is called.
var (
	errKeySize = errors.New("hash key is too long")
	errEntries = errors.New("more entries than a page has")
)

// Calls carries requests out. It copies the pages that a request names by gref, so
// handlers see nothing that the guest could still change.
type Calls struct {
	Domid  xen.Domid
	Mapper Mapper
	Hash   HashHandler // nil: not supported
	Grefs  GrefHandler // nil: not supported
}

// Start brings the handlers, which have been reset, into the state in which a connection
// of a protocol begins.
func (c *Calls) Start(p Protocol) {
	if p == Stream && c.Hash != nil {
		c.Hash.SetHashAlgorithm(netif.HashAlgorithmToeplitz)
		c.Hash.ReplaceHashMapping([]uint32{0})
	}
}

// Do carries a request out and returns the response. It blocks while pages are mapped
// and while handlers run.
func (c *Calls) Do(r Request) Response {
	switch {
	case r.Refused != netif.CtrlSuccess:
		return Response{Status: r.Refused}
	case r.Type >= netif.CtrlGetHashFlags && r.Type <= netif.CtrlSetHashAlgorithm && c.Hash != nil:
		return c.hash(r)
	case r.Type >= netif.CtrlGetGrefMappingSize && r.Type <= netif.CtrlDelGrefMapping && c.Grefs != nil:
		return c.grefs(r)
	}
	return Response{Status: netif.CtrlNotSupported}
}

func (c *Calls) hash(r Request) (rsp Response) {
	switch r.Type {
	case netif.CtrlGetHashFlags:
		rsp.Data, rsp.Status = c.Hash.GetHashFlags()
	case netif.CtrlSetHashFlags:
		rsp.Status = c.Hash.SetHashFlags(r.Data[0])
	case netif.CtrlSetHashKey:
		return c.setHashKey(r)
	case netif.CtrlGetHashMappingSize:
		rsp.Data, rsp.Status = c.Hash.GetHashMappingSize()
	case netif.CtrlSetHashMappingSize:
		rsp.Status = c.Hash.SetHashMappingSize(r.Data[0])
	case netif.CtrlSetHashMapping:
		return c.setHashMapping(r)
	case netif.CtrlSetHashAlgorithm:
		rsp.Status = c.Hash.SetHashAlgorithm(r.Data[0])
	}
	return rsp
}

func (c *Calls) setHashKey(r Request) Response {
	key := r.Key
	if r.Protocol == Slot {
		switch size := r.Data[1]; {
		case size > netif.PageSize:
			return invalid(fmt.Errorf("%w: %d bytes", errKeySize, size))
		case size > maxKey:
			return Response{Status: netif.CtrlBufferOverflow, Err: fmt.Errorf("%w: %d bytes", errKeySize, size)}
		}
		var err error
		if key, err = c.fetch(xen.Gref(r.Data[0]), int(r.Data[1])); err != nil {
			return invalid(err)
		}
	}
	return Response{Status: c.Hash.SetHashKey(key)}
}

func (c *Calls) setHashMapping(r Request) Response {
	if r.Protocol == Stream {
		return Response{Status: c.Hash.ReplaceHashMapping(r.Queues)}
	}
	n := r.Data[1]
	if n > maxEntries {
		return invalid(fmt.Errorf("%w: %d", errEntries, n))
	}
	b, err := c.fetch(xen.Gref(r.Data[0]), int(n)*4)
	if err != nil {
		return invalid(err)
	}
	queues := make([]uint32, n)
	for i := range queues {
		queues[i] = binary.LittleEndian.Uint32(b[4*i:])
	}
	return Response{Status: c.Hash.SetHashMapping(r.Data[2], queues)}
}

func (c *Calls) grefs(r Request) (rsp Response) {
	queue, ref, n := r.Data[0], xen.Gref(r.Data[1]), r.Data[2]
	if r.Type == netif.CtrlGetGrefMappingSize {
		rsp.Data, rsp.Status = c.Grefs.GetGrefMappingSize(queue)
		return rsp
	}
	if n > maxGrefs {
		return invalid(fmt.Errorf("%w: %d", errEntries, n))
	}
	if r.Type == netif.CtrlDelGrefMapping {
		return c.delGrefs(queue, ref, int(n))
	}
	// The list is only read, although it is granted writable according to the header.
	b, err := c.fetch(ref, int(n)*8)
	if err != nil {
		return invalid(err)
	}
	return Response{Status: c.Grefs.AddGrefMapping(queue, parseList(b))}
}

// delGrefs keeps the list mapped until the statuses are written. The list is mapped
// writable before anything is unmapped, so that they can be written.
func (c *Calls) delGrefs(queue uint32, ref xen.Gref, n int) (rsp Response) {
	if n == 0 {
		rsp.Data, rsp.Status = c.Grefs.DelGrefMapping(queue, nil)
		return rsp
	}
	m, err := c.Mapper.Map(c.Domid, []xen.Gref{ref}, gntdev.ReadWrite)
	if err != nil {
		return invalid(err)
	}
	page := m.Bytes()
	list := parseList(append([]byte(nil), page[:8*n]...))
	rsp.Data, rsp.Status = c.Grefs.DelGrefMapping(queue, list)
	if rsp.Status == netif.CtrlSuccess {
		for i := range list {
			binary.LittleEndian.PutUint16(page[8*i+6:], list[i].Status)
		}
	}
	rsp.Err = m.Unmap()
	return rsp
}

// parseList reads the entries of a list (struct xen_netif_gref).
func parseList(b []byte) []netif.GrefEntry {
	list := make([]netif.GrefEntry, len(b)/8)
	for i := range list {
		e := b[8*i:]
		list[i] = netif.GrefEntry{
			Ref:    xen.Gref(binary.LittleEndian.Uint32(e)),
			Flags:  binary.LittleEndian.Uint16(e[4:]),
			Status: binary.LittleEndian.Uint16(e[6:]),
		}
	}
	return list
}

// fetch copies the first n bytes of a page, which may be granted read-only. If n is 0 it
// does not map the page.
func (c *Calls) fetch(ref xen.Gref, n int) ([]byte, error) {
	if n == 0 {
		return nil, nil
	}
	m, err := c.Mapper.Map(c.Domid, []xen.Gref{ref}, gntdev.ReadOnly)
	if err != nil {
		return nil, err
	}
	b := append([]byte(nil), m.Bytes()[:n]...)
	return b, m.Unmap()
}

func invalid(err error) Response {
	return Response{Status: netif.CtrlInvalidParameter, Err: err}
}

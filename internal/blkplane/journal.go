// SPDX-License-Identifier: Apache-2.0

package blkplane

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Journal is the record of one queue's requests: pages that outlive the daemon, normally
// a file on /run.
//
// Responses are given in any order, and each overwrites the request of another slot. So
// after a crash the ring does not say which requests were in flight, nor what they were.
// The journal does. It has an entry for each request that was consumed and not answered,
// with the bytes of its slot, and the index up to which requests were consumed.
//
// Layout, in native words:
//
//	 0  magic and version
//	 1  entries: the slots of the ring
//	 2  connection: protocol, port, number of grefs, 16 grefs, stamp of 4 words
//	25  req_cons: requests before it were consumed
//	26  responses: sequence, base, count
//	29  not 0 if a flush has failed
//	32  responses, 4 words each: id, op and status, index of the request
//	    entries, 32 words each: state, index of the request, slot of 28 words, -
//
// # Order of stores
//
// To consume requests: the slot and the index of an entry, its state, and so on for each;
// then req_cons. An entry at or beyond req_cons does not count, and its request is still
// in the ring.
//
// To answer: the responses with their base, which are valid while the sequence is even and
// not 0; the slots of the ring; rsp_prod; then the entries become free.
//
// So at any instruction a successor knows: rsp_prod is at the base, then the responses are
// written and published again, every store being the same; or it is behind the batch, then
// it was published. In both cases the entries of the batch become free, and each entry that
// is still in flight has no response: its request is started again, in the order of the
// ring. All requests may be repeated: a frontend that has no answer to a write does not
// know which data is on the disk.
//
// # Identity
//
// A journal belongs to one connection, whose stamp is in the ring page as well
// ([xen.Stamp]). For any other connection it counts as empty.
type Journal struct {
	words  []uint32
	mem    []byte
	n      uint32 // entries
	mapped bool   // from a file

	// hook is called at each step, in tests alone.
	hook func(step)
}

const (
	journalMagic = 0x6e626231 // "nbb1"

	jMagic   = 0
	jEntries = 1
	jProto   = 2
	jPort    = 3
	jNumRefs = 4
	jRefs    = 5
	jStamp   = jRefs + maxRingPages
	jCons    = jStamp + len(xen.Stamp{})
	jSeq     = jCons + 1
	jBase    = jCons + 2
	jCount   = jCons + 3
	jLost    = jCons + 4
	jRsp     = 32
	rspWords = 4

	entryWords = 32
	eState     = 0
	eIndex     = 1
	eSlot      = 2

	entryFree     = 0
	entryInFlight = 1

	maxRingPages = 1 << blkif.MaxOrder
)

const (
	_ = uint(jRsp - jLost - 1)                          // the header fits
	_ = uint(entryWords - eSlot - len(blkif.Slot{})/4)  // a slot fits
	_ = uint(len(blkif.Slot{})/4*4 - len(blkif.Slot{})) // and is made of words
)

// journalSize returns the bytes of a journal of n entries, in whole pages.
func journalSize(n uint32) int {
	words := jRsp + int(n)*(rspWords+entryWords)
	return (words*4 + 4095) &^ 4095
}

// openJournal opens the journal in the file at path, for a ring of n slots, and creates it
// if necessary.
func openJournal(path string, n uint32) (*Journal, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("journal %s: %w", path, err)
	}
	defer unix.Close(fd) // the mapping stays
	j, err := mapJournal(fd, n)
	if err != nil {
		return nil, fmt.Errorf("journal %s: %w", path, err)
	}
	return j, nil
}

// OpenJournal opens the journal at path for a ring of so many pages, for another process that
// maps it, and creates it if necessary. It has its size then.
func OpenJournal(path string, pages int) (fd int, err error) {
	fd, err = unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err == nil {
		if err = allocate(fd, journalSize(blkif.RingSize(bits.Len(uint(pages))-1))); err == nil {
			return fd, nil
		}
		err = errors.Join(err, unix.Close(fd))
	}
	return -1, fmt.Errorf("journal %s: %w", path, err)
}

// allocate gives a journal its size.
func allocate(fd, size int) error {
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		return err
	}
	// Without its pages allocated, a store would be SIGBUS on a full file system.
	if err := unix.Fallocate(fd, 0, 0, int64(size)); err != nil && err != unix.EOPNOTSUPP {
		return err
	}
	return nil
}

// adoptJournal maps the journal in a file of OpenJournal.
func adoptJournal(fd int, n uint32) (*Journal, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	if st.Size != int64(journalSize(n)) {
		return nil, fmt.Errorf("journal of %d bytes: want %d", st.Size, journalSize(n))
	}
	return viewJournal(fd, n)
}

func mapJournal(fd int, n uint32) (*Journal, error) {
	if err := allocate(fd, journalSize(n)); err != nil {
		return nil, err
	}
	return viewJournal(fd, n)
}

// viewJournal maps a journal that has its size.
func viewJournal(fd int, n uint32) (*Journal, error) {
	mem, err := unix.Mmap(fd, 0, journalSize(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return &Journal{words: journalWords(mem), mem: mem, n: n, mapped: true}, nil
}

// newJournal returns a journal that does not outlive the process.
func newJournal(n uint32) *Journal {
	words := make([]uint32, journalSize(n)/4)
	return &Journal{words: words, n: n}
}

// close unmaps the journal. The file stays for a successor.
func (j *Journal) close() error {
	if !j.mapped {
		return nil
	}
	j.mapped, j.words = false, nil
	return unix.Munmap(j.mem)
}

// ringKeys identifies the ring of a connection.
type ringKeys struct {
	proto blkif.Protocol
	port  evtchn.Port
	refs  []xen.Gref
}

// names reports whether the journal belongs to the connection of k, whose ring has this
// stamp.
func (j *Journal) names(k *ringKeys, stamp xen.Stamp) bool {
	w := j.words
	if load(w, jMagic) != journalMagic || w[jEntries] != j.n || stamp.IsZero() ||
		w[jProto] != uint32(k.proto) || w[jPort] != uint32(k.port) || w[jNumRefs] != uint32(len(k.refs)) {
		return false
	}
	for i, ref := range k.refs {
		if w[jRefs+i] != uint32(ref) {
			return false
		}
	}
	return slices.Equal(w[jStamp:jStamp+len(stamp)], stamp[:])
}

// begin empties the journal and assigns it to a new connection, of which cons requests
// were consumed and answered.
func (j *Journal) begin(k *ringKeys, stamp xen.Stamp, cons blkif.Index) {
	w := j.words
	store(w, jMagic, 0)
	clear(w[1:])
	w[jEntries] = j.n
	w[jProto], w[jPort], w[jNumRefs] = uint32(k.proto), uint32(k.port), uint32(len(k.refs))
	for i, ref := range k.refs {
		w[jRefs+i] = uint32(ref)
	}
	copy(w[jStamp:], stamp[:])
	w[jCons], w[jBase] = uint32(cons), uint32(cons)
	store(w, jMagic, journalMagic)
}

// entry returns the first word of an entry.
func (j *Journal) entry(e uint16) uint32 { return jRsp + j.n*rspWords + uint32(e)*entryWords }

// slot returns the memory for the slot of an entry.
func (j *Journal) slot(e uint16) *blkif.Slot { return slotAt(j.words, j.entry(e)+eSlot) }

// enter records that the request at index i is in flight. Its slot is in the entry.
func (j *Journal) enter(e uint16, i blkif.Index) {
	at := j.entry(e)
	j.words[at+eIndex] = uint32(i)
	j.at(stepSlot)
	store(j.words, at+eState, entryInFlight)
	j.at(stepState)
}

// consumed records that all requests before i were consumed.
func (j *Journal) consumed(i blkif.Index) {
	store(j.words, jCons, uint32(i))
	j.at(stepCons)
}

// lose records that a flush of the connection has failed.
func (j *Journal) lose() { store(j.words, jLost, 1) }

// lost reports whether a flush of the connection has failed.
func (j *Journal) lost() bool { return load(j.words, jLost) != 0 }

// answer is a response with the entry of its request.
type answer struct {
	rsp   blkif.Response
	index blkif.Index
	entry uint16
}

// record records that the responses of a batch go into the ring from base on.
func (j *Journal) record(base blkif.Index, batch []answer) {
	w := j.words
	seq := load(w, jSeq) | 1
	store(w, jSeq, seq)
	j.at(stepOpen)
	w[jBase], w[jCount] = uint32(base), uint32(len(batch))
	for i := range batch {
		a := &batch[i]
		at := jRsp + uint32(i)*rspWords
		w[at], w[at+1] = uint32(a.rsp.ID), uint32(a.rsp.ID>>32)
		w[at+2] = uint32(a.rsp.Op) | uint32(uint16(a.rsp.Status))<<16
		w[at+3] = uint32(a.index)
		j.at(stepRsp)
	}
	if seq++; seq == 0 {
		seq = 2
	}
	store(w, jSeq, seq)
	j.at(stepRecord)
}

// release frees the entry of a request that was answered.
func (j *Journal) release(e uint16) {
	store(j.words, j.entry(e)+eState, entryFree)
	j.at(stepFree)
}

// found holds the requests of a ring that a journal knows.
type found struct {
	cons     blkif.Index
	replay   []blkif.Response // to be published from rsp_prod on
	entries  []uint16         // in flight, in the order of the ring
	answered []uint16         // of responses that were or will be published, still in flight
}

// examine reads the journal of a ring that is at rspProd. It changes nothing. The error is
// ErrJournal, if the journal contradicts itself or the ring.
func (j *Journal) examine(rspProd blkif.Index) (f found, err error) {
	w := j.words
	f.cons = blkif.Index(w[jCons])
	answered := map[uint32]bool{}
	if seq := load(w, jSeq); seq != 0 && seq&1 == 0 {
		n, base := w[jCount], blkif.Index(w[jBase])
		if n > j.n || rspProd != base && rspProd != base+blkif.Index(n) {
			return f, ErrJournal
		}
		for i := range n {
			at := jRsp + i*rspWords
			answered[w[at+3]] = true
			if rspProd == base {
				f.replay = append(f.replay, blkif.Response{
					ID: uint64(w[at]) | uint64(w[at+1])<<32,
					Op: blkif.Op(w[at+2]), Status: blkif.Status(w[at+2] >> 16),
				})
			}
		}
		if uint32(len(answered)) != n {
			return f, ErrJournal
		}
	}
	seen := map[uint32]bool{}
	for e := range uint16(j.n) {
		at := j.entry(e)
		index := w[at+eIndex]
		// A request may be in flight while any number of later ones are answered, so its
		// index may be far behind.
		if w[at+eState] != entryInFlight || int32(index-uint32(f.cons)) >= 0 {
			continue // free, or not consumed
		}
		switch {
		case answered[index]:
			f.answered = append(f.answered, e)
		case seen[index]:
			return f, ErrJournal
		default:
			f.entries = append(f.entries, e)
		}
		seen[index] = true
	}
	// Each request that was consumed is either answered or in flight. Those with responses to
	// publish have their entries still.
	if uint32(f.cons-rspProd) != uint32(len(f.replay)+len(f.entries)) || len(f.answered) < len(f.replay) {
		return f, ErrJournal
	}
	slices.SortFunc(f.entries, func(a, b uint16) int {
		return int(int32(w[j.entry(a)+eIndex] - w[j.entry(b)+eIndex]))
	})
	return f, nil
}

// batches returns the number of batches of responses that were recorded, which wraps after 2^31.
func (j *Journal) batches() uint32 { return load(j.words, jSeq) / 2 }

// settle frees all entries except those that are in flight. The replay has been published.
func (j *Journal) settle(f *found) {
	for e := range uint16(j.n) {
		if !slices.Contains(f.entries, e) {
			store(j.words, j.entry(e)+eState, entryFree)
		}
	}
}

// indexOf returns the index of an entry's request.
func (j *Journal) indexOf(e uint16) blkif.Index { return blkif.Index(j.words[j.entry(e)+eIndex]) }

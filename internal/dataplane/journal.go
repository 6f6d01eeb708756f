// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Journal is the write-ahead log of one queue's responses: one page that
// outlives the daemon, normally a file on /run.
//
// Responses overwrite requests in the ring. A daemon killed between the first of them
// and the store that publishes them would leave slots that are neither. So a batch is
// recorded here first. If rsp_prod is still where the batch began, a successor writes
// the batch again from the record: every store is the same.
//
// A journal belongs to one connection, whose stamp is in the ring pages as well
// ([netif.Stamp]). For any other connection it counts as empty, even if its grefs are
// the same.
//
// Layout, in native words:
//
//	  0  magic and version
//	  8  connection: tx gref, rx gref
//	 16  tx: sequence, base, count, -
//	 32  tx responses, 256 x 4 bytes
//	1056  rx: sequence, base, count, -
//	1072  rx slots, 256 x 8 bytes
//	3120  multicast: 1 if the list is here, count
//	3128  addresses, 64 x 8 bytes
//	3640  connection: stamp, 16 bytes
//
// Version 1 is the same without the stamp.
//
// A record is valid while its sequence is even and not 0; it is made odd before
// the record is changed.
type Journal struct {
	page   journalPage
	mem    []byte
	mapped bool // from a file
}

// JournalSize is the size of a journal.
const JournalSize = 4096

const (
	journalMagic     = 0x6e626a32 // "nbj2"
	journalUnstamped = 0x6e626a31 // "nbj1"

	jMagic   = 0
	jTxGref  = 2
	jRxGref  = 3
	jTx      = 4
	jTxSlots = jTx + 4
	jRx      = jTxSlots + netif.TxRingSize
	jRxSlots = jRx + 4
	jMcast   = jRxSlots + 2*netif.RxRingSize
	jAddrs   = jMcast + 2
	jStamp   = jAddrs + 2*MaxMcast

	jSeq, jBase, jCount = 0, 1, 2 // within a record
)

const _ = uint(JournalSize/4 - (jStamp + len(netif.Stamp{}))) // it fits

// RingKeys identifies the rings of a queue.
type RingKeys struct {
	TxGref, RxGref xen.Gref
	Tx, Rx         netif.Header // as read from the ring pages
}

// Served reports whether a response was ever published in one of the rings.
func (k *RingKeys) Served() bool { return k.Tx.RspProd != 0 || k.Rx.RspProd != 0 }

// OpenJournal opens the journal in the file at path and creates it if necessary. Its
// records are valid for rings that it names and agrees with; for others it must be
// emptied with [Journal.Begin].
func OpenJournal(path string) (*Journal, error) {
	fd, err := OpenJournalFile(path)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd) // the mapping stays
	j, err := MapJournal(fd)
	if err != nil {
		return nil, fmt.Errorf("journal %s: %w", path, err)
	}
	return j, nil
}

// OpenJournalFile opens the file at path for a journal, creates it if necessary, and gives
// it the size of one. It returns its descriptor, which is for [MapJournal].
func OpenJournalFile(path string) (fd int, err error) {
	fd, err = unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err == nil {
		if err = sizeJournal(fd); err != nil {
			_ = unix.Close(fd)
		}
	}
	if err != nil {
		return -1, fmt.Errorf("journal %s: %w", path, err)
	}
	return fd, nil
}

// sizeJournal gives a file the size of a journal.
func sizeJournal(fd int) error {
	if err := unix.Ftruncate(fd, JournalSize); err != nil {
		return err
	}
	// Without its page allocated, a store would be SIGBUS on a full file system.
	if err := unix.Fallocate(fd, 0, 0, JournalSize); err != nil && err != unix.EOPNOTSUPP {
		return err
	}
	return nil
}

// MapJournal returns the journal in a file that [OpenJournalFile] has opened. The file may
// be closed after that.
func MapJournal(fd int) (*Journal, error) {
	mem, err := unix.Mmap(fd, 0, JournalSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return &Journal{page: newJournalPage(mem), mem: mem, mapped: true}, nil
}

// NewJournal returns a journal that does not outlive the process.
func NewJournal() *Journal {
	mem := make([]byte, JournalSize)
	return &Journal{page: newJournalPage(mem), mem: mem}
}

// Names reports whether the journal has the grefs of these rings, and the stamp that is
// in both. A journal of a daemon that made no stamps is compared by grefs alone; then
// Stamp is zero, and the grefs may be those of other rings by now.
func (j *Journal) Names(k *RingKeys) bool {
	p := j.page
	if xen.Gref(p.load(jTxGref)) != k.TxGref || xen.Gref(p.load(jRxGref)) != k.RxGref {
		return false
	}
	s := j.Stamp()
	return !s.IsZero() && k.Tx.Stamp == s && k.Rx.Stamp == s || p.load(jMagic) == journalUnstamped
}

// Agrees reports whether the rings have been served exactly as far as the journal says.
// It detects rings that a frontend initialised again, even with the old stamp still in
// them, because such rings have not been served at all. It cannot detect them if the old
// rings had at most one batch of responses.
func (j *Journal) Agrees(k *RingKeys) bool {
	return j.servedTo(jTx, k.Tx.RspProd) && j.servedTo(jRx, k.Rx.RspProd)
}

// servedTo reports whether a ring with this rsp_prod is at the beginning or at the end of
// the batch of the record at r. A record that was being changed agrees with any ring;
// it is not replayed.
func (j *Journal) servedTo(r uint32, rspProd netif.Index) bool {
	if j.page.load(r+jSeq)&1 != 0 {
		return true
	}
	base := netif.Index(j.page.load(r + jBase))
	return rspProd == base || rspProd == base.Add(j.page.load(r+jCount))
}

// stamp returns the stamp field.
func (j *Journal) stamp() (s netif.Stamp) {
	for i := range s {
		s[i] = j.page.load(jStamp + uint32(i))
	}
	return s
}

// Stamp returns the stamp of the journal's connection. It is zero if the journal was
// never written, or was written by a daemon that made no stamps.
func (j *Journal) Stamp() netif.Stamp {
	if j.page.load(jMagic) != journalMagic {
		return netif.Stamp{}
	}
	return j.stamp()
}

// Begin empties the journal and assigns it to a new connection.
func (j *Journal) Begin(s netif.Stamp, txGref, rxGref xen.Gref) {
	p := j.page
	p.store(jMagic, 0)
	clear(j.mem[4:])
	p.store(jTxGref, uint32(txGref))
	p.store(jRxGref, uint32(rxGref))
	j.Restamp(s)
}

// Restamp changes the stamp of the journal's connection and keeps the records.
func (j *Journal) Restamp(s netif.Stamp) {
	for i, w := range s {
		j.page.store(jStamp+uint32(i), w)
	}
	j.page.store(jMagic, journalMagic)
}

// Close unmaps the journal. The file stays for a successor.
func (j *Journal) Close() error {
	if !j.mapped {
		return nil
	}
	j.mapped = false
	return unix.Munmap(j.mem)
}

// begin opens the record at r for change and returns its odd sequence. The atomic stores
// of begin and end keep the compiler from moving the record's own stores out of the pair.
func (j *Journal) begin(r uint32) uint32 {
	seq := j.page.load(r+jSeq) | 1
	j.page.store(r+jSeq, seq)
	return seq
}

// end makes the record at r valid. seq is the result of begin.
func (j *Journal) end(r, seq uint32) {
	seq++
	if seq == 0 {
		seq = 2
	}
	j.page.store(r+jSeq, seq)
}

// recordTx records that the responses rsp go into the ring from base on.
func (j *Journal) recordTx(base netif.Index, rsp []netif.TxResponse) {
	seq := j.begin(jTx)
	j.page.put(jTx+jBase, uint32(base))
	j.page.put(jTx+jCount, uint32(len(rsp)))
	for i, r := range rsp {
		j.page.put(jTxSlots+uint32(i), uint32(r.ID)|uint32(uint16(r.Status))<<16)
	}
	j.end(jTx, seq)
}

// recordRx records that the slots go into the ring from base on.
func (j *Journal) recordRx(base netif.Index, slots []netif.RxSlot) {
	seq := j.begin(jRx)
	j.page.put(jRx+jBase, uint32(base))
	j.page.put(jRx+jCount, uint32(len(slots)))
	copy(j.page.rxSlots()[:], slots)
	j.end(jRx, seq)
}

// pending returns the number of slots of the record at r, if its batch began at base and
// may not have been published.
func (j *Journal) pending(r uint32, base netif.Index, limit uint32) (n uint32, ok bool) { //nolint:unparam // both rings happen to have 256 slots
	p := j.page
	if seq := p.load(r + jSeq); seq == 0 || seq&1 != 0 {
		return 0, false
	}
	n = p.load(r + jCount)
	return n, n != 0 && n <= limit && netif.Index(p.load(r+jBase)) == base
}

// Replay publishes the batches that are in the journal and not in the rings, which were
// just attached. It reports whether there were any; then the frontend must be notified,
// since its event may have been lost.
func (j *Journal) Replay(tx *netif.TxBack, rx *netif.RxBack) (replayed bool) {
	p := j.page
	if n, ok := j.pending(jTx, tx.RspProd(), netif.TxRingSize); ok && available(tx, n) {
		rsp := make([]netif.TxResponse, n)
		for i := range rsp {
			w := p.load(jTxSlots + uint32(i))
			rsp[i].ID, rsp[i].Status = uint16(w), netif.Status(w>>16)
		}
		tx.Consume(n)
		tx.Commit(rsp)
		replayed = true
	}
	if n, ok := j.pending(jRx, rx.RspProd(), netif.RxRingSize); ok && available(rx, n) {
		slots := make([]netif.RxSlot, n)
		for i := range slots {
			slots[i] = netif.RxSlot{p.load(jRxSlots + 2*uint32(i)), p.load(jRxSlots + 2*uint32(i) + 1)}
		}
		rx.Consume(n)
		rx.Commit(slots)
		replayed = true
	}
	return replayed
}

// available reports whether a ring has n requests.
func available(r interface{ Available() (uint32, error) }, n uint32) bool {
	a, err := r.Available()
	return err == nil && a >= n
}

// String returns the heads of both records.
func (j *Journal) String() string {
	p := j.page
	return fmt.Sprintf("tx seq %d base %d count %d, rx seq %d base %d count %d",
		p.load(jTx+jSeq), p.load(jTx+jBase), p.load(jTx+jCount),
		p.load(jRx+jSeq), p.load(jRx+jBase), p.load(jRx+jCount))
}

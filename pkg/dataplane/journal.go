// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/netif"
)

// Journal is the write-ahead log of one queue's responses: one page that
// outlives the daemon, normally a file on /run.
//
// Responses replace requests in the ring, and between the first of them and the
// store that publishes them a killed daemon would leave slots that are neither.
// So a batch is recorded here first. A successor finds the record, and if
// rsp_prod still stands where the batch began, writes the batch again: every
// store it repeats is the same.
//
// Layout, in native words:
//
//	  0  magic and version
//	  8  connection: tx gref, rx gref
//	 16  tx: sequence, base, count, -
//	 32  tx responses, 256 x 4 octets
//	1056  rx: sequence, base, count, -
//	1072  rx slots, 256 x 8 octets
//	3120  multicast: 1 if kept here, count
//	3128  addresses, 64 x 8 octets
//
// A record is valid while its sequence is even and not 0; it is made odd before
// the record is changed.
type Journal struct {
	page journalPage
	mem  []byte
	fd   int
}

// JournalSize is the size of a journal.
const JournalSize = 4096

const (
	journalMagic = 0x6e626a31 // "nbj1"

	jMagic   = 0
	jTxGref  = 2
	jRxGref  = 3
	jTx      = 4
	jTxSlots = jTx + 4
	jRx      = jTxSlots + netif.TxRingSize
	jRxSlots = jRx + 4
	jMcast   = jRxSlots + 2*netif.RxRingSize
	jAddrs   = jMcast + 2

	jSeq, jBase, jCount = 0, 1, 2 // within a record
)

const _ = uint(JournalSize/4 - (jAddrs + 2*MaxMcast)) // it fits

// OpenJournal opens the journal in the file at path and makes it if it is not
// there. A record in it counts only for the connection with the same ring
// grefs; for another one the journal is cleared.
func OpenJournal(path string, txGref, rxGref netif.Gref) (*Journal, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("journal %s: %w", path, err)
	}
	j, err := mapJournal(fd, txGref, rxGref)
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("journal %s: %w", path, err)
	}
	return j, nil
}

func mapJournal(fd int, txGref, rxGref netif.Gref) (*Journal, error) {
	if err := unix.Ftruncate(fd, JournalSize); err != nil {
		return nil, err
	}
	// A store to a page that a full file system has no room for is SIGBUS.
	if err := unix.Fallocate(fd, 0, 0, JournalSize); err != nil && err != unix.EOPNOTSUPP {
		return nil, err
	}
	mem, err := unix.Mmap(fd, 0, JournalSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	j := &Journal{page: newJournalPage(mem), mem: mem, fd: fd}
	j.bind(txGref, rxGref)
	return j, nil
}

// NewJournal makes a journal that does not outlive the process, for uses where
// nobody takes over.
func NewJournal() *Journal {
	mem := make([]byte, JournalSize)
	return &Journal{page: newJournalPage(mem), mem: mem, fd: -1}
}

func (j *Journal) bind(txGref, rxGref netif.Gref) {
	p := j.page
	if p.load(jMagic) == journalMagic && p.load(jTxGref) == txGref && p.load(jRxGref) == rxGref {
		return
	}
	p.store(jMagic, 0)
	clear(j.mem[4:])
	p.store(jTxGref, txGref)
	p.store(jRxGref, rxGref)
	p.store(jMagic, journalMagic)
}

// Close unmaps the journal. The file stays for a successor.
func (j *Journal) Close() error {
	if j.fd < 0 {
		return nil
	}
	err := errors.Join(unix.Munmap(j.mem), unix.Close(j.fd))
	j.fd = -1
	return err
}

// begin opens the record at r for change; end makes it valid. The pair of
// atomic stores keeps the compiler from moving the record's own stores out.
func (j *Journal) begin(r uint32) uint32 {
	seq := j.page.load(r+jSeq) | 1
	j.page.store(r+jSeq, seq)
	return seq
}

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

// pending reports the batch of the record at r that was begun at base and may
// not have been published.
func (j *Journal) pending(r uint32, base netif.Index, limit uint32) (n uint32, ok bool) { //nolint:unparam // that both rings have 256 slots is chance
	p := j.page
	if seq := p.load(r + jSeq); seq == 0 || seq&1 != 0 {
		return 0, false
	}
	n = p.load(r + jCount)
	return n, n != 0 && n <= limit && netif.Index(p.load(r+jBase)) == base
}

// Replay finishes the batches that the journal records and the rings, just
// attached, do not show yet. It reports whether there were any; then the
// frontend is to be notified, since its event may have been lost.
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

func available(r interface{ Available() (uint32, error) }, n uint32) bool {
	a, err := r.Available()
	return err == nil && a >= n
}

// String shows what the journal holds.
func (j *Journal) String() string {
	p := j.page
	return fmt.Sprintf("tx seq %d base %d count %d, rx seq %d base %d count %d",
		p.load(jTx+jSeq), p.load(jTx+jBase), p.load(jTx+jCount),
		p.load(jRx+jSeq), p.load(jRx+jBase), p.load(jRx+jCount))
}

// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/iouring"
	"github.com/netbackd/netbackd/internal/lab/bench"
	"github.com/netbackd/netbackd/internal/offload"
	"github.com/netbackd/netbackd/internal/rawio"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
)

// floor moves packets between the guest's pages and the TAP, and does nothing else. Its
// time is the room of a lane: what the lane would take if netbackd's own work took no time.
//
// It has the lane's process, thread and CPU, TAP queue and pages. It makes the lane's calls:
// as many, of the same kinds and sizes, in parts of as many packets, until a read finds the
// TAP empty, and sends an event at the end of a batch. It copies the bytes that netbackd
// copies, once: small packets, since a piece of their own for the vnet header would cost
// the kernel more, and the headers of large ones, on which netbackd decides. There is no
// ring, no check, no look-up of a gref, no journal, no response and no counter. What another
// processor, kernel or load changes, it changes in lane and floor alike.
//
// Large packets have a piece for each page, as the guest's slots have them. That netbackd
// joins neighbouring pages is its own work, and its own gain; a floor with joined set does
// so too.
type floor struct {
	fd    int
	ring  *iouring.Ring // nil: a system call for each packet
	done  []iouring.Completion
	guest notifyOnly
	front *front
	page  int // next one of the guest's
	arena *gntdev.Arena
	iov   *iouring.Iovecs
	calls []rawio.Call
	parts [bench.MaxBatch]floorPart
	vnet  [tap.VnetHdrLen]byte // of the batch's packets
}

// floorPart has the places of a packet's copied bytes and of its vnet header.
type floorPart struct{ hdr, arena, guest []byte }

// floorWork selects what a floor does.
type floorWork uint8

const (
	move      floorWork = iota // copy and make the calls
	joined                     // the same, with neighbouring pages in one piece
	onlyCalls                  // the calls alone, on packets that are in the arena
)

// Memory of a floor.
const (
	floorStride = 18 * netif.PageSize // of a frame's place in the arena
	floorPieces = 18                  // iovecs for a frame
	floorDense  = netif.PageSize / 2  // between places of small packets to the guest
)

// newFloor makes a floor for a TAP queue, with io_uring if uring is set.
func newFloor(fd int, uring bool, guest *front) (*floor, error) {
	p := &floor{fd: fd, front: guest, calls: make([]rawio.Call, bench.MaxBatch+1)}
	var err error
	if p.guest, err = newNotifyOnly(); err != nil {
		return nil, err
	}
	if p.arena, err = gntdev.NewPopulatedArena((bench.MaxBatch + 1) * floorStride); err != nil {
		return nil, err
	}
	if p.iov, err = iouring.NewIovecs((bench.MaxBatch + 1) * floorPieces); err != nil {
		return nil, err
	}
	if !uring {
		return p, nil
	}
	p.done = make([]iouring.Completion, bench.MaxBatch)
	if p.ring, err = iouring.New(bench.MaxBatch); err != nil {
		return nil, err
	}
	if err = p.ring.RegisterBuffers(p.arena.Bytes()); err != nil {
		return nil, err
	}
	if err = p.ring.RegisterFiles(1); err != nil {
		return nil, err
	}
	return p, p.ring.SetFile(0, fd)
}

// pageOf returns the next of the guest's pages of one direction, the first of which is at
// first: as the guest has it, and as it is mapped here.
func (p *floor) pageOf(first int) (guest, here []byte) {
	at := first + p.page%lanePages*netif.PageSize
	p.page++
	return p.front.mem[at : at+netif.PageSize], p.front.back[at : at+netif.PageSize]
}

// pieces lists the pieces of packet k: n bytes at addr, then the rest of the pages, of which
// skip bytes are in the first piece already.
type pieces struct {
	p         *floor
	k, n      int
	from, end uintptr // of the piece that is not in p.iov yet
	join      bool
}

func (p *floor) newPieces(k int, addr uintptr, n int, work floorWork) pieces {
	p.iov.Set(k*floorPieces, addr, uint32(n))
	return pieces{p: p, k: k, n: 1, join: work == joined}
}

func (l *pieces) add(addr uintptr, n int) {
	if l.from != l.end && (addr != l.end || !l.join) {
		l.flush()
	}
	if l.from == l.end {
		l.from = addr
	}
	l.end = addr + uintptr(n)
}

func (l *pieces) flush() {
	l.p.iov.Set(l.k*floorPieces+l.n, l.from, uint32(l.end-l.from))
	l.n++
	l.from = l.end
}

// call returns the call for all pieces.
func (l *pieces) call() rawio.Call {
	l.flush()
	return rawio.Call{Addr: l.p.iov.At(l.k * floorPieces), Len: uint32(l.n)}
}

// txRun makes one run: b.run packets from the guest, in the batches of the peers.
func (p *floor) txRun(b *benchFrame, work floorWork, overhead time.Duration) (took time.Duration, err error) {
	batch := b.batches[0]
	for done := -b.warm(); done < b.run; done += batch {
		trap := p.prepareTx(b, batch, work)
		parts := p.parts[:batch]
		if work == onlyCalls {
			parts = nil
		}
		start := time.Now()
		for i := range parts {
			at := &parts[i]
			*(*[tap.VnetHdrLen]byte)(at.hdr) = p.vnet
			copy(at.arena, at.guest)
		}
		if p.ring != nil && trap == unix.SYS_WRITE {
			err = p.submit(p.calls[:batch])
		} else {
			rawio.All(trap, p.fd, p.calls[:batch])
		}
		if err == nil {
			err = p.guest.Notify(0)
		}
		if t := time.Since(start) - overhead; done >= 0 {
			took += t
		}
		if err != nil {
			return 0, err
		}
		for k := range p.calls[:batch] {
			if e := p.calls[k].Res; e < 0 {
				return 0, unix.Errno(-e)
			}
		}
	}
	return took, nil
}

// prepareTx puts the packets of a batch into the guest's pages and lists the calls. It
// returns the system call: small packets go in one piece, large ones from the pages.
func (p *floor) prepareTx(b *benchFrame, batch int, work floorWork) (trap uintptr) {
	all := b.withHeader()
	small := len(b.frame) <= smallPacket
	copy(p.vnet[:], all)
	for k := range batch {
		at := k*alignUp(min(len(all), smallPacket)+headroom, headroom) + headroom - tap.VnetHdrLen
		mem := p.arena.Bytes()[at:]
		part := &p.parts[k]
		*part = floorPart{hdr: mem[:tap.VnetHdrLen], arena: mem[tap.VnetHdrLen:]}
		if small {
			off := 0
			if len(b.frame) <= netif.PageSize-15*64 {
				off = k % 16 * 64 // as the lanes do
			}
			guest, page := p.pageOf(txPages)
			copy(guest[off:], b.frame)
			part.guest = page[off : off+len(b.frame)]
			copy(mem, all)
			p.calls[k] = rawio.Call{Addr: p.arena.Addr(at), Len: uint32(len(all))}
			continue
		}
		l := p.newPieces(k, p.arena.Addr(at), tap.VnetHdrLen+offload.MaxHeader, work)
		for rest := b.frame; len(rest) > 0; {
			guest, page := p.pageOf(txPages)
			n := copy(guest, rest)
			if len(rest) == len(b.frame) {
				part.guest = page[:offload.MaxHeader]
				l.add(address(page)+offload.MaxHeader, n-offload.MaxHeader)
			} else {
				l.add(address(page), n)
			}
			rest = rest[n:]
		}
		p.calls[k] = l.call()
	}
	if small {
		return unix.SYS_WRITE
	}
	return unix.SYS_WRITEV
}

// submit makes the listed writes with io_uring.
func (p *floor) submit(calls []rawio.Call) error {
	for k := range calls {
		p.ring.WriteFixed(0, calls[k].Addr, calls[k].Len, 0, uint64(k))
	}
	if _, err := p.ring.Submit(); err != nil {
		return err
	}
	for _, d := range p.done[:p.ring.Completions(p.done)] {
		calls[d.User].Res = d.Res
	}
	return nil
}

// rxRun makes one run: b.run packets to the guest.
func (p *floor) rxRun(b *benchFrame, h *filler, work floorWork, overhead time.Duration) (took time.Duration, err error) {
	batch := b.batches[0]
	trap, part := uintptr(unix.SYS_READ), rxCalls
	if p.ring != nil {
		part = rxReads
	}
	if len(b.frame) > smallPacket {
		trap, part = unix.SYS_READV, rxReads
	}
	for done := -b.warm(); done < b.run; done += batch {
		if err := h.fill(b, batch); err != nil {
			return 0, err
		}
		p.prepareRx(b, batch, work)
		start := time.Now()
		n := 0
		for more := true; more; {
			calls := p.calls[n:min(n+part, batch+1)] // one too many
			var got int
			if p.ring != nil && trap == unix.SYS_READ && len(calls) > rxFew {
				if got, err = p.read(calls); err != nil {
					return 0, err
				}
			} else {
				got = rawio.Until(trap, p.fd, calls, maxFrame+tap.VnetHdrLen)
			}
			if work != onlyCalls {
				for i := range p.parts[n : n+got] {
					copy(p.parts[n+i].guest, p.parts[n+i].arena)
				}
			}
			n += got
			more = got == len(calls)
		}
		err := p.guest.Notify(0)
		if t := time.Since(start) - overhead; done >= 0 {
			took += t
		}
		if err != nil {
			return 0, err
		}
		if n != batch {
			return 0, fmt.Errorf("read %d packets of %d", n, batch)
		}
	}
	return took, nil
}

// prepareRx lists the calls of a batch, and one more. A large packet is read into the
// guest's pages, but for its first rxHead bytes, which netbackd must have for itself.
func (p *floor) prepareRx(b *benchFrame, batch int, work floorWork) {
	n := len(b.frame)
	for k := range batch + 1 {
		at := k%rxCalls*floorDense + (1+k/2%rxSteps)*headroom // as these are copied at once
		if p.ring != nil {
			at = k%rxReads*rxStride%(bench.MaxBatch*floorStride) + (1+k%16)*headroom
		}
		if n > smallPacket {
			at = (k + 1) * netif.PageSize
		}
		mem := p.arena.Bytes()[at:]
		_, first := p.pageOf(rxPages)
		if n <= smallPacket {
			if k < batch {
				p.parts[k] = floorPart{arena: mem[:n], guest: first[:n]}
			}
			p.calls[k] = rawio.Call{Addr: p.arena.Addr(at - tap.VnetHdrLen), Len: maxFrame + tap.VnetHdrLen}
			continue
		}
		if k < batch {
			p.parts[k] = floorPart{arena: mem[:rxHead], guest: first[:rxHead]}
		}
		l := p.newPieces(k, p.arena.Addr(at-tap.VnetHdrLen), tap.VnetHdrLen+rxHead, work)
		l.add(address(first)+rxHead, netif.PageSize-rxHead)
		for range slotsOf(maxFrame) - 1 {
			_, page := p.pageOf(rxPages)
			l.add(address(page), netif.PageSize)
		}
		p.calls[k] = l.call()
	}
}

// read reads with io_uring and returns the number of packets.
func (p *floor) read(calls []rawio.Call) (n int, err error) {
	for k := range calls {
		p.ring.ReadFixed(0, calls[k].Addr, calls[k].Len, 0, uint64(k))
	}
	if _, err := p.ring.Submit(); err != nil {
		return 0, err
	}
	for _, c := range p.done[:p.ring.Completions(p.done)] {
		if c.Res > 0 {
			n++
		}
	}
	return n, nil
}

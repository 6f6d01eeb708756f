// SPDX-License-Identifier: Apache-2.0

package virtfront

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/virtqueue"
)

// bell notifies the back end and is notified.
type bell interface {
	// fd is readable when the back end has notified.
	fd() int
	// clear takes the notifications.
	clear() error
	// ring notifies the back end of ring i.
	ring(i int) error
}

// counts counts the frames that a player has sent and received.
type counts struct {
	sent     uint64 // chains for sending that the back end has given back
	echoed   uint64 // frames of the other end that were sent back to it
	good     uint64 // frames of the other end
	returned uint64 // frames of this end that came back
	other    uint64 // frames that are no test frames
	bad      uint64 // frames that are not what was sent
	gaps     uint64 // frames that are missing, repeated or out of order
	firstBad error
}

// ownSeq is the number of the first frame that an end sends without having been asked by
// the other one.
const ownSeq = 1 << 32

// player sends and checks frames. It belongs to one goroutine.
type player struct {
	*driver
	mem   *Memory
	bell  bell
	most  int      // bytes of a frame
	flood bool     // send as much as there is room for
	quota uint64   // frames to send
	seq   uint64   // of the next one
	queue []uint64 // frames to send back
	seen  [2]struct {
		any  bool
		next uint64 // number of the next frame of an end
	}
	counts
}

// newPlayer starts a driver in m.
func newPlayer(m *Memory, b bell, features uint64, size, most int) (*player, error) {
	d, err := newDriver(m, features, size)
	if err != nil {
		return nil, err
	}
	return &player{driver: d, mem: m, bell: b, most: most, seq: ownSeq}, nil
}

// turn does all the work that there is. It returns when the back end was asked to notify.
func (p *player) turn() error {
	for {
		p.sent += uint64(p.reap())
		p.receive(p.got)
		p.fill()
		for i := range p.rings {
			if p.rings[i].Publish() {
				if err := p.bell.ring(i); err != nil {
					return err
				}
			}
		}
		rx, tx := p.rings[rxRing].Arm(), p.rings[txRing].Arm()
		if !rx && !tx {
			return nil
		}
	}
}

// got checks a frame. One that the other end made is sent back.
func (p *player) got(frame []byte) {
	from := fromHost
	seq, err := checkFrame(frame, from, p.most)
	if errors.Is(err, errOther) {
		from = fromGuest
		seq, err = checkFrame(frame, from, p.most)
	}
	if errors.Is(err, errOther) {
		p.other++
		return
	}
	if err != nil {
		if p.bad++; p.firstBad == nil {
			p.firstBad = err
		}
		return
	}
	s := &p.seen[from-fromGuest]
	if s.any && seq != s.next && seq%ownSeq != 0 { // an end may begin again
		p.gaps++
	}
	s.any, s.next = true, seq+1
	if from == fromGuest {
		p.returned++
		return
	}
	p.good++
	p.queue = append(p.queue, seq)
}

// fill sends what there is room for.
func (p *player) fill() {
	for p.room() {
		var seq uint64
		switch {
		case len(p.queue) > 0:
			seq, p.queue = p.queue[0], p.queue[1:]
			p.echoed++
		case p.quota > 0 || p.flood:
			seq = p.seq
			p.seq++
			p.quota -= min(p.quota, 1)
		default:
			return
		}
		p.send(seq, frameSize(seq, p.most), func(b []byte) { putFrame(b, fromGuest, seq) })
	}
}

// revoke ends the grants of some pages and sends from one. If not told to only send, it gives
// another one for reception.
func (p *player) revoke(only string) error {
	a := &p.mem.areas[2]
	if a.free == nil {
		return errors.New("this memory cannot be revoked")
	}
	if err := a.free(); err != nil {
		return err
	}
	a.free, a.mem = nil, nil
	id, ok := p.rings[txRing].Add(virtqueue.Buffer{Addr: a.addr + 100, Len: vnetLen + 200})
	if !ok {
		return errors.New("the ring for sending is full")
	}
	p.txUsed[id] = revoked
	if only == "tx" {
		return nil
	}
	id, ok = p.rings[rxRing].Add(virtqueue.Buffer{Addr: a.addr + pageSize, Len: pageSize, Write: true})
	if !ok {
		return errors.New("the ring for reception is full")
	}
	p.rxUsed[id] = revoked
	return nil
}

// stats describes the counts in a line.
func (p *player) stats() string {
	s := fmt.Sprintf("sent=%d echoed=%d good=%d returned=%d other=%d bad=%d gaps=%d broken=%d empty=%d outstanding=%d",
		p.sent, p.echoed, p.good, p.returned, p.other, p.bad, p.gaps, p.nBroken, p.empty, len(p.txUsed))
	for _, err := range []error{p.firstBad, p.broken} {
		if err != nil {
			s += fmt.Sprintf(" (%v)", err)
		}
	}
	return s
}

// command is a line to a player. Its answer is another line.
type command struct {
	line   string
	answer chan<- string
}

// obey carries out a command:
//
//	stats             the answer has the counts
//	send N            send N frames
//	flood on, off     send as many as there is room for
//	revoke [tx]       end the grants of some pages, and use them, or only send from them
//	quit
func (p *player) obey(line string) (answer string, end bool) {
	verb, rest, _ := strings.Cut(line, " ")
	var err error
	switch verb {
	case "stats":
		return p.stats(), false
	case "send":
		var n uint64
		n, err = strconv.ParseUint(rest, 10, 32)
		p.quota += n
	case "flood":
		p.flood = rest == "on"
	case "revoke":
		err = p.revoke(rest)
	case "quit":
		return p.stats(), true
	default:
		err = errors.New("unknown command")
	}
	if err != nil {
		return fmt.Sprintf("error: %s: %v", line, err), false
	}
	return "ok", false
}

// run plays until the context ends, commands are closed, or one of them ends it.
func (p *player) run(ctx context.Context, commands <-chan command) error {
	wake, err := newEvent()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	next := make(chan command)
	relayed := make(chan struct{})
	go func() {
		defer close(relayed)
		p.relay(ctx, commands, next, wake)
	}()
	defer func() {
		cancel()
		<-relayed
		_ = wake.close()
	}()
	fds := []unix.PollFd{{Fd: int32(p.bell.fd()), Events: unix.POLLIN}, {Fd: int32(wake), Events: unix.POLLIN}}
	// The back end may have missed the first buffers, and serves a ring from its first kick on.
	for i := range p.rings {
		if err := p.bell.ring(i); err != nil {
			return err
		}
	}
	for {
		if err := p.turn(); err != nil {
			return err
		}
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return err
		}
		if err := p.bell.clear(); err != nil {
			return err
		}
		if fds[1].Revents == 0 {
			continue
		}
		wake.clear()
		select {
		case c, ok := <-next:
			if !ok {
				return nil
			}
			answer, end := p.obey(c.line)
			c.answer <- answer
			if end {
				return nil
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// relay announces each command, and the end of the context, with an event.
func (p *player) relay(ctx context.Context, commands <-chan command, next chan<- command, wake event) {
	defer close(next)
	for {
		select {
		case c, ok := <-commands:
			wake.signal()
			if !ok {
				return
			}
			select {
			case next <- c:
			case <-ctx.Done():
				return
			}
		case <-ctx.Done():
			wake.signal()
			return
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package ringscript

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"github.com/netbackd/netbackd/pkg/netif"
)

// maxContent bounds the number of bytes that one word stands for.
const maxContent = 1 << 17

// content makes bytes, some of which are grant references that a script cannot know.
type content func(p *player) ([]byte, error)

// content reads the remaining words as bytes.
func (a *args) content() content {
	var parts []content
	for len(a.left) > 0 && a.left[0] != "->" {
		parts = append(parts, a.contentWord(a.word("bytes")))
	}
	return func(p *player) (all []byte, err error) {
		for _, f := range parts {
			b, err := f(p)
			if err != nil {
				return nil, err
			}
			all = append(all, b...)
		}
		return all, nil
	}
}

// contentWord reads KIND=VALUES, or KIND=VALUES*N to repeat them N times.
func (a *args) contentWord(w string) content {
	kind, text, ok := strings.Cut(w, "=")
	if !ok {
		a.fail("%.40q is not bytes, want u16=, u32= or u64=N,..., hex=, zeros=N or grefs=", w)
	}
	times := 1
	if at := strings.LastIndexByte(text, '*'); at >= 0 {
		times = int(a.number("how often", text[at+1:], 1, maxContent))
		text = text[:at]
	}
	var b []byte
	switch kind {
	case "hex":
		var err error
		if b, err = hex.DecodeString(text); err != nil {
			a.fail("%w", err)
		}
	case "zeros":
		b = make([]byte, a.number("zeros", text, 1, maxContent))
	case "u16", "u32", "u64":
		for n := range strings.SplitSeq(text, ",") {
			v, err := strconv.ParseUint(n, 0, 64)
			bits, _ := strconv.Atoi(kind[1:])
			if err != nil || bits < 64 && v>>bits != 0 {
				a.fail("%.40q is not in the range of %s", n, kind)
			}
			b = append(b, binary.LittleEndian.AppendUint64(nil, v)[:bits/8]...)
		}
	case "grefs":
		if times != 1 {
			a.fail("a list is not repeated")
		}
		return a.list(text)
	default:
		a.fail("%.40q is not bytes, want u16=, u32= or u64=N,..., hex=, zeros=N or grefs=", w)
	}
	if len(b)*times > maxContent {
		a.fail("more than %d bytes", maxContent)
		return nil
	}
	b = bytes.Repeat(b, times)
	return func(*player) ([]byte, error) { return b, nil }
}

// list reads entries of a list of static grants: PAGE[:FLAGS],... where PAGE is a
// buffer or a range of a pool, tx[0..9]. The statuses are untouchedStatus.
func (a *args) list(text string) content {
	type entry struct {
		page  string
		flags uint16
	}
	var entries []entry
	for w := range strings.SplitSeq(text, ",") {
		page, flags, _ := strings.Cut(w, ":")
		e := entry{page: page}
		switch flags {
		case "":
		case "ro":
			e.flags = netif.GrefReadOnly
		default:
			e.flags = uint16(a.number("flags", flags, 0, 0xffff))
		}
		a.buffer(page)
		entries = append(entries, e)
	}
	return func(p *player) (b []byte, err error) {
		for _, e := range entries {
			refs, err := p.refs(e.page)
			if err != nil {
				return nil, err
			}
			for _, ref := range refs {
				b = binary.LittleEndian.AppendUint32(b, uint32(ref))
				b = binary.LittleEndian.AppendUint16(b, e.flags)
				b = binary.LittleEndian.AppendUint16(b, untouchedStatus)
			}
		}
		return b, nil
	}
}

// buffer checks that a word names buffers: one without data, or a range of a pool.
func (a *args) buffer(w string) {
	if name, row, ok := strings.Cut(w, "["); ok && (name == "tx" || name == "rx") && strings.HasSuffix(row, "]") {
		if _, _, err := readRow(strings.TrimSuffix(row, "]")); err != nil {
			a.fail("%w", err)
		}
		return
	}
	if w == "page" || !isTarget(w) {
		a.fail("%.40q is no page, want tx[N], rx[N..M], readonly, foreign, freed, ring or gref=N", w)
		return
	}
	a.target(w)
}

// readRow reads a range of a pool's pages, K or K..L.
func readRow(w string) (from, to int, err error) {
	first, last, row := strings.Cut(w, "..")
	if from, err = strconv.Atoi(first); err != nil {
		return 0, 0, fmt.Errorf("page %.40q: %w", w, err)
	}
	if to = from; row {
		if to, err = strconv.Atoi(last); err != nil {
			return 0, 0, fmt.Errorf("page %.40q: %w", w, err)
		}
	}
	if from < 0 || to < from || to >= poolPages {
		return 0, 0, fmt.Errorf("page %.40q: a pool has pages 0 to %d", w, poolPages-1)
	}
	return from, to, nil
}

func parseControl(a *args) action {
	kind := a.oneOf("control ring", "slot", "stream", "neither")
	return quiet(func(p *player) error { return p.newControl(kind) })
}

func parsePage(a *args) action {
	f := a.content()
	return quiet(func(p *player) error {
		b, err := f(p)
		if err != nil {
			return err
		}
		return p.setPage(b)
	})
}

// message reads TYPE and its data, up to "->" if there is one.
func (a *args) message() *ctrlMessage {
	m := &ctrlMessage{size: -1}
	at := a.left
	if v, ok := a.value("id"); ok {
		m.ids = a.ids(v)
	}
	w := a.word("type")
	stream := true
	switch typ, known := streamType(w); {
	case known:
		m.typ = typ
	case w == "bytes":
		m.raw = true
	default:
		if n, ok := strings.CutPrefix(w, "stream="); ok {
			m.typ = uint32(a.number("type", n, 0, 1<<32-1))
			break
		}
		stream = false
		m.typ = a.slotType(w)
	}
	if stream {
		if v, ok := a.value("size"); ok {
			m.size = a.number("size", v, 0, 1<<32-1)
		}
		m.make = a.content()
	} else {
		for len(a.left) > 0 && a.left[0] != "->" && len(m.data) < 3 {
			m.data = append(m.data, a.datum())
		}
	}
	m.text = strings.Join(at[:len(at)-len(a.left)], " ")
	return m
}

// streamType returns the number of a byte stream's message. Its names differ from those
// of messages on a ring of slots, so that a script is unambiguous.
func streamType(w string) (uint32, bool) {
	for i, name := range []string{"ack", "get-flags", "set-flags", "set-key", "set-mapping"} {
		if w == name {
			return uint32(i) + 1, true
		}
	}
	return 0, false
}

// slotType returns the number of a message on a ring of slots.
func (a *args) slotType(w string) uint32 {
	for t := netif.CtrlGetHashFlags; t <= netif.CtrlDelGrefMapping; t++ {
		if w == t.String() {
			return uint32(t)
		}
	}
	return uint32(a.number("type", w, 0, 0xffff))
}

// datum reads one of the data of a message: a number, or a page.
func (a *args) datum() string {
	w := a.word("data")
	switch {
	case w == "page", w == "control":
	case w != "" && w[0] >= '0' && w[0] <= '9':
		a.number("data", w, 0, 1<<32-1)
	default:
		a.buffer(w)
	}
	return w
}

// status reads a status of a response.
func (a *args) status(w string) netif.CtrlStatus {
	for s := netif.CtrlSuccess; s <= netif.CtrlBufferOverflow; s++ {
		if w == s.String() {
			return s
		}
	}
	a.fail("%.40q is no status", w)
	return 0
}

func parseCall(a *args) action {
	m := a.message()
	if !a.is("->") {
		a.fail("-> and a status are missing")
	}
	want := reply{status: a.status(a.word("status"))}
	if len(a.left) > 0 {
		want.data = uint32(a.number("data", a.word(""), 0, 1<<32-1))
	}
	return func(p *player) (string, error) { return p.call(m, want) }
}

func parseSend(a *args) action {
	m := a.message()
	return quiet(func(p *player) error {
		if err := p.refused(); err != nil {
			return err
		}
		return p.put(m)
	})
}

func parseReplies(a *args) action {
	want := a.rows(a.rest())
	for _, w := range want {
		_, s, slot := strings.Cut(w, "=")
		if !slot {
			s = w
		}
		s, data, there := strings.Cut(s, ":")
		a.status(s)
		if there {
			a.number("data", data, 1, 1<<32-1)
		}
	}
	return func(p *player) (string, error) { return p.checkReplies(want) }
}

func parseStatuses(a *args) action {
	want := a.rows(a.rest())
	for i, w := range want {
		at, s, ok := strings.Cut(w, "=")
		if !ok || at != strconv.Itoa(i) {
			a.fail("%.40q: want 0=STATUS 1=STATUS ..., of each entry from the first on", w)
		}
		if s != "untouched" {
			a.status(s)
		}
	}
	return func(p *player) (string, error) { return same("statuses", p.statuses(len(want)), want, nil) }
}

func parseRspCons(a *args) action {
	by := a.number("by how much", a.word("by how much"), -1<<31, 1<<32-1)
	return quiet(func(p *player) error { return p.moveRspCons(uint32(by)) })
}

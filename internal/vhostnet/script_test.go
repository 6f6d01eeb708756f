// SPDX-License-Identifier: Apache-2.0

package vhostnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/vhostuser"
)

// player plays the messages of a recorded session with a device. Each line of a script is one
// of
//
//	REQUEST ARGUMENT...          a message; "ack" at its end asks for an acknowledgement
//	REQUEST ARGUMENT... = VALUE  a message and its answer; "= *" is any
//	host QUEUES CARRIER          the queues of the TAP that the host has, and its carrier
//	connect                      closes the connection and makes another one
//
// Numbers are as in Go. "offered" is the answer to the question about features, or about those
// of the protocol in SET_PROTOCOL_FEATURES, and "fd" a new eventfd.
type player struct {
	*bed
	c                 *net.UnixConn
	offered, protocol uint64
	mem               int
}

// requests are the requests by their names.
var requests = func() map[string]vhostuser.Request {
	m := map[string]vhostuser.Request{}
	for r := vhostuser.Request(1); r <= vhostuser.CheckDeviceState; r++ {
		m[r.String()] = r
	}
	return m
}()

// play plays a script and fails the test at the first line that does not go as recorded.
func (b *bed) play(name string) {
	b.t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name+".script"))
	b.must(err)
	p := &player{bed: b, c: b.conn(), mem: memfd(b.t, guestSize)}
	defer func() { _ = p.c.Close() }()
	for i, line := range strings.Split(string(text), "\n") {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		if err := p.line(words); err != nil {
			b.t.Fatalf("%s.script:%d: %s: %v\ncalls: %q", name, i+1, line, err, b.rings.took())
		}
	}
}

func (p *player) line(words []string) error {
	switch words[0] {
	case "connect":
		if err := p.c.Close(); err != nil {
			return err
		}
		p.c = p.conn()
		return nil
	case "host":
		// An answer says that the messages before it were carried out.
		if err := p.line([]string{"GET_QUEUE_NUM", "=", "2"}); err != nil {
			return err
		}
		active, _ := p.d.link.use()
		info, err := p.d.link.info()
		if got := fmt.Sprintf("host %d %v", active, info.Carrier); err != nil || got != strings.Join(words, " ") {
			return fmt.Errorf("%s, %w", got, err)
		}
		return nil
	}
	want := ""
	if n := len(words); n > 2 && words[n-2] == "=" {
		want, words = words[n-1], words[:n-2]
	}
	ack := words[len(words)-1] == "ack"
	if ack {
		words = words[:len(words)-1]
	}
	m, err := p.message(words)
	if err != nil {
		return err
	}
	if ack {
		m.Flags = 1 << 3
	}
	if _, _, err := p.c.WriteMsgUnix(m.Append(nil), unix.UnixRights(m.Files...), nil); err != nil {
		return err
	}
	if want == "" && !ack {
		return nil
	}
	r, err := p.reply(m.Request)
	switch {
	case err != nil:
		return err
	case ack && r.U64 != 0:
		return errors.New("it was refused")
	case want == "" || want == "*":
		return nil
	}
	v, err := number(want, 0)
	got := r.U64
	if m.Request == vhostuser.GetVringBase {
		got = uint64(r.State.Num)
	}
	if got != v {
		err = errors.Join(err, fmt.Errorf("the answer is %#x", got))
	}
	return err
}

// message makes the message of a line.
func (p *player) message(words []string) (m vhostuser.Message, err error) {
	r, ok := requests[words[0]]
	if !ok {
		return m, errors.New("no such request")
	}
	m.Request = r
	var v [2]uint64
	for i, w := range words[1:] {
		if w == "fd" {
			m.Files = []int{eventfd(p.t)}
			continue
		}
		offered := p.offered
		if r == vhostuser.SetProtocolFeatures {
			offered = p.protocol
		}
		if v[min(i, 1)], err = number(w, offered); err != nil {
			return m, err
		}
	}
	m.U64, m.State = v[0], vhostuser.VringState{Index: uint32(v[0]), Num: uint32(v[1])}
	switch r {
	case vhostuser.SetVringAddr:
		m.Addr = ringAddr(uint32(v[0]))
		m.Addr.Flags = uint32(v[1])
	case vhostuser.SetMemTable, vhostuser.AddMemReg:
		m.Regions, m.Files = []vhostuser.Region{guestRegion}, []int{p.mem}
	case vhostuser.RemMemReg:
		m.Regions = []vhostuser.Region{guestRegion}
	case vhostuser.SetLogBase:
		m.Log, m.Files = vhostuser.Area{Size: v[0]}, []int{memfd(p.t, int64(v[0]))}
	}
	return m, nil
}

// number decodes a number of a script: one, or those bits of several that all have.
func number(w string, offered uint64) (uint64, error) {
	all := ^uint64(0)
	for part := range strings.SplitSeq(w, "&") {
		if part == "offered" {
			all &= offered
			continue
		}
		v, err := strconv.ParseUint(part, 0, 64)
		if err != nil {
			return 0, err
		}
		all &= v
	}
	return all, nil
}

// reply reads the answer to a request.
func (p *player) reply(r vhostuser.Request) (vhostuser.Message, error) {
	if err := p.c.SetReadDeadline(time.Now().Add(waitFor)); err != nil {
		return vhostuser.Message{}, err
	}
	var head [12]byte
	if _, err := io.ReadFull(p.c, head[:]); err != nil {
		return vhostuser.Message{}, fmt.Errorf("no answer: %w", err)
	}
	h := vhostuser.Header{
		Request: vhostuser.Request(binary.NativeEndian.Uint32(head[:])),
		Flags:   binary.NativeEndian.Uint32(head[4:]), Size: binary.NativeEndian.Uint32(head[8:]),
	}
	payload := make([]byte, h.Size)
	if _, err := io.ReadFull(p.c, payload); err != nil {
		return vhostuser.Message{}, err
	}
	m, err := vhostuser.DecodeReply(h, payload)
	if err == nil && (h.Request != r || !h.Reply()) {
		err = fmt.Errorf("an answer to %v", h.Request)
	}
	switch r {
	case vhostuser.GetFeatures:
		p.offered = m.U64
	case vhostuser.GetProtocolFeatures:
		p.protocol = m.U64
	}
	return m, err
}

// TestRecordedSessions plays the messages of front ends in the order in which they were seen.
func TestRecordedSessions(t *testing.T) {
	for _, name := range []string{"qemu-10.0", "qemu-7.2", "qemu-migration", "dpdk-22.11", "dpdk-22.11-server", "cloud-hypervisor", "rust-vmm-xen"} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, Config{Xen: XenForeign})
			b.play(name)
			b.idle()
			if active, _ := b.d.link.use(); active != 0 {
				t.Errorf("the host has %d queues after the session", active)
			}
			if s := b.d.Status(); s.Error != "" || s.Carrier {
				t.Errorf("after the session: carrier %v, error %q", s.Carrier, s.Error)
			}
		})
	}
}

// recorded turns a line of a transcript, which a recorder has made between a front end and a
// back end, into one of a script. It returns nil for an answer. The guest's memory and the size
// of rings are those of the player.
func recorded(line string) []string {
	words := strings.Fields(line)
	if len(words) < 2 || words[0] != "front" {
		return nil
	}
	request := words[1]
	out, ack := []string{request}, false
	for _, w := range words[2:] {
		key, value, named := strings.Cut(w, "=")
		switch {
		case w == "need-reply":
			ack = true
		case w == "files=1":
			out = append(out, "fd")
		case key == "num" && request == "SET_VRING_NUM":
			out = append(out, strconv.Itoa(ringSize))
		case named && slices.Contains([]string{"index", "num", "flags"}, key):
			out = append(out, value)
		case key == "base" && value != "*":
			out = append(out, value)
		case request == "SET_FEATURES" || request == "SET_PROTOCOL_FEATURES":
			out = append(out, w+"&offered")
		case !named && strings.HasPrefix(w, "0x"):
			out = append(out, w)
		}
	}
	switch {
	case ack:
		out = append(out, "ack")
	case strings.HasPrefix(request, "GET_"):
		out = append(out, "=", "*")
	}
	return out
}

// TestTranscripts plays the transcripts of real front ends, QEMU before passt among them. Those
// of a migration begin in the middle of a session; TestRecordedSessions has it whole.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("../../test/vhost/testdata/*.transcript")
	if err != nil || len(files) == 0 {
		t.Fatalf("%q, %v", files, err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".transcript")
		if strings.Contains(name, "-migration-") {
			continue
		}
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			b := newBed(t, Config{Xen: XenForeign})
			p := &player{bed: b, c: b.conn(), mem: memfd(t, guestSize)}
			defer func() { _ = p.c.Close() }()
			var started, enabled bool // ring 0
			for i, line := range strings.Split(string(text), "\n") {
				words := recorded(line)
				if words == nil {
					continue
				}
				if err := p.line(words); err != nil {
					t.Fatalf("%s:%d: %s, as %q: %v", file, i+1, line, words, err)
				}
				if len(words) > 1 && (words[1] == "0" || words[1] == "0x0") {
					switch words[0] {
					case "SET_VRING_KICK":
						started = true
					case "GET_VRING_BASE":
						started = false
					case "SET_VRING_ENABLE":
						enabled = words[2] == "1"
					}
				}
			}
			if err := p.line([]string{"GET_QUEUE_NUM", "=", "2"}); err != nil { // all is carried out
				t.Fatal(err)
			}
			if s := b.d.Status(); s.Carrier != (started && enabled) || s.Error != "" {
				t.Errorf("started %v, enabled %v, but carrier %v, error %q", started, enabled, s.Carrier, s.Error)
			}
		})
	}
}

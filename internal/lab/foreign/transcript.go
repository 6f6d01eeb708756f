// SPDX-License-Identifier: Apache-2.0

package foreign

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/netbackd/netbackd/pkg/vhostuser"
)

// parser cuts one direction of a connection into messages.
type parser struct {
	front bool // from the front end
	rest  []byte
	files int // that came with the bytes in rest
}

// headerSize is the size in bytes of a message's header.
const headerSize = 12

// add adds bytes that were read, with a number of descriptors, and returns a line for each
// message that is complete.
func (p *parser) add(b []byte, files int) (lines []string) {
	p.rest = append(p.rest, b...)
	p.files += files
	for len(p.rest) >= headerSize {
		h := vhostuser.Header{
			Request: vhostuser.Request(binary.NativeEndian.Uint32(p.rest)),
			Flags:   binary.NativeEndian.Uint32(p.rest[4:]),
			Size:    binary.NativeEndian.Uint32(p.rest[8:]),
		}
		end := headerSize + int(h.Size)
		if len(p.rest) < end {
			break
		}
		lines = append(lines, line(p.front, h, p.rest[headerSize:end], p.files))
		p.rest, p.files = p.rest[end:], 0
	}
	return lines
}

// line describes a message. What differs from run to run is left out: addresses in a
// process, and positions in rings that are in use.
func line(front bool, h vhostuser.Header, payload []byte, files int) string {
	words := []string{"back ", h.Request.String()}
	decode := vhostuser.DecodeReply
	if front {
		words[0], decode = "front", vhostuser.Decode
	}
	if h.NeedReply() {
		words = append(words, "need-reply")
	}
	m, err := decode(h, payload)
	switch {
	case errors.Is(err, vhostuser.ErrUnknown), err != nil:
		words = append(words, fmt.Sprintf("%d bytes", len(payload)))
	default:
		words = append(words, fields(front, &m, payload)...)
	}
	if files > 0 {
		words = append(words, fmt.Sprintf("files=%d", files))
	}
	return strings.Join(words, " ")
}

// fields describes the payload of a message.
func fields(front bool, m *vhostuser.Message, payload []byte) (w []string) {
	switch {
	case len(payload) == 0:
		return nil
	case m.Regions != nil:
		for _, r := range m.Regions {
			guest := fmt.Sprintf("%#x", r.Guest)
			if r.Guest == r.User {
				guest = "user"
			}
			s := fmt.Sprintf("guest=%s size=%#x offset=%#x", guest, r.Size, r.Offset)
			if r.Flags != 0 || r.Domid != 0 {
				s += fmt.Sprintf(" flags=%#x domid=%d", r.Flags, r.Domid)
			}
			w = append(w, "{"+s+"}")
		}
		return append(w, fmt.Sprintf("bytes=%d", len(payload)))
	case m.Request == vhostuser.SetVringAddr:
		return []string{fmt.Sprintf("index=%d flags=%#x", m.Addr.Index, m.Addr.Flags)}
	case m.Request == vhostuser.SetVringBase || m.Request == vhostuser.GetVringBase:
		if front && m.Request == vhostuser.GetVringBase {
			return []string{fmt.Sprintf("index=%d", m.State.Index)} // DPDK sends a number that means nothing
		}
		switch m.State.Num {
		case 0, 0x8000, 0x80008000:
			return []string{fmt.Sprintf("index=%d base=%#x", m.State.Index, m.State.Num)}
		}
		return []string{fmt.Sprintf("index=%d base=*", m.State.Index)}
	case m.Request == vhostuser.SetVringNum || m.Request == vhostuser.SetVringEnable:
		return []string{fmt.Sprintf("index=%d num=%d", m.State.Index, m.State.Num)}
	case m.Request == vhostuser.SetLogBase && front:
		return []string{fmt.Sprintf("size=%#x offset=%#x", m.Log.Size, m.Log.Offset)}
	case m.Request == vhostuser.GetInflightFD || m.Request == vhostuser.SetInflightFD:
		return []string{fmt.Sprintf("size=%#x queues=%d queue-size=%d", m.Inflight.Size, m.Inflight.Queues, m.Inflight.QueueSize)}
	case m.Request == vhostuser.GetConfig || m.Request == vhostuser.SetConfig:
		return []string{fmt.Sprintf("offset=%d size=%d", m.Config.Offset, m.Config.Size)}
	}
	return []string{fmt.Sprintf("%#x", m.U64)}
}

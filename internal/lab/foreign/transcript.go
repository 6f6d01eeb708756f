// SPDX-License-Identifier: Apache-2.0

package foreign

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/netbackd/netbackd/pkg/vhostuser"
)

// headerSize is the size in bytes of a message's header.
const headerSize = 12

// header decodes the header of a message, in the byte order of the machine.
func header(b []byte) vhostuser.Header {
	return vhostuser.Header{
		Request: vhostuser.Request(binary.NativeEndian.Uint32(b)),
		Flags:   binary.NativeEndian.Uint32(b[4:]),
		Size:    binary.NativeEndian.Uint32(b[8:]),
	}
}

// line describes a message with a number of descriptors. What differs from run to run is
// left out: addresses in a process, and positions in rings that are in use.
func line(front bool, b []byte, files int) string {
	h, payload := header(b), b[headerSize:]
	words := []string{"back ", h.Request.String()}
	decode := vhostuser.DecodeReply
	if front {
		words[0], decode = "front", vhostuser.Decode
	}
	if h.NeedReply() {
		words = append(words, "need-reply")
	}
	m, err := decode(h, payload)
	if err != nil {
		words = append(words, fmt.Sprintf("bytes=%d", len(payload)))
	} else {
		words = append(words, fields(front, &m, payload)...)
	}
	if files > 0 {
		words = append(words, fmt.Sprintf("files=%d", files))
	}
	return strings.Join(words, " ")
}

// answered has the requests whose answer is more than a number.
var answered = map[vhostuser.Request]bool{
	vhostuser.GetVringBase:  true,
	vhostuser.GetInflightFD: true,
	vhostuser.GetConfig:     true,
	vhostuser.SetConfig:     true,
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
	case !front && !answered[m.Request]:
		return []string{fmt.Sprintf("%#x", m.U64)} // an acknowledgement, or a number that was asked for
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
	case m.Request == vhostuser.SetLogBase:
		return []string{fmt.Sprintf("size=%#x offset=%#x", m.Log.Size, m.Log.Offset)}
	case m.Request == vhostuser.GetInflightFD || m.Request == vhostuser.SetInflightFD:
		return []string{fmt.Sprintf("size=%#x queues=%d queue-size=%d", m.Inflight.Size, m.Inflight.Queues, m.Inflight.QueueSize)}
	case m.Request == vhostuser.GetConfig || m.Request == vhostuser.SetConfig:
		return []string{fmt.Sprintf("offset=%d size=%d", m.Config.Offset, m.Config.Size)}
	}
	return []string{fmt.Sprintf("%#x", m.U64)}
}

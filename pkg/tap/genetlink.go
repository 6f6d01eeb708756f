// SPDX-License-Identifier: Apache-2.0

package tap

import (
	"encoding/binary"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/nlsock"
)

// genlHeader is struct genlmsghdr of linux/genetlink.h: command, version, and two reserved
// bytes. nl.Genlmsg is not used: it is two bytes long and writes four, so it sends two
// bytes of memory that belongs to others, which the race detector reports now and then.
type genlHeader [nl.SizeofGenlmsg]byte

func (h *genlHeader) Len() int { return len(h) }

func (h *genlHeader) Serialize() []byte { return h[:] }

// genlRequest begins a request of a family of generic netlink.
func genlRequest(family uint16, command, version uint8, flags int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(int(family), flags)
	req.AddData(&genlHeader{command, version})
	return req
}

// genlFamily returns the number that the kernel has given to a family, or ENOENT.
func genlFamily(name string) (id uint16, err error) {
	req := genlRequest(unix.GENL_ID_CTRL, unix.CTRL_CMD_GETFAMILY, 2, 0) // CTRL_VERSION
	req.AddData(nl.NewRtAttr(unix.CTRL_ATTR_FAMILY_NAME, nl.ZeroTerminated(name)))
	msgs, err := nlsock.Execute(req, unix.NETLINK_GENERIC, 0)
	if err != nil {
		return 0, err
	}
	if len(msgs) != 1 || len(msgs[0]) < nl.SizeofGenlmsg {
		return 0, unix.EBADMSG
	}
	err = attributes(msgs[0][nl.SizeofGenlmsg:], func(typ uint16, value []byte) error {
		if typ == unix.CTRL_ATTR_FAMILY_ID && len(value) == 2 {
			id = binary.NativeEndian.Uint16(value)
		}
		return nil
	})
	if err == nil && id == 0 {
		err = unix.EBADMSG
	}
	return id, err
}

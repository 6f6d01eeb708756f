// SPDX-License-Identifier: Apache-2.0

package tap

import (
	"errors"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/nlsock"
)

// skipStats is a bit of IFLA_EXT_MASK: RTEXT_FILTER_SKIP_STATS of linux/rtnetlink.h.
const skipStats = 1 << 3

// dumpTries bounds the dumps that Up makes while interfaces come and go.
const dumpTries = 3

// Up returns the TUN and TAP devices of the calling thread's network namespace by their
// indices, and whether each is up. It makes one request for all of them.
func Up() (up map[int]bool, err error) {
	for range dumpTries {
		req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
		req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
		req.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)))
		kind := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
		kind.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("tun"))
		req.AddData(kind)
		var msgs [][]byte
		msgs, err = nlsock.Execute(req, unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
		if errors.Is(err, nl.ErrDumpInterrupted) {
			continue
		}
		up = make(map[int]bool, len(msgs))
		for _, m := range msgs {
			i := nl.DeserializeIfInfomsg(m)
			up[int(i.Index)] = i.Flags&unix.IFF_UP != 0
		}
		break
	}
	return up, err
}

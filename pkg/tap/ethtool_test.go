// SPDX-License-Identifier: Apache-2.0

package tap

import (
	"bytes"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// activeFeatures returns the names of the features which a device really has, as
// `ethtool -k` would show them.
func activeFeatures(t *testing.T, ifindex int) map[string]bool {
	t.Helper()
	family, err := genlFamily("ethtool")
	if err != nil {
		t.Skipf("no ethtool netlink: %v", err)
	}
	req := genlRequest(family, unix.ETHTOOL_MSG_FEATURES_GET, 1, 0)
	header := nl.NewRtAttr(unix.ETHTOOL_A_FEATURES_HEADER|unix.NLA_F_NESTED, nil)
	header.AddRtAttr(unix.ETHTOOL_A_HEADER_DEV_INDEX, nl.Uint32Attr(uint32(ifindex)))
	req.AddData(header)
	msgs, err := req.Execute(unix.NETLINK_GENERIC, 0)
	must(t, err)
	features := map[string]bool{}
	for _, m := range msgs {
		active := find(t, m[nl.SizeofGenlmsg:], unix.ETHTOOL_A_FEATURES_ACTIVE)
		for _, bits := range active {
			for _, list := range find(t, bits, unix.ETHTOOL_A_BITSET_BITS) {
				for _, bit := range find(t, list, unix.ETHTOOL_A_BITSET_BITS_BIT) {
					for _, name := range find(t, bit, unix.ETHTOOL_A_BITSET_BIT_NAME) {
						features[string(bytes.TrimRight(name, "\x00"))] = true
					}
				}
			}
		}
	}
	return features
}

// find returns the values of all attributes of a type.
func find(t *testing.T, b []byte, typ uint16) (values [][]byte) {
	t.Helper()
	attrs, err := nl.ParseRouteAttr(b)
	must(t, err)
	for _, a := range attrs {
		if a.Attr.Type&^unix.NLA_F_NESTED == typ {
			values = append(values, a.Value)
		}
	}
	return values
}

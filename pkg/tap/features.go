// SPDX-License-Identifier: Apache-2.0

package tap

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/nlsock"
)

// ethtoolFeatures holds a device's features, by the names that ethtool shows: those that
// can be switched, those that the host wants, and those that the device has.
type ethtoolFeatures struct{ switchable, wanted, active map[string]bool }

// Names of the features that an Offload allows.
const (
	featureCsum = "tx-checksum-ip-generic"
	featureTSO4 = "tx-tcp-segmentation"
	featureTSO6 = "tx-tcp6-segmentation"
	featureECN  = "tx-tcp-ecn-segmentation"
	featureUSO  = "tx-udp-segmentation"
)

// offloadOf returns the Offload whose features are in a set.
func offloadOf(set map[string]bool) Offload {
	return Offload{
		Csum: set[featureCsum], TSO4: set[featureTSO4], TSO6: set[featureTSO6],
		ECN: set[featureECN], USO: set[featureUSO],
	}
}

// and returns what both allow.
func (o Offload) and(p Offload) Offload {
	o.Csum = o.Csum && p.Csum
	o.TSO4 = o.TSO4 && p.TSO4 && o.Csum
	o.TSO6 = o.TSO6 && p.TSO6 && o.Csum
	o.ECN = o.ECN && p.ECN && (o.TSO4 || o.TSO6)
	o.USO = o.USO && p.USO && o.Csum
	return o
}

// ethtoolID is the number of the kernel's netlink family ethtool, 0 if it is not known yet.
var ethtoolID atomic.Uint32

// ethtoolFamily returns the number of the kernel's netlink family ethtool. It asks the kernel
// until it has an answer.
func ethtoolFamily() (uint16, error) {
	if id := ethtoolID.Load(); id != 0 {
		return uint16(id), nil
	}
	id, err := genlFamily("ethtool")
	if errors.Is(err, unix.ENOENT) {
		err = errNoEthtool
	}
	if err != nil {
		return 0, fmt.Errorf("ethtool by netlink: %w", err)
	}
	ethtoolID.Store(uint32(id))
	return id, nil
}

// featureRequest begins a request about the features of an interface of the calling
// thread's network namespace.
func featureRequest(command uint8, index int, flags int, headerFlags uint32) (*nl.NetlinkRequest, error) {
	family, err := ethtoolFamily()
	if err != nil {
		return nil, err
	}
	req := genlRequest(family, command, 1, flags)
	header := nl.NewRtAttr(unix.ETHTOOL_A_FEATURES_HEADER|unix.NLA_F_NESTED, nil)
	header.AddRtAttr(unix.ETHTOOL_A_HEADER_DEV_INDEX, nl.Uint32Attr(uint32(index)))
	header.AddRtAttr(unix.ETHTOOL_A_HEADER_FLAGS, nl.Uint32Attr(headerFlags))
	req.AddData(header)
	return req, nil
}

// getFeatures asks for the features of an interface.
func getFeatures(index int) (*ethtoolFeatures, error) {
	req, err := featureRequest(unix.ETHTOOL_MSG_FEATURES_GET, index, 0, 0)
	if err != nil {
		return nil, err
	}
	msgs, err := nlsock.Execute(req, unix.NETLINK_GENERIC, 0)
	if err != nil {
		return nil, err
	}
	if len(msgs) != 1 || len(msgs[0]) < nl.SizeofGenlmsg {
		return nil, fmt.Errorf("features: %w", unix.EBADMSG)
	}
	f := &ethtoolFeatures{}
	err = attributes(msgs[0][nl.SizeofGenlmsg:], func(typ uint16, value []byte) (err error) {
		switch typ {
		case unix.ETHTOOL_A_FEATURES_HW:
			f.switchable, err = bitNames(value)
		case unix.ETHTOOL_A_FEATURES_WANTED:
			f.wanted, err = bitNames(value)
		case unix.ETHTOOL_A_FEATURES_ACTIVE:
			f.active, err = bitNames(value)
		}
		return err
	})
	return f, err
}

// attributes calls f for each attribute.
func attributes(b []byte, f func(typ uint16, value []byte) error) error {
	attrs, err := nl.ParseRouteAttr(b)
	for _, a := range attrs {
		if err == nil {
			err = f(a.Attr.Type&^unix.NLA_F_NESTED, a.Value)
		}
	}
	return err
}

// bitNames returns the names of the bits that are set in a bitset: all that are in it,
// or if it has a mask, those with a value.
func bitNames(bitset []byte) (map[string]bool, error) {
	names := map[string]bool{}
	noMask := false
	err := attributes(bitset, func(typ uint16, bits []byte) error {
		switch typ {
		case unix.ETHTOOL_A_BITSET_NOMASK:
			noMask = true
		case unix.ETHTOOL_A_BITSET_BITS:
			return attributes(bits, func(_ uint16, bit []byte) error {
				name, set := "", noMask
				err := attributes(bit, func(typ uint16, value []byte) error {
					switch typ {
					case unix.ETHTOOL_A_BITSET_BIT_NAME:
						name = unix.ByteSliceToString(value)
					case unix.ETHTOOL_A_BITSET_BIT_VALUE:
						set = true
					}
					return nil
				})
				if set {
					names[name] = true
				}
				return err
			})
		}
		return nil
	})
	return names, err
}

// want sets the features that the host wants, of those that can be switched.
func (f *ethtoolFeatures) want(index int) error {
	req, err := featureRequest(unix.ETHTOOL_MSG_FEATURES_SET, index, unix.NLM_F_ACK, unix.ETHTOOL_FLAG_OMIT_REPLY)
	if err != nil {
		return err
	}
	wanted := nl.NewRtAttr(unix.ETHTOOL_A_FEATURES_WANTED|unix.NLA_F_NESTED, nil)
	bits := wanted.AddRtAttr(unix.ETHTOOL_A_BITSET_BITS|unix.NLA_F_NESTED, nil)
	for name := range f.switchable {
		bit := bits.AddRtAttr(unix.ETHTOOL_A_BITSET_BITS_BIT|unix.NLA_F_NESTED, nil)
		bit.AddRtAttr(unix.ETHTOOL_A_BITSET_BIT_NAME, nl.ZeroTerminated(name))
		if f.wanted[name] {
			bit.AddRtAttr(unix.ETHTOOL_A_BITSET_BIT_VALUE, nil)
		}
	}
	req.AddData(wanted)
	_, err = nlsock.Execute(req, unix.NETLINK_GENERIC, 0)
	return err
}

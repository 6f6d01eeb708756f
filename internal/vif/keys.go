// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// Rate limits the traffic from the guest to Bytes per Interval. If Bytes is 0 there is no
// limit.
type Rate struct {
	Bytes    uint64
	Interval time.Duration
}

func (r Rate) String() string {
	if r.Bytes == 0 {
		return "unlimited"
	}
	return fmt.Sprintf("%d B/%v", r.Bytes, r.Interval)
}

// maxInterval bounds the interval of a rate, in microseconds: a guest must not wait for
// hours.
const maxInterval = uint64(time.Hour / time.Microsecond)

// parseRate parses the key "rate": bytes per interval, and the interval in microseconds,
// such as "10240,50000" from libxl. An empty value and 0 bytes mean no limit, and so does
// 4294967295, which libxl writes.
func parseRate(v string) (Rate, error) {
	if v == "" {
		return Rate{}, nil
	}
	bad := &xenbus.KeyError{Key: "rate", Value: v, Want: "bytes and microseconds, such as 10240,50000"}
	b, u, _ := strings.Cut(v, ",")
	bytes, err := strconv.ParseUint(b, 10, 63)
	if err != nil {
		return Rate{}, bad
	}
	us, err := strconv.ParseUint(u, 10, 64)
	if err != nil || us > maxInterval || us == 0 && bytes != 0 {
		return Rate{}, bad
	}
	if bytes == 0 || bytes >= 1<<32-1 {
		return Rate{}, nil
	}
	return Rate{Bytes: bytes, Interval: time.Duration(us) * time.Microsecond}, nil
}

// parseWeight parses the key "weight": a guest's part of a worker's time, beside guests with 1.
// An empty value means 1.
func parseWeight(v string) (int, error) {
	if v == "" {
		return 1, nil
	}
	n, err := strconv.ParseUint(v, 10, 8)
	if err != nil || n < 1 || n > dataplane.MaxWeight {
		return 0, &xenbus.KeyError{Key: "weight", Value: v, Want: fmt.Sprintf("a number from 1 to %d", dataplane.MaxWeight)}
	}
	return int(n), nil
}

// parseMAC parses six bytes in hex with colons. They must not be a group address.
func parseMAC(v string) (net.HardwareAddr, error) {
	m, err := net.ParseMAC(v)
	if err != nil || len(m) != 6 || strings.Count(v, ":") != 5 {
		return nil, &xenbus.KeyError{Key: "mac", Value: v, Want: "an address such as 00:16:3e:01:02:03"}
	}
	if m[0]&1 != 0 {
		return nil, &xenbus.KeyError{Key: "mac", Value: v, Want: "an address that is not multicast"}
	}
	return m, nil
}

// Bounds of an interface's MTU: IPv4 needs minMTU (RFC 791), and maxMTU fits a packet of
// the ring protocol.
const (
	minMTU     = 68
	maxMTU     = 65521
	defaultMTU = 1500
)

// parseMTU parses the key "mtu", which libxl writes if it is not 1500. It returns 0 for
// an empty value.
func parseMTU(v string) (int, error) {
	if v == "" {
		return 0, nil
	}
	n, err := xenbus.ParseUint("mtu", v, minMTU, maxMTU)
	return int(n), err
}

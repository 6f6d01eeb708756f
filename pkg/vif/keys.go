// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

// KeyError is a key in xenstore whose value makes no sense.
type KeyError struct {
	Key   string // relative to the vif's directory
	Value string
	Want  string
}

func (e *KeyError) Error() string {
	return fmt.Sprintf("key %q is %q, want %s", e.Key, clip(e.Value), e.Want)
}

// clip keeps what a guest wrote from filling logs and xenstore.
func clip(v string) string {
	const most = 64
	if len(v) > most {
		return v[:most] + "..."
	}
	return v
}

// parseUint reads a decimal number of at most max.
func parseUint(key, v string, max uint64) (uint64, error) {
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil || n > max {
		return 0, &KeyError{key, v, fmt.Sprintf("a number up to %d", max)}
	}
	return n, nil
}

// parseBool reads "0" or "1", as all feature and request keys are. An empty
// value is no: Windows frontends leave keys they withdraw empty.
func parseBool(key, v string) (bool, error) {
	switch v {
	case "0", "":
		return false, nil
	case "1":
		return true, nil
	}
	return false, &KeyError{key, v, "0 or 1"}
}

// Rate is the limit of traffic from the guest: so many octets per interval,
// without limit if Bytes is 0.
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

// maxInterval keeps a rate from meaning nothing for hours.
const maxInterval = uint64(time.Hour / time.Microsecond)

// parseRate reads the key "rate": octets per interval, interval in microseconds,
// as libxl writes "10240,50000". An empty value, and 0 octets, mean no limit
// (libxl writes 4294967295 for that too).
func parseRate(v string) (Rate, error) {
	if v == "" {
		return Rate{}, nil
	}
	want := func() (Rate, error) {
		return Rate{}, &KeyError{"rate", v, "octets,microseconds such as 10240,50000"}
	}
	b, u, ok := strings.Cut(v, ",")
	if !ok {
		return want()
	}
	bytes, err := strconv.ParseUint(b, 10, 63)
	if err != nil {
		return want()
	}
	us, err := strconv.ParseUint(u, 10, 64)
	if err != nil || us > maxInterval || us == 0 && bytes != 0 {
		return want()
	}
	if bytes >= 1<<32-1 {
		bytes = 0
	}
	return Rate{Bytes: bytes, Interval: time.Duration(us) * time.Microsecond}, nil
}

// parseMAC reads six octets in hex with colons. It must not be a group address.
func parseMAC(v string) (net.HardwareAddr, error) {
	m, err := net.ParseMAC(v)
	if err != nil || len(m) != 6 || strings.ContainsAny(v, "-.") {
		return nil, &KeyError{"mac", v, "an address such as 00:16:3e:01:02:03"}
	}
	if m[0]&1 != 0 {
		return nil, &KeyError{"mac", v, "an address that is not multicast"}
	}
	return m, nil
}

// Bounds of an interface's MTU: what IPv4 needs (RFC 791), and what fits a
// packet.
const (
	minMTU     = 68
	maxMTU     = 65521
	defaultMTU = 1500
)

func parseMTU(v string) (int, error) {
	n, err := parseUint("mtu", v, maxMTU)
	if err != nil || n < minMTU {
		return 0, &KeyError{"mtu", v, fmt.Sprintf("%d to %d", minMTU, maxMTU)}
	}
	return int(n), nil
}

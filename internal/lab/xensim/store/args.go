// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"math"
	"strings"
)

// Payloads are parsed as xenstored does, which accepts more than the documentation: bytes
// behind the last NUL are ignored, and numbers are C numbers.

// oneString returns the only string of a payload: exactly one NUL, at the end.
func oneString(b []byte) (string, bool) {
	if i := bytes.IndexByte(b, 0); i >= 0 && i == len(b)-1 {
		return string(b[:i]), true
	}
	return "", false
}

// allStrings returns every NUL-terminated string of a payload.
func allStrings(b []byte) []string {
	var ss []string
	for {
		head, rest, ok := bytes.Cut(b, []byte{0})
		if !ok {
			return ss
		}
		ss, b = append(ss, string(head)), rest
	}
}

// atoi implements atoi(3) stored in an unsigned int, as xenstored reads a domid: text
// without a number is 0, and text behind a number is ignored.
func atoi(s string) uint32 {
	v, _ := strtol(s, 10)
	return uint32(int32(v))
}

// strtol implements strtol(3). It returns the rest of s behind the number, all of s if
// there is none. Base 0 takes the base from a prefix.
func strtol(s string, base int64) (v int64, rest string) {
	t := strings.TrimLeft(s, " \t\n\v\f\r")
	neg := strings.HasPrefix(t, "-")
	if neg || strings.HasPrefix(t, "+") {
		t = t[1:]
	}
	if base == 0 {
		base = 10
		switch {
		case len(t) > 2 && t[0] == '0' && t[1]|0x20 == 'x' && digit(t[2]) < 16:
			base, t = 16, t[2:]
		case strings.HasPrefix(t, "0"):
			base = 8
		}
	}
	n, over := 0, false
	for ; n < len(t) && digit(t[n]) < base; n++ {
		over = over || v > (math.MaxInt64-digit(t[n]))/base
		v = v*base + digit(t[n])
	}
	switch {
	case n == 0:
		return 0, s
	case over && neg:
		v = math.MinInt64
	case over:
		v = math.MaxInt64
	case neg:
		v = -v
	}
	return v, t[n:]
}

// digit returns the value of a digit of base 16 or less, 16 for anything else.
func digit(c byte) int64 {
	switch {
	case '0' <= c && c <= '9':
		return int64(c - '0')
	case 'a' <= c|0x20 && c|0x20 <= 'f':
		return int64(c|0x20-'a') + 10
	}
	return 16
}

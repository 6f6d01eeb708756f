// SPDX-License-Identifier: Apache-2.0

package xenbus

import (
	"fmt"
	"strconv"
	"strings"
)

// Trim removes what some frontends write around a value: white space, and the NUL that
// ends a string in C.
func Trim(v string) string { return strings.TrimSpace(strings.TrimRight(v, "\x00")) }

// ParseUint parses the value of a key as a decimal number from min to max. The error is a
// *KeyError.
func ParseUint(key, v string, min, max uint64) (uint64, error) {
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil || n < min || n > max {
		return 0, &KeyError{Key: key, Value: v, Want: wantUint(min, max)}
	}
	return n, nil
}

func wantUint(min, max uint64) string { return fmt.Sprintf("a number from %d to %d", min, max) }

// ParseBool parses the value of a feature or request key: 0 or 1. An empty value is false:
// Windows frontends empty the keys that they withdraw. The error is a *KeyError.
func ParseBool(key, v string) (bool, error) {
	switch v {
	case "0", "":
		return false, nil
	case "1":
		return true, nil
	}
	return false, &KeyError{Key: key, Value: v, Want: "0 or 1"}
}

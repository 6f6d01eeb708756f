// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"fmt"
	"strconv"
	"strings"
)

// Cache selects the use of the host's page cache.
type Cache uint8

// Cache modes.
const (
	// CacheAuto is CacheDirect for block devices and CacheWriteback for files.
	CacheAuto Cache = iota
	// CacheWriteback goes through the page cache.
	CacheWriteback
	// CacheDirect bypasses the page cache (O_DIRECT).
	CacheDirect
)

var cacheNames = [...]string{"auto", "writeback", "direct"}

func (c Cache) String() string {
	if int(c) < len(cacheNames) {
		return cacheNames[c]
	}
	return fmt.Sprintf("Cache(%d)", uint8(c))
}

// ParseCache returns the mode that s names.
func ParseCache(s string) (Cache, error) {
	for i, name := range cacheNames {
		if s == name {
			return Cache(i), nil
		}
	}
	return 0, fmt.Errorf("cache mode %q: want auto, writeback or direct", s)
}

// MarshalText returns the mode's name.
func (c Cache) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText reads the mode's name.
func (c *Cache) UnmarshalText(text []byte) (err error) {
	*c, err = ParseCache(string(text))
	return err
}

// Options say what Open opens, and how.
type Options struct {
	// Path of a file or block device. It may be a symbolic link.
	Path string

	// ReadOnly refuses writes and takes a shared lock. CDROM does the same.
	ReadOnly bool
	CDROM    bool

	Cache Cache

	// SectorSize, if it is not 0, is the sector size that a guest was told, which it keeps
	// to. A file whose direct operations need more goes through the page cache.
	SectorSize int

	// NullSize makes a null store of so many bytes instead: writes go nowhere. Reads
	// give zeroes, or with NullLeave leave the buffer as it is, which shows a guest
	// what other requests left there: for measurements only.
	NullSize  int64
	NullLeave bool

	// Waiting, if set, is called while Open waits for the lock: at once, when the
	// holder changes, and every few seconds.
	Waiting func(Holder)
}

// ParseParams returns the options for a device's node params: a path, with the prefix
// "aio:" or "raw:" of a toolstack's disk type or without, or "null:SIZE" for a null store,
// SIZE in bytes or with a suffix k, m, g or t for powers of 1024.
func ParseParams(params string) (Options, error) {
	rest := strings.TrimSuffix(params, "\x00")
	if size, ok := strings.CutPrefix(rest, "null:"); ok {
		n, err := parseSize(size)
		if err != nil {
			return Options{}, fmt.Errorf("params %q: %w", params, err)
		}
		return Options{NullSize: n}, nil
	}
	for _, prefix := range []string{"aio:", "raw:", "file:", "phy:"} {
		if path, ok := strings.CutPrefix(rest, prefix); ok {
			rest = path
			break
		}
	}
	switch {
	case rest == "":
		return Options{}, fmt.Errorf("params %q: no path", params)
	case strings.ContainsRune(rest, 0):
		return Options{}, fmt.Errorf("params %q: the path has a zero byte", params)
	case rest[0] != '/':
		return Options{}, fmt.Errorf("params %q: the path must be absolute, and the format raw", params)
	}
	return Options{Path: rest}, nil
}

// parseSize parses a positive multiple of 512, such as "1073741824" or "1g".
func parseSize(s string) (int64, error) {
	shift := 0
	if n := len(s); n > 0 {
		if i := strings.IndexByte("kmgt", s[n-1]|0x20); i >= 0 {
			shift, s = 10*(i+1), s[:n-1]
		}
	}
	n, err := strconv.ParseUint(s, 10, 63-shift)
	switch {
	case err != nil:
		return 0, fmt.Errorf("size: %w", err)
	case n == 0 || n<<shift%SectorSize != 0:
		return 0, fmt.Errorf("size %d: want a positive multiple of %d", n<<shift, SectorSize)
	}
	return int64(n << shift), nil
}

// SPDX-License-Identifier: Apache-2.0

package xenstore

import (
	"fmt"
	"strings"

	"github.com/netbackd/netbackd/pkg/xen"
)

// The special paths. They are not nodes. They can be watched, and their permissions
// tell which domains may do that.
const (
	// IntroduceDomain fires when a domain is introduced to xenstored.
	IntroduceDomain = "@introduceDomain"

	// ReleaseDomain fires when a domain crashes, shuts down, is released or
	// destroyed. The event does not name the domain: check all of them again.
	// An xenstored that knows depths takes ReleaseDomain+"/<domid>" for one domain.
	ReleaseDomain = "@releaseDomain"
)

// CheckPath returns nil if path can name a node: absolute or relative, ASCII
// letters, digits and - / _ @ only, no empty component, no slash at the end
// (but "/" itself is the root), not longer than MaxAbsPath or MaxRelPath.
// The error wraps ErrPath.
func CheckPath(path string) error {
	if strings.HasPrefix(path, "@") {
		return fmt.Errorf("%w: a special path is not a node", ErrPath)
	}
	return checkPath(path)
}

// CheckWatchPath is CheckPath for the requests that accept a special path too:
// WATCH, UNWATCH, GET_PERMS and SET_PERMS.
func CheckWatchPath(path string) error { return checkPath(path) }

func checkPath(path string) error {
	limit := MaxRelPath
	if strings.HasPrefix(path, "/") {
		limit = MaxAbsPath
	}
	switch {
	case path == "":
		return fmt.Errorf("%w: empty", ErrPath)
	case path == "/":
		return nil
	case len(path) > limit:
		return fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrPath, len(path), limit)
	case strings.HasSuffix(path, "/"):
		return fmt.Errorf("%w: slash at the end", ErrPath)
	case strings.Contains(path, "//"):
		return fmt.Errorf("%w: double slash", ErrPath)
	}
	for i := range len(path) {
		if !pathByte(path[i]) {
			return fmt.Errorf("%w: byte %q", ErrPath, path[i])
		}
	}
	return nil
}

func pathByte(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return true
	case c == '-', c == '/', c == '_', c == '@':
		return true
	}
	return false
}

// DomainPath returns the home of a domain, /local/domain/<domid>. Relative
// paths of a domain start there.
func DomainPath(domid xen.Domid) string {
	return fmt.Sprintf("/local/domain/%d", domid)
}

// SPDX-License-Identifier: Apache-2.0

package store

import (
	"strings"

	"github.com/netbackd/netbackd/pkg/xenstore"
)

// maxPath is the default of xenstored's path-max in bytes. It bounds the part of an
// absolute path behind /local/domain/<domid>/, or the whole of any other path.
const maxPath = xenstore.MaxRelPath

// pathBytes are the bytes allowed in a path.
const pathBytes = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-/_@"

// validPath reports whether path can name a node: absolute, of allowed bytes,
// without empty components.
func validPath(path string, limit int) bool {
	switch {
	case !strings.HasPrefix(path, "/"):
		return false
	case path != "/" && strings.HasSuffix(path, "/"):
		return false
	case strings.Contains(path, "//"):
		return false
	case len(path)-homeLen(path) > limit:
		return false
	}
	for i := range len(path) {
		if strings.IndexByte(pathBytes, path[i]) < 0 {
			return false
		}
	}
	return true
}

// homeLen returns the length of a leading /local/domain/<domid>/, 0 without one. A
// domain may use the whole length of a relative path below its home.
func homeLen(path string) int {
	const prefix = "/local/domain/"
	rest, ok := strings.CutPrefix(path, prefix)
	if !ok {
		return 0
	}
	digits := 0
	for digits < len(rest) && digits < 5 && '0' <= rest[digits] && rest[digits] <= '9' {
		digits++
	}
	if digits == 0 || digits == len(rest) || rest[digits] != '/' {
		return 0
	}
	return len(prefix) + digits + 1
}

// parentOf returns the path of the node above; the root is its own parent.
func parentOf(path string) string {
	if i := strings.LastIndexByte(path, '/'); i > 0 {
		return path[:i]
	}
	return "/"
}

// leafOf returns the last component of a path other than the root.
func leafOf(path string) string {
	return path[strings.LastIndexByte(path, '/')+1:]
}

func join(parent, leaf string) string {
	if parent == "/" {
		return "/" + leaf
	}
	return parent + "/" + leaf
}

// within reports whether path is root or lies below it.
func within(path, root string) bool {
	if root == "/" {
		return true
	}
	rest, ok := strings.CutPrefix(path, root)
	return ok && (rest == "" || rest[0] == '/')
}

// isSpecial reports whether path is one of the @ paths, which name no nodes.
func isSpecial(path string) bool { return strings.HasPrefix(path, "@") }

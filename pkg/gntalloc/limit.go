// SPDX-License-Identifier: Apache-2.0

package gntalloc

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// LimitPath is the file with the largest number of pages that all programs of this domain
// may have granted at a time. Root may write it while the module is loaded.
const LimitPath = "/sys/module/xen_gntalloc/parameters/limit"

// DefaultLimit is the kernel's limit if the administrator has set none.
const DefaultLimit = 1024

// Limit reads the number in a file such as [LimitPath].
func Limit(path string) (int, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return n, nil
}

// maxReserve bounds the pages of the limit that are left to other programs of this domain,
// such as those with a vchan to another domain. A vchan takes a few pages.
const maxReserve = 1024

// Share returns how many pages of a limit a program that could use many should take at
// most: it leaves a quarter of them, or 1024, to others.
func Share(limit int) int { return max(0, limit-min(limit/4, maxReserve)) }

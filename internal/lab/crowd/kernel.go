// SPDX-License-Identifier: Apache-2.0

package crowd

import (
	"fmt"
	"strconv"
	"strings"
)

// kernelMemory are the fields of /proc/meminfo that count the kernel's own memory.
var kernelMemory = []string{"SUnreclaim", "VmallocUsed", "Percpu", "PageTables", "KernelStack"}

// KernelMemory returns the memory in bytes that the kernel of the whole machine uses for itself.
// What else the machine does is in it.
func KernelMemory() (sum int64, err error) {
	words, err := fields("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for _, key := range kernelMemory {
		kib, err := strconv.ParseInt(strings.TrimSuffix(words[key], " kB"), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/meminfo: %s: %w", key, err)
		}
		sum += kib << 10
	}
	return sum, nil
}

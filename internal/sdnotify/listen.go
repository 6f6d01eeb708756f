// SPDX-License-Identifier: Apache-2.0

package sdnotify

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	firstFD  = 3       // SD_LISTEN_FDS_START
	maxFiles = 1 << 16 // more than any manager passes
)

// File is an open file that the manager passed on.
type File struct {
	Name string // as given to Store; "unknown" if the manager passed no names
	FD   int
}

// listenFiles returns the files that were passed to the process pid. Their descriptors
// start at first.
func listenFiles(pid, first int, getenv func(string) string) ([]File, error) {
	if getenv(envListenPID) != strconv.Itoa(pid) {
		return nil, nil // there are none, or they were passed to a parent
	}
	n, err := strconv.ParseUint(getenv(envListenFDs), 10, 31)
	if err != nil || n > maxFiles {
		return nil, fmt.Errorf("$%s is %q, want a number of files", envListenFDs, getenv(envListenFDs))
	}
	var names []string
	if list := getenv(envListenNames); list != "" {
		names = strings.Split(list, ":")
	}
	files := make([]File, n)
	for i := range files {
		files[i] = File{Name: "unknown", FD: first + i}
		if len(names) == len(files) {
			files[i].Name = names[i]
		}
		unix.CloseOnExec(files[i].FD)
	}
	if names != nil && len(names) != len(files) {
		return files, fmt.Errorf("$%s has %d names for %d files", envListenNames, len(names), n)
	}
	return files, nil
}

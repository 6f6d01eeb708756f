// SPDX-License-Identifier: Apache-2.0

// Package rundir writes files in the run directory, where a daemon leaves its records for
// its successor.
package rundir

import (
	"errors"
	"os"
	"strings"
)

// newSuffix ends the name of a file that is not complete.
const newSuffix = ".new"

// Replace writes b to a new file, which then takes the place of the file at path. A
// daemon that is killed at any instruction leaves the old file or the new one.
func Replace(path string, b []byte) error {
	if err := os.WriteFile(path+newSuffix, b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+newSuffix, path)
}

// Remove removes the file at path, and the incomplete file of a killed Replace. It returns
// nil if there is nothing to remove.
func Remove(path string) error {
	var errs []error
	for _, p := range []string{path, path + newSuffix} {
		if err := os.Remove(p); !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Base returns the name of the file that Replace writes. name is that name, or the name of
// an incomplete file that Replace left.
func Base(name string) string { return strings.TrimSuffix(name, newSuffix) }

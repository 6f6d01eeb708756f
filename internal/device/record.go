// SPDX-License-Identifier: Apache-2.0

package device

import (
	"encoding/json"
	"errors"
	"os"
	"time"

	"github.com/netbackd/netbackd/internal/rundir"
)

// Record is the file with the facts about a device that a successor needs and that are
// neither in xenstore nor in journals. The file is JSON. The whole file is written when it
// changes.
type Record struct {
	path  string // empty: there is no run directory
	saved string // contents of the file
	at    time.Time
}

// NewRecord returns the record in the file at path. If path is empty it is not kept.
func NewRecord(path string) Record { return Record{path: path} }

// Save writes v if it differs from the file.
func (r *Record) Save(v any) error {
	if r.path == "" {
		return nil
	}
	b, err := json.Marshal(v)
	if err != nil || string(b) == r.saved {
		return err
	}
	r.at = time.Now()
	if err = rundir.Replace(r.path, b); err == nil {
		r.saved = string(b)
	}
	return err
}

// SavedAt returns the time of the last attempt to write the file.
func (r *Record) SavedAt() time.Time { return r.at }

// Load reads the record of a predecessor into v, and reports whether there is one.
func (r *Record) Load(v any) (found bool, err error) {
	if r.path == "" {
		return false, nil
	}
	b, err := os.ReadFile(r.path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		return false, err
	}
	r.saved = string(b)
	return true, nil
}

// Exists reports whether there is a record.
func (r *Record) Exists() bool {
	if r.path == "" {
		return false
	}
	_, err := os.Stat(r.path)
	return err == nil
}

// Remove removes the record of a device that is gone.
func (r *Record) Remove() error {
	r.saved = ""
	if r.path == "" {
		return nil
	}
	return rundir.Remove(r.path)
}

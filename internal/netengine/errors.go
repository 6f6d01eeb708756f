// SPDX-License-Identifier: Apache-2.0

package netengine

import (
	"errors"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/procs"
	"github.com/netbackd/netbackd/internal/procwire"
)

var (
	// ErrDied is returned if the packet process of a link has ended, or is not running at
	// the moment. The vif tries again.
	ErrDied = errors.New("the packet process does not run")

	// ErrFault is returned if a packet process had an internal error that concerns one
	// link. The vif is quarantined.
	ErrFault = errors.New("internal error of the packet process")
)

// causes are the errors that the answers of a packet process tell apart.
var causes = procs.Causes{dataplane.ErrClosed, ErrFault}

// putError appends an error to the body of an answer; nil is one, too.
func putError(w *procwire.Writer, err error) { causes.Put(w, err) }

// takeError reads an error of putError.
func takeError(r *procwire.Reader) error { return causes.Take(r) }

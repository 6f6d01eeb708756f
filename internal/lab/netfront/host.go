// SPDX-License-Identifier: Apache-2.0

package netfront

import "github.com/netbackd/netbackd/internal/lab/xenfront"

// Names for what the frontends of all classes share.
type (
	Host       = xenfront.Host
	Pages      = xenfront.Pages
	UseChecker = xenfront.UseChecker
	Events     = xenfront.Events
	Store      = xenfront.Store
)

// ErrGone is returned while waiting for a backend that has removed itself.
var ErrGone = xenfront.ErrGone

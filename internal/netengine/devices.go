// SPDX-License-Identifier: Apache-2.0

package netengine

import (
	"github.com/netbackd/netbackd/internal/host"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Opener opens Xen's devices for a packet process. It does not use them. The descriptors are
// the caller's.
type Opener interface {
	OpenGrantFile() (int, error)
	OpenPageFile() (int, error)
	// OpenEventFiles opens an event channel device for the channels of one domain. It has
	// EventFiles descriptors.
	OpenEventFiles(domid xen.Domid) ([]int, error)
	EventFiles() int
}

// Adopter makes devices of descriptors that an [Opener] has opened in another process. The
// devices own them.
type Adopter interface {
	Grants(fd int) (GrantDevice, error)
	Events(fds []int) Events
	Pages(fd int) host.PageDevice
}

// GrantDevice is a grant device that maps and copies.
type GrantDevice interface {
	Grants
	Close() error
}

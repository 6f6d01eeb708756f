// SPDX-License-Identifier: Apache-2.0

package blkfront

import (
	"fmt"

	"github.com/netbackd/netbackd/pkg/blkif"
)

// DefaultDir is the frontend directory of xvda. Relative paths are those of the caller's
// own domain.
const DefaultDir = "device/vbd/51712"

// MaxQueues bounds the queues of one vbd.
const MaxQueues = 64

// NoProtocol as Config.Protocol leaves the key out, as old 32-bit guests do. Slots then have
// the layout of x86_32.
const NoProtocol = "none"

// Config is the configuration of a frontend.
type Config struct {
	// Dir is the frontend's directory in xenstore; empty means [DefaultDir].
	Dir string `json:"dir,omitempty"`

	// Protocol is the value of the key: x86_64-abi, x86_32-abi, arm-abi or NoProtocol.
	// Empty means the native one.
	Protocol string `json:"protocol,omitempty"`

	// Queues is the number of queues to ask for, 0 meaning 1, and Order that of the pages
	// of each ring. The backend may allow less.
	Queues int `json:"queues,omitempty"`
	Order  int `json:"order,omitempty"`

	// Persistent asks for persistent grants, if the backend can do that.
	Persistent bool `json:"persistent,omitempty"`

	// Indirect is the most segments of an indirect request: the backend may allow
	// fewer. Up to 11 means that there are no indirect requests, as with Linux.
	Indirect int `json:"indirect,omitempty"`

	// Pages is the number of data pages of each queue, 0 meaning 256. Without
	// persistent grants as many more, granted for reading only, have the data of writes.
	Pages int `json:"pages,omitempty"`

	// Strict makes the queues check that the backend lets go of every page before its
	// answer, if the host can tell.
	Strict bool `json:"strict,omitempty"`

	// Keys are further nodes to write below Dir when connecting, after all others. An
	// empty value removes the node.
	Keys map[string]string `json:"keys,omitempty"`
}

func (c Config) withDefaults() Config {
	if c.Dir == "" {
		c.Dir = DefaultDir
	}
	if c.Protocol == "" {
		c.Protocol = blkif.NativeProtocol().String()
	}
	c.Queues = min(max(c.Queues, 1), MaxQueues)
	c.Order = min(max(c.Order, 0), blkif.MaxOrder)
	if c.Pages <= 0 {
		c.Pages = 256
	}
	return c
}

// layout returns the protocol of the rings.
func (c Config) layout() (blkif.Protocol, error) {
	p, err := blkif.ParseProtocol(c.Protocol, c.Protocol != NoProtocol)
	if err != nil {
		return 0, fmt.Errorf("blkfront: %w", err)
	}
	return p, nil
}

// Offers holds what a backend has published.
type Offers struct {
	// Before the frontend has rings.

	MaxIndirect int `json:"max_indirect,omitempty"` // feature-max-indirect-segments
	MaxQueues   int `json:"max_queues,omitempty"`   // multi-queue-max-queues, 1 if absent
	MaxOrder    int `json:"max_order,omitempty"`    // max-ring-page-order

	// Once it is Connected.

	Sectors    uint64 `json:"sectors"` // of 512 bytes
	SectorSize int    `json:"sector_size"`
	Physical   int    `json:"physical_sector_size,omitempty"`
	Info       int    `json:"info"`
	Flush      bool   `json:"flush,omitempty"`      // feature-flush-cache
	Barrier    bool   `json:"barrier,omitempty"`    // feature-barrier
	Persistent bool   `json:"persistent,omitempty"` // feature-persistent
	Discard    bool   `json:"discard,omitempty"`    // feature-discard
	Secure     bool   `json:"secure,omitempty"`     // discard-secure
	// DiscardGranularity and DiscardAlignment are in bytes.
	DiscardGranularity int `json:"discard_granularity,omitempty"`
	DiscardAlignment   int `json:"discard_alignment,omitempty"`
}

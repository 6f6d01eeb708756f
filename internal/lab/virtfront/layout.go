// SPDX-License-Identifier: Apache-2.0

package virtfront

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/virtqueue"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// Node is where a guest publishes its Layout, in its directory of xenstore.
const Node = "data/virtio"

// Features of virtio that this package knows.
const (
	FeatureMrgRxbuf       = 1 << 15
	FeatureIndirect       = 1 << 28
	FeatureEventIdx       = 1 << 29
	FeatureVersion1       = 1 << 32
	FeatureAccessPlatform = 1 << 33
	FeaturePacked         = 1 << 34
)

// required are the features without which the driver does not work.
const required = FeatureVersion1 | FeatureMrgRxbuf | FeatureIndirect

// Layout says where a guest has its rings and buffers.
type Layout struct {
	// Features are those that the driver uses, and the front end negotiates.
	Features uint64 `json:"features"`
	// Size is the number of descriptors of each ring.
	Size int `json:"size"`
	// Areas hold rings, buffers, and pages that the guest revokes if it is asked to.
	Areas []Area `json:"areas"`
	// Rings are the parts of the rings for reception and for sending.
	Rings [2]RingAddrs `json:"rings"`
	// Ports are event channels that are offered to dom0, one for each ring.
	Ports [2]evtchn.Port `json:"ports"`
}

// Area is a range of guest addresses, as descriptors have them.
type Area struct {
	Addr uint64 `json:"addr"`
	Size uint64 `json:"size"`
}

// RingAddrs are guest addresses of the parts of a ring.
type RingAddrs struct {
	Desc  uint64 `json:"desc"`
	Avail uint64 `json:"avail"`
	Used  uint64 `json:"used"`
}

// ReadLayout reads what a guest has published.
func ReadLayout(ctx context.Context, store *xenstore.Client, domid xen.Domid) (*Layout, error) {
	text, err := store.Read(ctx, path.Join(xenstore.DomainPath(domid), Node))
	if err != nil {
		return nil, err
	}
	l := new(Layout)
	if err := json.Unmarshal([]byte(text), l); err != nil {
		return nil, fmt.Errorf("layout of domain %d: %w", domid, err)
	}
	return l, nil
}

// Print writes the layout in lines of a name and numbers.
func (l *Layout) Print(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "features %#x\nsize %d\n", l.Features, l.Size)
	for _, a := range l.Areas {
		fmt.Fprintf(&b, "area %#x %d\n", a.Addr, a.Size)
	}
	for _, r := range l.Rings {
		fmt.Fprintf(&b, "ring %#x %#x %#x\n", r.Desc, r.Avail, r.Used)
	}
	for _, p := range l.Ports {
		fmt.Fprintf(&b, "port %d\n", p)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// ringOffsets returns where the parts of a ring stand, and the bytes of all.
func ringOffsets(features uint64, size int) (avail, used, total int) {
	if features&FeaturePacked != 0 {
		return virtqueue.PackedOffsets(size)
	}
	return virtqueue.SplitOffsets(size)
}

// ringAt is where ring i stands in the area of rings. Each begins a page.
func ringAt(features uint64, size, i int) int {
	_, _, total := ringOffsets(features, size)
	return i * roundUp(total)
}

const pageSize = 4096

// roundUp returns the bytes of all pages that n bytes take.
func roundUp(n int) int { return (n + pageSize - 1) &^ (pageSize - 1) }

// layout makes the layout of a memory.
func (m *Memory) layout(features uint64, size int) Layout {
	l := Layout{Features: features, Size: size}
	for _, a := range m.areas {
		l.Areas = append(l.Areas, Area{a.addr, uint64(len(a.mem))})
	}
	avail, used, _ := ringOffsets(features, size)
	for i := range l.Rings {
		at := m.areas[0].addr + uint64(ringAt(features, size, i))
		l.Rings[i] = RingAddrs{at, at + uint64(avail), at + uint64(used)}
	}
	return l
}

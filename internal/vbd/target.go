// SPDX-License-Identifier: Apache-2.0

package vbd

import (
	"context"

	"github.com/netbackd/netbackd/internal/disk"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// DiskOptions returns the options for opening the disk of the vbd in the backend directory at
// path, as the toolstack has described it.
func DiskOptions(ctx context.Context, r xenbus.Store, path string) (disk.Options, error) {
	var n nodes
	if err := n.readRest(ctx, r, path); err != nil {
		return disk.Options{}, err
	}
	return n.target.options(disk.CacheAuto)
}

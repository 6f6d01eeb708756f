// SPDX-License-Identifier: Apache-2.0

package vbd

import (
	"context"
	"fmt"
	"strconv"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/blkplane"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// parseWeight parses the toolstack's key "weight": a guest's part of the processors and of a
// device, beside guests with 1. An empty value means 1.
func parseWeight(v string) (int, error) {
	if v == "" {
		return 1, nil
	}
	n, err := strconv.ParseUint(v, 10, 8)
	if err != nil || n < 1 || n > blkplane.MaxWeight {
		return 0, &xenbus.KeyError{Key: "weight", Value: v, Want: fmt.Sprintf("a number from 1 to %d", blkplane.MaxWeight)}
	}
	return int(n), nil
}

// applyWeight applies the weight. A wrong value changes nothing. The guest has the largest
// weight of its connected vbds.
func (v *Vbd) applyWeight(ctx context.Context) {
	n, err := parseWeight(v.nodes.weight)
	if err != nil {
		v.reportError(ctx, "bad key", err)
		return
	}
	if n == v.weight {
		return
	}
	v.weight = n
	v.log.Info("weight changed", zap.Int("weight", n))
	if c := v.conn.now; c != nil {
		c.data.SetWeight(n)
	}
}

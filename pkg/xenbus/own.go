// SPDX-License-Identifier: Apache-2.0

package xenbus

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"

	"github.com/netbackd/netbackd/pkg/xen"
)

// OwnDomid reads the number of the domain that this program runs in. Every domain except
// dom0 has the node.
func OwnDomid(ctx context.Context, s Store) (xen.Domid, error) {
	v, err := s.Read(ctx, "domid")
	if errors.Is(err, fs.ErrNotExist) {
		return xen.Dom0, nil
	}
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(Trim(v), 10, 16)
	if err != nil {
		return 0, fmt.Errorf("own domid is %q", Clip(v))
	}
	return xen.Domid(n), nil
}

// SPDX-License-Identifier: Apache-2.0

package device

import (
	"context"
	"errors"

	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// Store is the part of xenstore that a device uses. *xenstore.Client is one.
type Store interface {
	Read(ctx context.Context, path string) (string, error)
	Write(ctx context.Context, path, value string) error
	Transaction(context.Context, func(*xenstore.Tx) error) error
	WatchNode(ctx context.Context, path string) (*xenstore.Watch, error)
	IsIntroduced(ctx context.Context, domid xen.Domid) (bool, error)
}

// Unanswered reports whether a request to xenstored got no answer because the connection
// was lost, or because the device is to end.
func Unanswered(err error) bool {
	return errors.Is(err, xenstore.ErrClosed) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// DomainLives reports whether the frontend's domain exists. Its directory may exist for a
// while longer. A driver domain may not ask xenstored; there the directory is removed
// first.
func DomainLives(ctx context.Context, s Store, domid xen.Domid) (bool, error) {
	alive, err := s.IsIntroduced(ctx, domid)
	if errors.Is(err, xenstore.ErrPermission) {
		return true, nil
	}
	return alive, err
}

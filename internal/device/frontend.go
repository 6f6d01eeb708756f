// SPDX-License-Identifier: Apache-2.0

package device

import (
	"context"
	"errors"
	"strings"

	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// CheckFrontendDir checks that the frontend's directory belongs to the frontend's domain,
// so that no other domain can write its keys.
func CheckFrontendDir(dir string, domid xen.Domid) error {
	home := xenstore.DomainPath(domid)
	if xenstore.CheckPath(dir) != nil || !strings.HasPrefix(dir, home+"/") {
		return &xenbus.KeyError{Key: "frontend", Value: dir, Want: "a directory below " + home}
	}
	return nil
}

// FrontState is the result of ReadFrontState.
type FrontState struct {
	State  xenbus.State // Unknown if the directory is gone
	Hidden bool         // the directory may not be read any more, which counts as removed for good
	Bad    error        // the value of the node is no state, which counts as Closed; nil: none
}

// ReadFrontState reads the state of the frontend in dir. before is the state at the last
// time. An error is one of xenstored: a guest must not be able to keep the toolstack from
// removing a device by what it writes.
func ReadFrontState(ctx context.Context, r xenbus.Store, dir string, before xenbus.State, want string) (f FrontState, err error) {
	s, err := r.Read(ctx, dir+"/state")
	switch {
	case errors.Is(err, xenstore.ErrNotExist):
		// A toolstack removes the whole directory. A guest must not be able to make the
		// daemon remove and create devices by removing its state and writing it again.
		// Nor by hiding its directory, so a hidden directory counts as removed for good.
		_, err := r.Read(ctx, dir)
		switch {
		case Unanswered(err):
			return f, err
		case !errors.Is(err, xenstore.ErrNotExist):
			f.State = xenbus.Closed
		default:
			f.Hidden = before != xenbus.Unknown && errors.Is(err, xenstore.ErrPermission)
		}
		return f, nil
	case Unanswered(err):
		return f, err
	case err == nil:
		f.State, err = xenbus.ParseState(xenbus.Trim(s))
		if err == nil && f.State == xenbus.Unknown {
			// Unknown is only for a frontend that is gone. A guest that writes it must
			// not be able to make the daemon remove and create devices.
			err = &xenbus.KeyError{Key: "state", Value: s, Want: want}
		}
	}
	if err != nil {
		f.State, f.Bad = xenbus.Closed, err
	}
	return f, nil
}

// SPDX-License-Identifier: Apache-2.0

package virtfront

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/netbackd/netbackd/pkg/vhostuser"
)

// RunPlain plays guest and front end in one process, with shared memory. Commands come from
// in, a line each, and answers go to out.
func RunPlain(ctx context.Context, socket string, c GuestConfig, in io.Reader, out io.Writer) (err error) {
	mem, err := Shared(c.features(), c.Size)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, mem.Close()) }()
	bell, err := newEventBell()
	if err != nil {
		return err
	}
	defer bell.close()
	p, err := newPlayer(mem, bell, c.features(), c.Size, c.MaxFrame)
	if err != nil {
		return err
	}
	l := mem.layout(c.features(), c.Size)
	first := l.Areas[0].Addr
	region := vhostuser.Region{Guest: first, User: first}
	for _, a := range l.Areas {
		region.Size += a.Size
	}
	s, err := connect(socket, c.features(), []vhostuser.Region{region}, []int{mem.fd}, &l,
		[2]ringEvents{{bell.kicks[0], bell.calls}, {bell.kicks[1], bell.calls}})
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "started: plain")
	return errors.Join(p.serve(ctx, in, out), s.stop(out))
}

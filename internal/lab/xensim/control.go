// SPDX-License-Identifier: Apache-2.0

package xensim

import (
	"encoding/json"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/xensim/hyp"
	"github.com/netbackd/netbackd/internal/lab/xensim/wire"
	"github.com/netbackd/netbackd/pkg/xen"
)

// controlFile is the file of a toolstack in dom0.
type controlFile struct{ s *server }

var _ file = (*controlFile)(nil)

func (f *controlFile) maxRequest() int { return 4096 }

func (f *controlFile) close() {}

func (f *controlFile) call(op wire.Op, r *wire.Reader, reply []byte) ([]byte, int, unix.Errno) {
	switch op {
	case wire.OpCreateDomain:
		var cfg wire.DomainConfig
		if json.Unmarshal(r.Rest(), &cfg) != nil {
			return reply, -1, unix.EINVAL
		}
		d, err := f.s.create(cfg)
		if err != nil {
			return append(reply, err.Error()...), -1, errnoOf(err)
		}
		return wire.AppendU32(reply, uint32(d.ID())), -1, 0
	case wire.OpList:
		first := r.U32()
		if r.Done() != nil {
			return reply, -1, unix.EINVAL
		}
		return f.list(first, reply)
	}
	domid := r.U32()
	if op != wire.OpAddFault && r.Done() != nil {
		return reply, -1, unix.EINVAL
	}
	d := f.s.hv.Domain(xen.Domid(domid), 0)
	if d == nil || domid >= hyp.FirstReserved {
		return reply, -1, unix.ESRCH
	}
	return reply, -1, f.domctl(op, d, r)
}

// domctl carries out the calls on one domain.
func (f *controlFile) domctl(op wire.Op, d *hyp.Domain, r *wire.Reader) unix.Errno {
	switch op {
	case wire.OpDestroy:
		return f.s.destroy(d.ID())
	case wire.OpPause, wire.OpUnpause, wire.OpShutdown:
		switch {
		case d.ID() == 0:
			return unix.EINVAL // no domain would be left to unpause it
		case op == wire.OpPause:
			d.Pause()
		case op == wire.OpUnpause:
			d.Unpause()
		case d.Shutdown():
			f.s.xs.DomainShutdown(d.ID())
		}
		return 0
	case wire.OpAddFault:
		var fault wire.Fault
		if json.Unmarshal(r.Rest(), &fault) != nil || !validFault(fault) {
			return unix.EINVAL
		}
		d.AddFault(fault)
		return 0
	case wire.OpClearFaults:
		d.ClearFaults()
		return 0
	case wire.OpOverflow:
		f.s.overflow(d.ID())
		return 0
	}
	return unix.ENOTTY
}

func validFault(f wire.Fault) bool {
	switch f.Op {
	case wire.FaultCopy, wire.FaultMap:
	case wire.FaultCall:
		if f.Status == 0 || f.Delay != 0 {
			return false
		}
	default:
		return false
	}
	return f.Status <= 0 && f.Delay >= 0 && f.Count >= 0
}

// list describes the domains from first on, as many as one reply holds.
func (f *controlFile) list(first uint32, reply []byte) ([]byte, int, unix.Errno) {
	infos := []wire.DomainInfo{}
	for _, d := range f.s.hv.Domains() {
		if uint32(d.ID()) >= first && len(infos) < wire.MaxListed {
			infos = append(infos, d.Info())
		}
	}
	b, err := json.Marshal(infos)
	if err != nil || len(reply)+len(b) > wire.MaxMessage {
		return reply, -1, unix.EMSGSIZE
	}
	return append(reply, b...), -1, 0
}

func errnoOf(err error) unix.Errno {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return unix.EIO
}

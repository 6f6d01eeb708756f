// SPDX-License-Identifier: Apache-2.0

package xensim

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
	"github.com/netbackd/netbackd/internal/lab/xensim/dev"
	"github.com/netbackd/netbackd/internal/lab/xensim/hyp"
	"github.com/netbackd/netbackd/internal/lab/xensim/store"
	"github.com/netbackd/netbackd/internal/lab/xensim/wire"
)

// FuzzCalls: for any input of a process, each call ends with a reply that fits a message,
// and no resource is held when all files are closed.
func FuzzCalls(f *testing.F) {
	call := func(file byte, op wire.Op, words ...uint32) []byte {
		msg := wire.AppendU32(wire.AppendU32(nil, uint32(op)), words...)
		return append([]byte{file, byte(len(msg))}, msg...)
	}
	var s []byte
	s = append(s, call(3, wire.OpAlloc, 0, 2, 1)...)
	s = append(s, call(0, wire.OpMap, 1, 8, 9)...)
	s = append(s, call(0, wire.OpMmap, 0, 0, 2, 1)...)
	s = append(s, call(2, wire.OpBindUnbound, 0)...)
	s = append(s, call(1, wire.OpBindInterdomain, 1, 1)...)
	s = append(s, call(2, wire.OpNotify, 1)...)
	s = append(s, call(1, wire.OpUnmask, 1)...)
	f.Add(s)
	s = append(call(0, wire.OpCopy, 1, 8, 0x10000, 0x1000, 0, 0x10010, 0), call(4, wire.OpSetupTable, 2)...)
	f.Add(append(s, call(5, wire.OpDestroy, 1)...))
	f.Add(append(call(5, wire.OpList, 0), call(5, wire.OpPause, 1)...))

	fuzzloop.Fuzz(f, func(t *testing.T, script []byte) {
		hv, err := hyp.New(wire.DomainConfig{Pages: 16})
		if err != nil {
			t.Fatal(err)
		}
		defer hv.Close()
		defer hv.Interrupt()
		xs := store.New(store.Options{})
		defer xs.Close()
		srv := newServer(hv, xs)
		guest, err := srv.create(wire.DomainConfig{Pages: 16, MaxGrantFrames: 2})
		if err != nil {
			t.Fatal(err)
		}
		guest.Hold()
		files, err := openAll(srv, guest)
		if err != nil {
			t.Fatal(err)
		}
		for len(script) >= 2 {
			f, n := files[int(script[0])%len(files)], min(int(script[1]), len(script)-2)
			msg := script[2:][:n]
			script = script[2+n:]
			r := wire.NewReader(msg)
			op := wire.Op(r.U32())
			if op == wire.OpCreateDomain {
				continue // its sizes may be large; it has tests of its own
			}
			reply, _, _ := f.call(op, r, wire.AppendErrno(nil, 0))
			if len(reply) > wire.MaxMessage {
				t.Errorf("reply of %d bytes", len(reply))
			}
		}
		for _, f := range files {
			f.close()
		}
		if i := guest.Info(); i.Pins != 0 || i.Ports != 0 {
			t.Errorf("the guest has %d pins, %d ports left", i.Pins, i.Ports)
		}
		if i := hv.Domain(0, 0).Info(); i.Maps != 0 || i.Ports != 0 {
			t.Errorf("dom0 has %d maps, %d ports left", i.Maps, i.Ports)
		}
		guest.Unhold()
	})
}

// openAll opens one file of each kind: gntdev, evtchn and the control interface
// in dom0, the others in the guest.
func openAll(s *server, guest *hyp.Domain) ([]file, error) {
	dom0 := s.hv.Domain(0, 0)
	// A pid without a process, so that no memory is hit by chance.
	g, err := s.openGntdev(0, dom0, dev.Process(1<<30))
	if err != nil {
		return nil, err
	}
	be, err := dev.OpenEvtchn(s.hv, dom0)
	if err != nil {
		return nil, err
	}
	fe, err := dev.OpenEvtchn(s.hv, guest)
	if err != nil {
		return nil, err
	}
	rw, _ := guest.Files()
	return []file{
		g,
		&evtchnFile{dev: be},
		&evtchnFile{dev: fe},
		&gntallocFile{dev: s.kernels[guest.ID()].OpenGntalloc(), memory: rw},
		&domainFile{dom: guest},
		&controlFile{s: s},
	}, nil
}

func TestFilesCannotBeJoinedByOthers(t *testing.T) {
	hv, err := hyp.New(wire.DomainConfig{Pages: 16})
	if err != nil {
		t.Fatal(err)
	}
	defer hv.Close()
	xs := store.New(store.Options{})
	defer xs.Close()
	s := newServer(hv, xs)
	guest, err := s.create(wire.DomainConfig{Pages: 16})
	if err != nil {
		t.Fatal(err)
	}
	dom0 := hv.Domain(0, 0)
	f, err := s.openGntdev(0, dom0, 10)
	if err != nil {
		t.Fatal(err)
	}
	number := f.shared.number
	for name, open := range map[string]func() (*gntdevFile, error){
		"another process": func() (*gntdevFile, error) { return s.openGntdev(number, dom0, 11) },
		"another domain":  func() (*gntdevFile, error) { return s.openGntdev(number, guest, 10) },
		"no such file":    func() (*gntdevFile, error) { return s.openGntdev(number+1, dom0, 10) },
	} {
		if _, err := open(); err != unix.EBADF {
			t.Errorf("%s: %v, want EBADF", name, err)
		}
	}
	second, err := s.openGntdev(number, dom0, 10)
	if err != nil || second.dev != f.dev {
		t.Errorf("the same process: %v", err)
	}
	f.close()
	if s.files[number] == nil {
		t.Error("the file is closed while a thread uses it")
	}
	second.close()
	if len(s.files) != 0 {
		t.Error("the file is not closed")
	}
}

// SPDX-License-Identifier: Apache-2.0

package simclient

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/xensim/gnttab"
	"github.com/netbackd/netbackd/internal/lab/xensim/wire"
)

// Memory is all of this domain's memory, its grant table included, as the domain's kernel
// and a hostile guest see it. Pages uses the grant table, too: it takes the lowest free
// references and the lowest free frames.
type Memory struct {
	link  *link
	mem   []byte
	table int // frames
}

// Memory maps the domain's memory.
func (c *Conn) Memory() (*Memory, error) {
	l, _, err := open(c.dir, c.domid, wire.KindDomain)
	if err != nil {
		return nil, err
	}
	m, err := l.memory()
	if err != nil {
		_ = l.close()
		return nil, fmt.Errorf("embedded Xen: memory of domain %d: %w", c.domid, err)
	}
	return m, nil
}

func (l *link) memory() (*Memory, error) {
	r, file, errno, err := l.callFile(wire.AppendU32(nil, uint32(wire.OpMemory)))
	if file >= 0 {
		defer unix.Close(file)
	}
	if err == nil && errno != 0 {
		err = errno
	}
	if err != nil {
		return nil, err
	}
	pages, table := r.U32(), r.U32()
	if r.Done() != nil || file < 0 {
		return nil, wire.ErrMessage
	}
	all := make([]uint32, pages+table)
	for i := range all {
		all[i] = uint32(i)
	}
	mem, err := mapPages(file, all, unix.PROT_READ|unix.PROT_WRITE)
	if err != nil {
		return nil, err
	}
	return &Memory{link: l, mem: mem, table: int(table)}, nil
}

// Close unmaps the memory.
func (m *Memory) Close() error {
	err := unmapPages(m.mem)
	m.mem = nil
	if e := m.link.close(); err == nil {
		err = e
	}
	return err
}

// Table returns the grant table with its largest number of frames. Xen reads only those
// that SetupTable made part of it, at first one.
func (m *Memory) Table() gnttab.Table { return gnttab.Table(m.mem[:m.table*pageSize]) }

// SetupTable makes the grant table at least frames long, GNTTABOP_setup_table.
func (m *Memory) SetupTable(frames int) error {
	m.link.mu.Lock()
	defer m.link.mu.Unlock()
	r, errno, err := m.link.call(wire.AppendU32(nil, uint32(wire.OpSetupTable), uint32(frames)))
	if err == nil && errno != 0 {
		err = errno
	}
	if err != nil {
		return fmt.Errorf("embedded Xen: grant table of %d frames: %w", frames, err)
	}
	_ = r.U32()
	return r.Done()
}

// Frames returns the frames that can be granted: first up to, not including, end.
func (m *Memory) Frames() (first, end uint32) { return uint32(m.table), uint32(len(m.mem) / pageSize) }

// Frame returns the memory of a frame.
func (m *Memory) Frame(n uint32) []byte { return m.mem[int(n)*pageSize:][:pageSize:pageSize] }

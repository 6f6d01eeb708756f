// SPDX-License-Identifier: Apache-2.0

package hyp

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// PageSize is the size of a frame.
const PageSize = 4096

// memory is a domain's memory: a memfd, so that the domain's own processes and
// those that map its grants share it. It is sealed against shrinking and growing, so that
// no process can cause faults in another by truncating it.
type memory struct {
	rw, ro int    // the file, opened twice: a read-only mapping must not become a writable one
	bytes  []byte // all of it
}

func newMemory(name string, frames int) (*memory, error) {
	rw, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	m := &memory{rw: rw, ro: -1}
	if err := m.init(frames); err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

func (m *memory) init(frames int) error {
	size := int64(frames) * PageSize
	if err := unix.Ftruncate(m.rw, size); err != nil {
		return fmt.Errorf("ftruncate of %d bytes: %w", size, err)
	}
	const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(uintptr(m.rw), unix.F_ADD_SEALS, seals); err != nil {
		return fmt.Errorf("seal memfd: %w", err)
	}
	var err error
	if m.ro, err = unix.Open(fmt.Sprintf("/proc/self/fd/%d", m.rw), unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("reopen memfd: %w", err)
	}
	if m.bytes, err = unix.Mmap(m.rw, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return fmt.Errorf("mmap of %d bytes: %w", size, err)
	}
	return nil
}

// frame returns the memory of one frame.
func (m *memory) frame(n uint32) []byte {
	return m.bytes[int(n)*PageSize:][:PageSize:PageSize]
}

// discard gives the memory of frames [from, to) back to the host. They read as
// zeros afterwards.
func (m *memory) discard(from, to int) {
	if from >= to {
		return
	}
	// A host that cannot punch holes keeps the memory until close, which only
	// costs memory.
	_ = unix.Fallocate(m.rw, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE,
		int64(from)*PageSize, int64(to-from)*PageSize)
}

func (m *memory) close() {
	if m.bytes != nil {
		_ = unix.Munmap(m.bytes)
		m.bytes = nil
	}
	for _, fd := range []*int{&m.rw, &m.ro} {
		if *fd >= 0 {
			_ = unix.Close(*fd)
			*fd = -1
		}
	}
}

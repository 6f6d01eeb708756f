// SPDX-License-Identifier: Apache-2.0

package foreign

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// WriteInitrd writes an initramfs with an agent, which is a static program, as its first
// process, and with the modules that it loads.
func (p Programs) WriteInitrd(path, agent string) error {
	a := &archive{}
	if err := a.file("init", agent, 0o755); err != nil {
		return err
	}
	a.add("modules", 0o40755, nil)
	modules, err := filepath.Glob(filepath.Join(p.dir, "modules", "*"))
	if err != nil {
		return err
	}
	for _, m := range modules {
		if err := a.file("modules/"+filepath.Base(m), m, 0o644); err != nil {
			return err
		}
	}
	a.add("TRAILER!!!", 0, nil)
	return os.WriteFile(path, a.Bytes(), 0o644)
}

// kernel returns the path of the guest's kernel.
func (p Programs) kernel() (string, error) {
	images, err := filepath.Glob(filepath.Join(p.dir, "root", "boot", "vmlinuz-*"))
	if err != nil || len(images) == 0 {
		return "", fmt.Errorf("%w: kernel", ErrMissing)
	}
	return images[0], nil
}

// archive is a cpio archive in the format newc, as Linux's
// Documentation/driver-api/early-userspace/buffer-format.rst describes it.
type archive struct {
	bytes.Buffer
	inode int
}

// file adds a copy of a file.
func (a *archive) file(name, from string, mode int) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	a.add(name, 0o100000|mode, b)
	return nil
}

// add adds an entry. Header and data are padded to 4 bytes.
func (a *archive) add(name string, mode int, data []byte) {
	a.inode++
	a.WriteString("070701")
	for _, n := range []int{a.inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0} {
		_, _ = fmt.Fprintf(a, "%08X", n) // to memory
	}
	a.WriteString(name + "\x00")
	a.pad()
	a.Write(data)
	a.pad()
}

func (a *archive) pad() { a.WriteString(strings.Repeat("\x00", -a.Len()&3)) }

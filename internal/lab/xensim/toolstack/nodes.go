// SPDX-License-Identifier: Apache-2.0

package toolstack

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// Homes of a domain.
func domPath(domid xen.Domid) string   { return fmt.Sprintf("/local/domain/%d", domid) }
func libxlPath(domid xen.Domid) string { return fmt.Sprintf("/libxl/%d", domid) }

// Directories of devices.
const (
	classVif  = "vif"
	classVbd  = "vbd"
	classVbd3 = "vbd3" // of the back end only
)

// device is libxl__device: a device with its backend domain and its frontend domain.
type device struct {
	class   string // directory of the frontend, and of libxl's copy: vif or vbd
	back    string // directory of the backend: the same, or vbd3
	domid   xen.Domid
	devid   int
	backend xen.Domid
}

func newVif(domid xen.Domid, devid int, backend xen.Domid) device {
	return device{classVif, classVif, domid, devid, backend}
}

// String returns the name of the device, such as vif1.0 or vbd1.51712.
func (d device) String() string { return fmt.Sprintf("%s%d.%d", d.class, d.domid, d.devid) }

func (d device) backendPath() string {
	return fmt.Sprintf("/local/domain/%d/backend/%s/%d/%d", d.backend, d.back, d.domid, d.devid)
}

func (d device) frontendPath() string {
	return fmt.Sprintf("/local/domain/%d/device/%s/%d", d.domid, d.class, d.devid)
}

func (d device) libxlPath() string {
	return fmt.Sprintf("%s/device/%s/%d", libxlPath(d.domid), d.class, d.devid)
}

// parseBackendPath inverts backendPath.
func parseBackendPath(path string) (device, error) {
	var d device
	parts := strings.Split(path, "/")
	if len(parts) == 8 && parts[5] != "" {
		backend, _ := strconv.ParseUint(parts[3], 10, 16)
		domid, _ := strconv.ParseUint(parts[6], 10, 16)
		devid, _ := strconv.ParseUint(parts[7], 10, 31)
		d = device{parts[5], parts[5], xen.Domid(domid), int(devid), xen.Domid(backend)}
		if d.back == classVbd3 {
			d.class = classVbd
		}
	}
	if d.back == "" || d.backendPath() != path {
		return device{}, fmt.Errorf("backend path is %q", path)
	}
	return d, nil
}

// Permission lists as libxl writes them.

// private returns permissions for dom0 alone.
func private() []xenstore.Perm { return []xenstore.Perm{{Domid: 0}} }

// readable returns permissions for owner, and for reader to read.
func readable(owner, reader xen.Domid) []xenstore.Perm {
	return []xenstore.Perm{{Domid: owner}, {Domid: reader, Access: xenstore.AccessRead}}
}

// owned returns permissions for the domain alone.
func owned(domid xen.Domid) []xenstore.Perm { return []xenstore.Perm{{Domid: domid}} }

// pair is a key with its value, below some directory.
type pair struct{ key, value string }

// batch writes into a transaction until the first error, and keeps it.
type batch struct {
	ctx context.Context
	tx  *xenstore.Tx
	err error
}

func (b *batch) do(f func() error) {
	if b.err == nil {
		b.err = f()
	}
}

func (b *batch) write(path, value string) {
	b.do(func() error { return b.tx.Write(b.ctx, path, value) })
}

// remove implements xs_rm. As in libxl, a missing node is no error.
func (b *batch) remove(path string) {
	b.do(func() error {
		if err := b.tx.Remove(b.ctx, path); !errors.Is(err, xenstore.ErrNotExist) {
			return err
		}
		return nil
	})
}

// mknod implements libxl__xs_mknod: an empty node with permissions.
func (b *batch) mknod(path string, perms []xenstore.Perm) {
	b.write(path, "")
	b.do(func() error { return b.tx.SetPermissions(b.ctx, path, perms) })
}

// mkdir makes a directory with permissions.
func (b *batch) mkdir(path string, perms []xenstore.Perm) {
	b.do(func() error { return b.tx.Mkdir(b.ctx, path) })
	b.do(func() error { return b.tx.SetPermissions(b.ctx, path, perms) })
}

// writev implements libxl__xs_writev. Without perms the nodes inherit the directory's.
func (b *batch) writev(dir string, pairs []pair, perms []xenstore.Perm) {
	for _, p := range pairs {
		path := dir + "/" + p.key
		b.write(path, p.value)
		if perms != nil {
			b.do(func() error { return b.tx.SetPermissions(b.ctx, path, perms) })
		}
	}
}

// cleanup implements libxl__xs_path_cleanup: it removes path, and then each parent that
// is left empty.
func (b *batch) cleanup(path string) {
	b.do(func() error {
		for {
			err := b.tx.Remove(b.ctx, path)
			if errors.Is(err, xenstore.ErrNotExist) {
				return nil // libxl stops here, too
			}
			if err != nil {
				return err
			}
			if path = path[:strings.LastIndexByte(path, '/')]; path == "" {
				return nil
			}
			if value, err := b.tx.Read(b.ctx, path); err != nil || value != "" {
				return nil
			}
			if names, err := b.tx.List(b.ctx, path); err != nil || len(names) > 0 {
				return nil
			}
		}
	})
}

// SPDX-License-Identifier: Apache-2.0

package toolstack

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/pkg/xenstore"
)

// The store while libxl 4.17 waits for the backend of a PV guest's first disk, by its
// source: libxl_disk.c, device_disk_add.
const diskNodes = `
/libxl/1/device/vbd = "" (n0)
/libxl/1/device/vbd/51712 = "" (n0)
/libxl/1/device/vbd/51712/backend = "/local/domain/0/backend/vbd/1/51712" (n0)
/libxl/1/device/vbd/51712/bootable = "1" (n0)
/libxl/1/device/vbd/51712/dev = "xvda" (n0)
/libxl/1/device/vbd/51712/device-type = "disk" (n0)
/libxl/1/device/vbd/51712/discard-enable = "1" (n0)
/libxl/1/device/vbd/51712/frontend = "/local/domain/1/device/vbd/51712" (n0)
/libxl/1/device/vbd/51712/frontend-id = "1" (n0)
/libxl/1/device/vbd/51712/mode = "w" (n0)
/libxl/1/device/vbd/51712/online = "1" (n0)
/libxl/1/device/vbd/51712/params = "/srv/a.img" (n0)
/libxl/1/device/vbd/51712/removable = "0" (n0)
/libxl/1/device/vbd/51712/script = "/etc/xen/scripts/block-own" (n0)
/libxl/1/device/vbd/51712/specification = "xen" (n0)
/libxl/1/device/vbd/51712/state = "1" (n0)
/libxl/1/device/vbd/51712/type = "phy" (n0)
/local/domain/0/backend/vbd = "" (n0)
/local/domain/0/backend/vbd/1 = "" (n0)
/local/domain/0/backend/vbd/1/51712 = "" (n0,r1)
/local/domain/0/backend/vbd/1/51712/bootable = "1" (n0,r1)
/local/domain/0/backend/vbd/1/51712/dev = "xvda" (n0,r1)
/local/domain/0/backend/vbd/1/51712/device-type = "disk" (n0,r1)
/local/domain/0/backend/vbd/1/51712/discard-enable = "1" (n0,r1)
/local/domain/0/backend/vbd/1/51712/frontend = "/local/domain/1/device/vbd/51712" (n0,r1)
/local/domain/0/backend/vbd/1/51712/frontend-id = "1" (n0,r1)
/local/domain/0/backend/vbd/1/51712/mode = "w" (n0,r1)
/local/domain/0/backend/vbd/1/51712/online = "1" (n0,r1)
/local/domain/0/backend/vbd/1/51712/params = "/srv/a.img" (n0,r1)
/local/domain/0/backend/vbd/1/51712/removable = "0" (n0,r1)
/local/domain/0/backend/vbd/1/51712/script = "/etc/xen/scripts/block-own" (n0,r1)
/local/domain/0/backend/vbd/1/51712/specification = "xen" (n0,r1)
/local/domain/0/backend/vbd/1/51712/state = "1" (n0,r1)
/local/domain/0/backend/vbd/1/51712/type = "phy" (n0,r1)
/local/domain/1/device/vbd = "" (n0,r1)
/local/domain/1/device/vbd/51712 = "" (n1,r0)
/local/domain/1/device/vbd/51712/backend = "/local/domain/0/backend/vbd/1/51712" (n1,r0)
/local/domain/1/device/vbd/51712/backend-id = "0" (n1,r0)
/local/domain/1/device/vbd/51712/device-type = "disk" (n1,r0)
/local/domain/1/device/vbd/51712/protocol = "x86_64-abi" (n1,r0)
/local/domain/1/device/vbd/51712/state = "1" (n1,r0)
/local/domain/1/device/vbd/51712/trusted = "1" (n1,r0)
/local/domain/1/device/vbd/51712/virtual-device = "51712" (n1,r0)
`

func TestNodesOfADiskAreThoseOfLibxl(t *testing.T) {
	l := newLab(t)
	l.timeouts.Init = short
	domid := l.guest()
	if _, err := l.AttachVbd(context.Background(), domid, Vbd{Target: "/srv/a.img", Script: "block-own"}); !errors.Is(err, ErrTimeout) {
		t.Fatalf("attach without a backend: %v, want ErrTimeout", err)
	}
	if diff := cmp.Diff(strings.TrimSpace(diskNodes), strings.Join(l.tree(), "\n")); diff != "" {
		t.Errorf("nodes (-want +got):\n%s", diff)
	}
	l.wantCalls()
}

func TestAllOptionsOfADisk(t *testing.T) {
	l := newLab(t)
	domid := l.guest()
	v := Vbd{
		Devid: XVDA + XVDAStep + 2, Target: "/srv/b.iso", Script: "/root/own", Tap: true,
		ReadOnly: true, CDROM: true, Removable: true, NoDiscard: true, DirectIOSafe: true, Untrusted: true,
		Edit: func(tx *xenstore.Tx, _, front string) error { return tx.Remove(t.Context(), front+"/protocol") },
	}
	d := v.device(domid)
	l.backendOf(d, true)
	if _, err := l.AttachVbd(context.Background(), domid, v); err != nil {
		t.Fatal(err)
	}
	if want := "/local/domain/0/backend/vbd3/1/51730"; d.backendPath() != want {
		t.Errorf("the backend is %s, want %s", d.backendPath(), want)
	}
	for key, want := range map[string]string{"params": "aio:/srv/b.iso", "script": "/root/own", "dev": "xvdb2", "type": "phy", "mode": "r",
		"device-type": "cdrom", "removable": "1", "direct-io-safe": "1", "discard-enable": "0"} {
		l.wantNode(d.backendPath()+"/"+key, want)
	}
	l.wantNode(d.frontendPath()+"/trusted", "0")
	l.wantNode(d.frontendPath()+"/device-type", "cdrom")
	if there, err := l.xs.Exists(t.Context(), d.frontendPath()+"/protocol"); there || err != nil {
		t.Errorf("protocol exists: %v, %v", there, err)
	}
	l.wantCalls("/root/own add " + d.String() + " in state 2")
	if _, err := l.AttachVbd(context.Background(), domid, v); !errors.Is(err, ErrExists) {
		t.Errorf("attached twice: %v, want ErrExists", err)
	}
	if _, err := l.DetachVbd(context.Background(), domid, v.Devid); err != nil {
		t.Fatal(err)
	}
	l.wantCalls("/root/own remove " + d.String() + " in state 6")
	l.wantNoDeviceNodes()
	if _, err := l.DetachVbd(context.Background(), domid, v.Devid); !errors.Is(err, ErrNoDevice) {
		t.Errorf("detached twice: %v, want ErrNoDevice", err)
	}
}

func TestDestroyRemovesDisksAndVifs(t *testing.T) {
	l := newLab(t)
	domid := l.guest()
	v := Vbd{Devid: XVDA, Target: "/srv/a.img"}
	l.backend(domid, 0, true)
	l.backendOf(v.device(domid), true)
	if _, _, err := l.AttachVif(context.Background(), domid, vifLog); err != nil {
		t.Fatal(err)
	}
	if _, err := l.AttachVbd(context.Background(), domid, v); err != nil {
		t.Fatal(err)
	}
	waits, err := l.Destroy(context.Background(), domid)
	if err != nil || len(waits) != 2 {
		t.Fatalf("destroy waited %v: %v", waits, err)
	}
	l.wantNoDeviceNodes()
	l.wantGone(domid)
}

func TestScriptOfADiskHasTheEnvironmentOfLibxl(t *testing.T) {
	c := Call{Action: Add, Class: classVbd3, Path: "/etc/xen/scripts/block-own", Domid: 2, Devid: XVDA,
		Backend: Vbd{Devid: XVDA, Tap: true}.device(2).backendPath()}
	want := []string{"script=/etc/xen/scripts/block-own", "XENBUS_TYPE=vbd3", "XENBUS_PATH=backend/vbd3/2/51712", "XENBUS_BASE_PATH=backend"}
	if diff := cmp.Diff(want, c.Env(t.Context())); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"add"}, c.Args()); diff != "" {
		t.Errorf("arguments (-want +got):\n%s", diff)
	}
}

// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"net"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/internal/handover"
	"github.com/netbackd/netbackd/internal/hostcheck"
	"github.com/netbackd/netbackd/internal/lab/xensim/store"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

func TestWriteCheck(t *testing.T) {
	r := hostcheck.Report{Items: []hostcheck.Item{
		{Name: "xen", Level: hostcheck.OK, Text: "this is dom0"},
		{Name: "/dev/xen/gntdev", Level: hostcheck.Problem, Text: "is not there", Fix: "modprobe xen-gntdev"},
		{Name: "daemon", Level: hostcheck.Note, Text: "is not running", Fix: "systemctl start netbackd"},
	}}
	for colour, want := range map[bool]string{
		false: `ok       xen              this is dom0
problem  /dev/xen/gntdev  is not there
           -> modprobe xen-gntdev
note     daemon           is not running
           -> systemctl start netbackd
`,
		true: "\x1b[32mok\x1b[0m       xen              this is dom0\n" +
			"\x1b[1;31mproblem\x1b[0m  /dev/xen/gntdev  is not there\n" +
			"           -> modprobe xen-gntdev\n" +
			"\x1b[33mnote\x1b[0m     daemon           is not running\n" +
			"           -> systemctl start netbackd\n",
	} {
		var b bytes.Buffer
		if err := writeCheck(&b, r, colour); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, b.String()); diff != "" {
			t.Errorf("colour %t: unexpected table (-want +got):\n%s", colour, diff)
		}
		if isTerminal(&b) {
			t.Error("takes a buffer for a terminal")
		}
	}
}

// TestAskXenstore: a driver domain may read only a part of xenstore, and in a dom0 the
// domain's own number may be missing.
func TestAskXenstore(t *testing.T) {
	srv := store.New(store.Options{})
	defer func() {
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
	}()
	connect := func(domid xen.Domid, kind xenstore.Kind) *xenstore.Client {
		ours, theirs := net.Pipe()
		served := make(chan struct{})
		go func() { defer close(served); _ = srv.ServeConn(theirs, domid, kind) }()
		c := xenstore.New(ours, kind)
		t.Cleanup(func() { _ = c.Close(); <-served })
		return c
	}
	dom0 := connect(0, xenstore.Socket)
	srv.DomainCreated(9)
	for _, err := range []error{
		dom0.Mkdir(t.Context(), "/local/domain/0"),
		dom0.Introduce(t.Context(), 9, 1, 1),
		dom0.Write(t.Context(), "/local/domain/9/domid", "9"),
		dom0.SetPermissions(t.Context(), "/local/domain/9/domid", []xenstore.Perm{{Domid: 0}, {Domid: 9, Access: xenstore.AccessRead}}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]*xenstore.Client{"dom0": dom0, "driver domain": connect(9, xenstore.Xenbus)} {
		if err := askDomid(context.Background(), c); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWriteReport(t *testing.T) {
	for _, tt := range []struct {
		r    handover.Report
		want string
	}{
		{handover.Report{Gap: 123456 * time.Microsecond, Lost: 4},
			"netbackd serves vif1.0: 123ms without service, 4 packets to the guest lost, none from the guest (interface settings copied)\n"},
		{handover.Report{Gap: time.Second, Lost: 4, AtLeast: true, Script: true},
			"netbackd serves vif1.0: 1s without service, at least 4 packets to the guest lost, none from the guest (hotplug script run)\n"},
		{handover.Report{Gap: time.Second, Lost: -1, Script: true},
			"netbackd serves vif1.0: 1s without service, packets to the guest were lost and could not be counted, none from the guest (hotplug script run)\n"},
	} {
		var b bytes.Buffer
		if err := writeReport(&b, "netbackd serves vif1.0", tt.r); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.want, b.String()); diff != "" {
			t.Errorf("unexpected line (-want +got):\n%s", diff)
		}
	}
}

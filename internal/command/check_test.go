// SPDX-License-Identifier: Apache-2.0

package command

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/internal/hostcheck"
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

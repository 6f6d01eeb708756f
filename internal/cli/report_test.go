// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/internal/handover"
)

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

// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/internal/lab/vhostfront"
)

// TestVirtWaitsForItsBackEnd: a device whose back end does not come fails in time, and the
// agent goes on. Without Xen there are no vifs.
func TestVirtWaitsForItsBackEnd(t *testing.T) {
	netns.NeedTUN(t)
	c, err := Start(StartOptions{Config: Config{NoXen: true}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, server := range []bool{false, true} {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		_, err = c.VirtAttach(ctx, VirtConfig{MAC: "02:00:00:00:00:01", Front: vhostfront.Config{Socket: filepath.Join(t.TempDir(), "s"), Server: server}})
		cancel()
		if err == nil || !strings.Contains(err.Error(), context.DeadlineExceeded.Error()) {
			t.Errorf("without a back end, server %t: %v", server, err)
		}
	}
	if _, err := c.Attach(t.Context(), VifConfig{}); err == nil || !strings.Contains(err.Error(), "without Xen") {
		t.Errorf("a vif without Xen: %v", err)
	}
	if _, err := c.VirtInfo(t.Context(), ""); err == nil {
		t.Error("there is a device")
	}
	if err := c.Quit(t.Context()); err != nil {
		t.Error(err)
	}
}

// SPDX-License-Identifier: Apache-2.0

package scale

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// patience bounds waits that take a second or two.
const patience = 2 * time.Minute

// takeover kills the daemon, lets every guest send a packet, and starts a successor. It returns
// the time from the start of the successor until all packets are answered and all vifs have
// their carrier, and the successor's processor time by then.
func (h *host) takeover() (took, cpu time.Duration) {
	h.tb.Helper()
	h.lab.Daemon().Kill()
	h.Send(h.Guests)
	began := time.Now()
	h.must(h.lab.StartDaemon(h.ctx))
	h.served()
	for _, g := range h.Guests {
		h.awaitCarrier(g.VifName())
	}
	return time.Since(began), h.used().CPU
}

// served waits until the packets of all guests are answered.
func (h *host) served() {
	h.tb.Helper()
	ctx, cancel := context.WithTimeout(h.ctx, patience)
	defer cancel()
	h.must(h.Served(ctx, h.Guests))
}

// awaitCarrier waits until an interface has its carrier.
func (h *host) awaitCarrier(name string) {
	h.tb.Helper()
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for end := time.Now().Add(patience); ; <-look.C {
		b, err := os.ReadFile("/sys/class/net/" + name + "/carrier")
		if err == nil && strings.TrimSpace(string(b)) == "1" {
			return
		}
		if time.Now().After(end) {
			h.tb.Fatalf("%s has no carrier: %q, %v", name, b, err)
		}
	}
}

// listed runs `netbackd list` some times, checks that it has a line for each vif, and returns
// the median of the times that it took.
func (h *host) listed(rounds int) time.Duration {
	h.tb.Helper()
	took := make([]time.Duration, rounds)
	for i := range took {
		began := time.Now()
		out, err := exec.Command(h.exe, "list", "--run-dir", h.lab.RunDir()).Output()
		took[i] = time.Since(began)
		if e := (*exec.ExitError)(nil); errors.As(err, &e) {
			err = fmt.Errorf("list: %w: %s", err, e.Stderr)
		}
		h.must(err)
		// A guest posts no rx slots, so its vif may be stalled by now.
		if n := strings.Count(string(out), " connected ") + strings.Count(string(out), " stalled "); n != len(h.Guests) {
			h.tb.Fatalf("%d vifs are listed as connected, want %d:\n%s", n, len(h.Guests), out)
		}
	}
	slices.Sort(took)
	return took[rounds/2]
}

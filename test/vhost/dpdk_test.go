// SPDX-License-Identifier: Apache-2.0

package vhost

import (
	"testing"

	"github.com/netbackd/netbackd/internal/lab/foreign"
	"github.com/netbackd/netbackd/internal/lab/netns"
)

// The judge is checked with a back end that is not netbackd.
func TestReflectionOnDPDK(t *testing.T) {
	b := newBed(t).all()
	back, err := b.programs.StartDPDKBackend(b.ctx, "be", b.path("s"), b.tap, -1)
	b.ok(err)
	b.ends(back)
	b.ok(netns.Up(b.tap))
	front, err := b.programs.StartTestpmd(b.ctx, foreign.Testpmd{
		Name: "fe", Devices: []string{foreign.VirtioUser(b.path("s"), 1, "")}, Mode: "io", CPU: -1,
	})
	b.ok(err)
	b.ends(front)
	f, err := foreign.OpenFrames(b.tap, 64)
	b.ok(err)
	defer f.Close()
	r, err := f.Reflect(b.ctx, 5000, 60, 61, 300, 1514)
	b.ok(err)
	t.Logf("%+v", r)
	ports, err := foreign.StopTestpmd(front)
	b.ok(err)
	t.Logf("%+v", ports)
}

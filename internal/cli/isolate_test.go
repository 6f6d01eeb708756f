// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/netbackd/netbackd/internal/confine"
	"github.com/netbackd/netbackd/internal/daemon"
	"github.com/netbackd/netbackd/internal/procs"
)

// TestChooseIsolation: by default a packet process has all vifs. On a kernel without seccomp
// packets move in the daemon, which the log and the status tell. A choice of the administrator
// stays.
func TestChooseIsolation(t *testing.T) {
	absent := fmt.Errorf("%w: function not implemented", confine.ErrNotSupported)
	for _, tt := range []struct {
		flag   string
		kernel error
		want   procs.Isolation
		told   int // lines of the log
	}{
		{isolateAuto, nil, procs.IsolateShared, 0},
		{isolateAuto, absent, procs.IsolateNone, 1},
		{"none", nil, procs.IsolateNone, 0},
		{"guest", nil, procs.IsolateGuest, 0},
		{"guest", absent, procs.IsolateGuest, 0},
	} {
		core, lines := observer.New(zap.DebugLevel)
		f := runFlags{isolate: tt.flag}
		var err error
		if f.isolation, err = f.checkIsolation(); err != nil {
			t.Fatal(err)
		}
		d := &netDaemon{Process: &daemon.Process{Log: zap.New(core)}, runFlags: &f}
		d.chooseIsolation(tt.kernel)
		if d.isolation != tt.want || lines.Len() != tt.told {
			t.Errorf("%s, kernel %v: %q with %d lines, want %q with %d", tt.flag, tt.kernel, d.isolation, lines.Len(), tt.want, tt.told)
		}
		if tell := d.unconfined != nil; tell != (tt.told > 0) {
			t.Errorf("%s, kernel %v: the status tells %v", tt.flag, tt.kernel, d.unconfined)
		}
	}
}

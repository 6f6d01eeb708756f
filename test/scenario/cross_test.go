// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"bytes"
	"context"
	"flag"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/internal/lab/netfront"
	"github.com/netbackd/netbackd/internal/lab/ringscript"
	"github.com/netbackd/netbackd/internal/lab/xenfront"
	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
)

// rewrite is for changed scripts. The transcripts of the embedded Xen must still equal
// those of a real Xen.
var rewrite = flag.Bool("said", false, "rewrite the transcripts in ../cross")

// TestScriptsOfBothXens plays the scripts that a guest plays on a real Xen as well
// (test/xen/scenarios/cross.sh). The frontend, the daemon and the hypervisor must behave
// the same on both.
func TestScriptsOfBothXens(t *testing.T) {
	files, err := filepath.Glob("../cross/*.ring")
	if err != nil {
		t.Fatal(err)
	}
	examples, err := filepath.Glob("../../docs/examples/*.ring")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 || len(examples) == 0 {
		t.Fatal("there are no scripts")
	}
	// Only the script about stalls may see a stalled guest, even if a busy machine takes
	// long from one line to the next.
	files = slices.DeleteFunc(files, func(f string) bool { return f == stalls })
	playScripts(t, "1h", append(files, examples...))
}

const stalls = "../cross/rx-stall.ring"

// TestScriptsOfBothXensStalls plays the script about guests that post no buffers.
func TestScriptsOfBothXensStalls(t *testing.T) { playScripts(t, "3s", []string{stalls}) }

// playScripts plays scripts against a daemon with this --rx-stall.
func playScripts(t *testing.T, stall string, files []string) {
	// The same as in cross.sh.
	w := newWorld(t, "--max-queues=4", "--rx-stall="+stall, "--rx-drain=1h", "--control-ring=both", "--static-grants=1100")
	cfg := config(w.guests)
	domid, err := w.CreateDomain(w.ctx, "script", simclient.DomainConfig{GntallocLimit: 8192})
	w.must(err)
	w.must(w.Attach(w.ctx, domid, lab.VifConfig{MAC: cfg.Vif.MAC, Bridge: bridge, MTU: jumbo}))

	ctx, stop := context.WithCancel(w.ctx)
	umpire := ringscript.NewUmpire(ringscript.UmpireConfig{Domid: domid, Store: w.Store(), Daemon: w.Control()})
	served := make(chan error, 1)
	go func() { served <- umpire.Serve(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
		w.must(umpire.Close())
	})

	host, leave, err := xenfront.Open(ctx, w.XenDir(), domid)
	w.must(err)
	t.Cleanup(func() { w.must(leave()) })
	line, err := ringscript.Call(ctx, host.Store)
	w.must(err)
	defer line.Close()

	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".ring"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			script, err := ringscript.Parse(filepath.Base(file), string(text))
			if err != nil {
				t.Fatal(err)
			}
			var said transcript
			if err := ringscript.Play(ctx, host, netfront.DefaultDir, line, []*ringscript.Script{script},
				func(string) (io.WriteCloser, error) { return &said, nil }); err != nil {
				t.Fatalf("%v\n%s", err, said.String())
			}
			t.Log("\n" + said.String())
			golden := strings.TrimSuffix(file, ".ring") + ".said"
			if *rewrite {
				if err := os.WriteFile(golden, said.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), said.String()); diff != "" {
				t.Errorf("%s (-want +got):\n%s", golden, diff)
			}
		})
	}
}

// transcript collects the output of a script.
type transcript struct{ bytes.Buffer }

func (*transcript) Close() error { return nil }

// SPDX-License-Identifier: Apache-2.0

package virtfront

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestPlain sends frames of all sizes and shapes through a back end that sends them back.
func TestPlain(t *testing.T) {
	for name, features := range map[string]uint64{"split": 0, "event idx": FeatureEventIdx, "packed": FeaturePacked | FeatureEventIdx} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			socket := filepath.Join(t.TempDir(), "s")
			l, err := Listen(socket)
			if err != nil {
				t.Fatal(err)
			}
			back := make(chan error, 1)
			go func() { back <- RunEcho(ctx, l) }()
			in, to := io.Pipe()
			from, out := io.Pipe()
			front := make(chan error, 1)
			go func() {
				err := RunPlain(ctx, socket, GuestConfig{Features: features, Size: 128, MaxFrame: maxFrame}, in, out)
				_ = out.CloseWithError(err)
				front <- err
			}()
			lines := bufio.NewScanner(from)
			ask := func(line string) string {
				fmt.Fprintln(to, line)
				if !lines.Scan() {
					t.Fatal(lines.Err(), <-front)
				}
				return lines.Text()
			}
			for _, want := range []string{"started: plain", "ready"} {
				if !lines.Scan() || lines.Text() != want {
					t.Fatal(lines.Text(), <-front)
				}
			}
			if got := ask("send 1000"); got != "ok" {
				t.Fatal(got)
			}
			var got string
			for !strings.Contains(got, "returned=1000") && ctx.Err() == nil {
				got = ask("stats")
			}
			if want := "sent=1000 echoed=0 good=0 returned=1000 other=0 bad=0 gaps=0 broken=0 empty=0 outstanding=0"; got != want {
				t.Errorf("%s\nwant %s", got, want)
			}
			if got := ask("bogus"); got != "error: bogus: unknown command" {
				t.Error(got)
			}
			ask("quit")
			go io.Copy(io.Discard, from)
			if err := <-front; err != nil {
				t.Error(err)
			}
			if err := <-back; err != nil {
				t.Error(err)
			}
		})
	}
}

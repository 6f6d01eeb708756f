// SPDX-License-Identifier: Apache-2.0

package vhost

import (
	"flag"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/internal/lab/foreign"
	"github.com/netbackd/netbackd/internal/lab/foreign/vmagent"
	"github.com/netbackd/netbackd/internal/lab/netns"
)

var record = flag.Bool("record", false, "write the messages that front ends send to testdata, instead of comparing them")

// untilStarted returns the messages until the driver is ready (DRIVER_OK), and all if it
// never is.
func untilStarted(lines []string) []string {
	i := slices.IndexFunc(lines, func(l string) bool {
		return strings.HasPrefix(l, "front SET_STATUS") && strings.HasSuffix(l, " 0xf")
	})
	if i < 0 {
		return lines
	}
	return lines[:i+1]
}

// sent returns what the front end has sent, in the form in which it is compared: without the
// features, which the kernel of a guest and the back end have a part in, and without the
// repetitions of what each reset of the device and of its driver brings.
func sent(lines []string) (out []string) {
	for _, l := range lines {
		words := strings.Fields(l)
		if len(words) < 2 || words[0] != "front" {
			continue
		}
		switch words[1] {
		case "SET_FEATURES", "SET_PROTOCOL_FEATURES":
			words = words[:2]
		}
		l = strings.Join(words, " ")
		again := words[1] == "SET_VRING_ENABLE" || words[1] == "RESET_DEVICE"
		if !again || !slices.Contains(out, l) {
			out = append(out, l)
		}
	}
	return out
}

// compare compares messages with those that were recorded of the program. A difference means
// that netbackd meets an order of messages that it was not tested with.
func (b *bed) compare(name, version string, lines []string) {
	b.Helper()
	path := filepath.Join("testdata", name+".transcript")
	if *record {
		b.ok(os.WriteFile(path, []byte("# "+version+"\n"+strings.Join(lines, "\n")+"\n"), 0o644))
		return
	}
	recorded, err := os.ReadFile(path)
	b.ok(err)
	_, text, _ := strings.Cut(string(recorded), "\n")
	if diff := cmp.Diff(sent(strings.Split(text, "\n")), sent(lines)); diff != "" {
		b.Errorf("messages of %s, recorded with another version? (-recorded +sent):\n%s", version, diff)
	}
}

// version returns the version of a program for the head of a transcript.
func (b *bed) version(program string) string {
	b.Helper()
	v, err := b.programs.Version(program)
	b.ok(err)
	return v
}

// passt is another back end of others. What QEMU sends to it and what it offers is recorded,
// and that the judges of TCP agree with it.
func TestQEMUOnPasst(t *testing.T) {
	b := newBed(t).all()
	// passt takes its settings from an interface that has an address.
	_, err := netns.AddBridge(b.tap)
	b.ok(err)
	defer func() { _ = netns.Delete(b.tap) }()
	b.ok(netns.AddAddr(b.tap, "10.77.1.1/24"))
	back, err := b.programs.StartPasst(b.ctx, b.path("back"), guestIP, hostIP, vmagent.Port)
	b.missing(err)
	b.ends(back)
	r, err := foreign.NewRecorder(b.path("front"), b.path("back"), false)
	b.ok(err)
	defer func() {
		_ = r.Close()
		if t.Failed() {
			lines := r.Transcripts()
			t.Logf("%d connections, the last:\n%s", len(lines), strings.Join(lines[len(lines)-1], "\n"))
		}
	}()
	g := b.boot(foreign.QEMU{Program: foreign.NewQEMU, Socket: b.path("front")})
	b.up(g)
	_, port, err := net.SplitHostPort(b.serveTCP("127.0.0.1"))
	b.ok(err)
	b.tcpToHost(g, net.JoinHostPort(hostIP, port), 4<<20)
	lines := r.Transcripts()
	b.compare("qemu-10.0-passt", b.version(foreign.NewQEMU)+" with "+b.version(foreign.Passt), lines[len(lines)-1])
}

// SPDX-License-Identifier: Apache-2.0

package gntdev

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntalloc"
	"github.com/netbackd/netbackd/pkg/xen"
)

// The tests of this file and of realxen_test.go need a host that runs Xen and
// a guest. They are one test in two places, joined by the guest's xenstore
// home: the guest does what it is told and answers, every judgement is made in
// the back end's domain. Build them once with
//
//	CGO_ENABLED=0 go test -c ./pkg/gntdev
//
// then run, first in the guest and then in dom0,
//
//	XENTEST_ROLE=frontend ./gntdev.test -test.v -test.run RealXenFrontend
//	XENTEST_ROLE=backend XENTEST_GUEST=<domid> ./gntdev.test -test.v -test.run RealXenBackend
//
// with xenstore-read and xenstore-write in the path, and xl in dom0. The guest
// is destroyed at the end.
const (
	roleEnv  = "XENTEST_ROLE"
	guestEnv = "XENTEST_GUEST"
)

// needRole skips the test unless it was asked for on a Xen domain.
func needRole(t *testing.T, role string) {
	t.Helper()
	if _, err := os.Stat(DefaultPath); err != nil {
		t.Skipf("not a Xen domain with gntdev: %v", err)
	}
	if os.Getenv(roleEnv) != role {
		t.Skipf("%s=%s asks for this test; it needs a guest as its other half", roleEnv, role)
	}
}

// xenstore runs one of the xenstore-* commands.
func xenstore(cmd string, args ...string) (string, error) {
	out, err := exec.Command("xenstore-"+cmd, args...).Output()
	return strings.TrimSpace(string(out)), err
}

// TestRealXenFrontend is the guest: it carries out calls written to data/call
// as "<number> <verb> <args>" and writes "<number> <result>" to data/reply,
// until it is told to quit or is destroyed.
func TestRealXenFrontend(t *testing.T) {
	needRole(t, "frontend")
	alloc, err := gntalloc.Open(gntalloc.DefaultPath)
	if err != nil {
		t.Fatal(err)
	}
	defer alloc.Close()
	events, err := evtchn.Open(evtchn.DefaultPath)
	if err != nil {
		t.Fatal(err)
	}
	defer events.Close()
	g := &guest{alloc: alloc, events: events}
	for last := ""; ; {
		call, err := xenstore("read", "data/call")
		number, rest, _ := strings.Cut(call, " ")
		if err != nil || number == last {
			time.Sleep(5 * time.Millisecond)
			continue
		}
		last = number
		reply, err := g.serve(strings.Fields(rest))
		if err != nil {
			reply = "error " + err.Error()
		}
		t.Logf("%s -> %s", call, reply)
		if _, err := xenstore("write", "data/reply", number+" "+reply); err != nil {
			t.Fatal(err)
		}
		if rest == "quit" {
			return
		}
	}
}

// guest holds granted pages and event channels, as a frontend does.
type guest struct {
	alloc  *gntalloc.Device
	events *evtchn.Device
	pages  []*gntalloc.Pages
}

var errCall = errors.New("no such call")

func (g *guest) serve(words []string) (string, error) {
	if len(words) == 0 {
		return "", errCall
	}
	var n [4]int
	for i, w := range words[1:] {
		if _, err := fmt.Sscan(w, &n[i]); err != nil {
			return "", err
		}
	}
	switch words[0] {
	case "alloc": // domid pages writable: "<set> <ref>...", page i filled with seed i
		p, err := g.alloc.Alloc(xen.Domid(n[0]), n[1], n[2] == 1)
		if err != nil {
			return "", err
		}
		g.pages = append(g.pages, p)
		for i := range p.Bytes() {
			p.Bytes()[i] = pattern(i/PageSize, i%PageSize)
		}
		return strings.Trim(fmt.Sprint(append([]xen.Gref{xen.Gref(len(g.pages) - 1)}, p.Refs()...)), "[]"), nil
	case "reserve": // domid pages: "<set>", for more refs than fit in a xenstore node
		p, err := g.alloc.Alloc(xen.Domid(n[0]), n[1], true)
		if err != nil {
			return "", err
		}
		g.pages = append(g.pages, p)
		return fmt.Sprint(len(g.pages) - 1), nil
	case "free": // set
		return "ok", g.pages[n[0]].Free()
	case "check": // set seed: how many bytes follow the pattern, page i that of seed+i
		mem := g.pages[n[0]].Bytes()
		for i := range mem {
			if mem[i] != pattern(n[1]+i/PageSize, i%PageSize) {
				return fmt.Sprint(i), nil
			}
		}
		return fmt.Sprint(len(mem)), nil
	case "offer": // domid: port
		port, err := g.events.BindUnbound(xen.Domid(n[0]))
		return fmt.Sprint(port), err
	case "unbind":
		return "ok", g.events.Unbind(evtchn.Port(n[0]))
	case "notify":
		return "ok", g.events.Notify(evtchn.Port(n[0]))
	case "pending": // "<port>..."
		buf := make([]evtchn.Port, 64)
		k, err := g.events.Pending(buf)
		return strings.Trim(fmt.Sprint(buf[:k]), "[]"), err
	case "unmask":
		return "ok", g.events.Unmask([]evtchn.Port{evtchn.Port(n[0])})
	case "quit":
		return "ok", nil
	}
	return "", errCall
}

// pattern is byte i of a page filled with a seed. Its period is no power of
// two, so that bytes from a wrong offset do not match.
func pattern(seed, i int) byte { return byte(i%251 + seed*37) }

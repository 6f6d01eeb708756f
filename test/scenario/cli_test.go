// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/internal/netcontrol"
	"github.com/netbackd/netbackd/internal/vhostnet"
	"github.com/netbackd/netbackd/internal/vif"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// strict decodes JSON. Unknown fields are an error.
func strict(t *testing.T, text string, into any) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
}

// fine checks that a command succeeded without an error message, and returns its output.
func fine(t *testing.T, s said) string {
	t.Helper()
	if s.code != 0 || s.err != "" {
		t.Fatalf("exit code %d, it said %q", s.code, s.err)
	}
	return s.out
}

// row returns the line of a table that begins with name, cut at its columns.
func row(t *testing.T, table, name string) map[string]string {
	t.Helper()
	lines := strings.Split(strings.TrimRight(table, "\n"), "\n")
	head := lines[0]
	for _, l := range lines[1:] {
		if !strings.HasPrefix(l, name+" ") {
			continue
		}
		cells := map[string]string{}
		for at := 0; at < len(head); {
			end := len(head)
			// A column ends where at least two blanks do.
			if i := strings.Index(head[at:], "  "); i >= 0 {
				end = at + i
				for end < len(head) && head[end] == ' ' {
					end++
				}
			}
			cell := l[min(at, len(l)):min(end, len(l))]
			if end == len(head) {
				cell = l[min(at, len(l)):]
			}
			cells[strings.TrimSpace(head[at:end])] = strings.TrimSpace(cell)
			at = end
		}
		return cells
	}
	t.Fatalf("no line of %s in\n%s", name, table)
	return nil
}

func TestList(t *testing.T) {
	w := newWorld(t)
	if out := fine(t, w.ask("list")); out != "no vifs\n" {
		t.Errorf("without vifs it prints %q", out)
	}
	g := w.guest(queues(2))
	waits := w.rawFront(1)
	unplugged := w.rawFront(1, script(lab.NoScript))
	unplugged.offer(unplugged.keys(), xenbus.Connected)
	w.wait("the rings to be mapped", func() bool { return unplugged.status().Grants == 2 })
	refused := w.rawFront(1)
	refused.offer(refused.with(map[string]string{"request-rx-copy": "0"}), xenbus.Connected)
	refused.waitBack(xenbus.Closed)
	g.tcpToHost(1 << 20)

	table := fine(t, w.ask("list"))
	t.Logf("\n%s", table)
	for _, c := range []struct {
		name string
		want map[string]string
	}{
		{g.VifName(), map[string]string{"STATE": "connected", "QUEUES": "2", "DROPS": "0", "NOTE": "-"}},
		{waits.name(), map[string]string{"STATE": "init-wait", "QUEUES": "0", "NOTE": "waits for the guest"}},
		{unplugged.name(), map[string]string{"STATE": "init-wait", "NOTE": "waits for the hotplug script"}},
	} {
		got := row(t, table, c.name)
		for k := range got {
			if _, asked := c.want[k]; !asked {
				delete(got, k)
			}
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
	if note := row(t, table, refused.name())["NOTE"]; !strings.Contains(note, "request-rx-copy") {
		t.Errorf("of %s it notes %q", refused.name(), note)
	}
	if alias := fine(t, w.ask("ls")); strings.Count(alias, "\n") != strings.Count(table, "\n") {
		t.Errorf("ls prints %q", alias)
	}

	var list struct {
		netcontrol.Vifs
		Devices []vhostnet.Status `json:"vhost_user"`
	}
	strict(t, fine(t, w.ask("list", "--json")), &list)
	if list.Schema != netcontrol.Schema || len(list.Vifs.Vifs) != 4 || len(list.Devices) != 0 {
		t.Fatalf("schema %d, %d vifs, %d devices", list.Schema, len(list.Vifs.Vifs), len(list.Devices))
	}
	for i, name := range []string{g.VifName(), waits.name(), unplugged.name(), refused.name()} {
		if list.Vifs.Vifs[i].Name != name {
			t.Errorf("vif %d is %s, want %s", i, list.Vifs.Vifs[i].Name, name)
		}
	}
}

func TestShow(t *testing.T) {
	w := newWorld(t)
	g := w.guest(queues(2), vifKeys(func(v *lab.VifConfig) { v.Name, v.Rate = "web01", "125000000,50000" }))
	g.pings(5)
	text := fine(t, w.ask("show", g.VifName()))
	for _, want := range []string{
		g.VifName(), "connected", "online true", "web01, up, carrier on", "00:16:3e:00:00:01",
		"/etc/xen/scripts/vif-bridge", bridge, "125000000 B/50ms", "gso-tcpv4", "QUEUE", "tx_packets",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("show does not tell %q:\n%s", want, text)
		}
	}
	// Scripts rename interfaces, and administrators use the name that they see.
	if byName := fine(t, w.ask("show", "web01")); !strings.HasPrefix(byName, strings.SplitN(text, "\n", 2)[0]) {
		t.Errorf("show web01 prints %q", byName)
	}

	out := fine(t, w.ask("show", g.VifName(), "--json"))
	var s vif.Status
	strict(t, out, &s)
	want := vif.Status{
		Name: g.VifName(), Revision: s.Revision, Domid: g.Domid, Devid: 0, State: xenbus.Connected, Frontend: xenbus.Connected, Online: true,
		Hotplug: "connected", MAC: "00:16:3e:00:00:01", Bridge: bridge, Script: "/etc/xen/scripts/vif-bridge",
		Interface: "web01", Up: true, Carrier: true, MTU: 1500, GuestMTU: 1500, Rate: "125000000 B/50ms", Weight: 1,
		Features: []string{"rx-copy", "rx-notify", "sg", "gso-tcpv4", "gso-tcpv6", "csum-ipv4", "csum-ipv6"},
		Mcast:    []string{}, Since: s.Since, Grants: 4, Ports: 4, Queues: s.Queues, Counters: s.Counters, Guest: s.Guest,
	}
	if diff := cmp.Diff(want, s); diff != "" {
		t.Errorf("show --json (-want +got):\n%s", diff)
	}
	if len(s.Queues) != 2 || s.Since.IsZero() {
		t.Errorf("%d queues, connected since %v", len(s.Queues), s.Since)
	}
	for _, c := range dataplane.Counters {
		n, there := s.Counters[c.Name]
		sum := uint64(0)
		for _, q := range s.Queues {
			sum += q.Counters[c.Name]
		}
		if !there || n != sum {
			t.Errorf("%s is %d (there: %t), and %d of all queues", c.Name, n, there, sum)
		}
	}
	if s.Counters["tx_packets"] < 5 || s.Counters["rx_packets"] < 5 {
		t.Errorf("after 5 pings it has counted %d and %d packets", s.Counters["tx_packets"], s.Counters["rx_packets"])
	}
	// Scripts depend on the names.
	var raw map[string]json.RawMessage
	strict(t, out, &raw)
	for _, k := range []string{"name", "domid", "devid", "state", "frontend_state", "online", "interface", "carrier", "queues", "counters", "features", "grants_mapped", "event_channels"} {
		if _, there := raw[k]; !there {
			t.Errorf("show --json has no field %q", k)
		}
	}
	if string(raw["state"]) != `"connected"` {
		t.Errorf("state is %s", raw["state"])
	}
}

// TestResetOfAQuarantinedVif: a vif in quarantine shows the reason and the remedy. Once the
// guest has repaired its ring, reset reconnects the vif.
func TestResetOfAQuarantinedVif(t *testing.T) {
	w := newWorld(t)
	w.undisturbed(func() {
		f := w.rawFront(2)
		f.connect()
		publish := func(prod netif.Index) {
			f.queues[1].tx.SetReqProd(prod)
			w.must(f.events.Notify(f.queues[1].txPort))
		}
		quarantined := func() bool { s := f.status(); return s.Quarantine != "" && s.Grants == 0 }
		publish(5000) // of 256 slots
		w.wait("the quarantine", quarantined)
		table := row(t, fine(t, w.ask("list")), f.name())
		if table["STATE"] != "quarantine" || !strings.Contains(table["NOTE"], "queue 1") {
			t.Errorf("list says %v", table)
		}
		if text := fine(t, w.ask("show", f.name())); !strings.Contains(text, "netbackd reset "+f.name()) {
			t.Errorf("show does not say what to do:\n%s", text)
		}
		publish(0)
		fine(t, w.ask("reset", f.name()))
		w.wait("the vif to be back", func() bool { return f.status().Grants == 4 })
		f.connected()
		if s := w.read(f.back() + "/state"); s != "4" {
			t.Errorf("the guest was told: state %s", s)
		}
	})
}

// TestResetOfAVifWhoseRingIsStillBroken: a reset with a ring that is still broken fails to
// connect, and the guest sees the error.
func TestResetOfAVifWhoseRingIsStillBroken(t *testing.T) {
	w := newWorld(t)
	f := w.rawFront(2)
	f.connect()
	f.queues[0].rx.SetReqProd(70000)
	w.must(f.events.Notify(f.queues[0].rxPort))
	w.wait("the quarantine", func() bool { return f.status().Quarantine != "" })
	fine(t, w.ask("reset", f.name()))
	f.waitBack(xenbus.Closed)
	w.waitError(f.domid, f.devid, "req_prod is out of bounds")
	w.unpinned(f.domid)
	f.state(xenbus.Closed)
	f.reopen()
	f.newRings(2)
	f.connect()
	f.connected()
}

// TestResetOfAVifThatIsWell: a reset of a working vif changes nothing.
func TestResetOfAVifThatIsWell(t *testing.T) {
	w := newWorld(t)
	g := w.guest()
	since := g.status().Since
	whole := g.streaming(8 << 20)
	fine(t, w.ask("reset", g.VifName()))
	whole()
	if s := g.status(); !s.Since.Equal(since) {
		t.Errorf("connected since %v, before the reset since %v", s.Since, since)
	}
	g.innocent()
}

// TestExitCodesAndErrors: a failing command prints one line with the remedy, and returns
// the documented exit code.
func TestExitCodesAndErrors(t *testing.T) {
	w := newWorld(t)
	f := w.rawFront(1)
	noDaemon := []string{"--run-dir", filepath.Join(t.TempDir(), "none")}
	for _, c := range []struct {
		name string
		args []string
		code int
		says []string
	}{
		{"show of no vif", []string{"show", "vif99.0", "--run-dir", w.RunDir()}, 4, []string{"vif99.0", "no such vif", f.name()}},
		{"show --json of no vif", []string{"show", "vif99.0", "--json", "--run-dir", w.RunDir()}, 4, []string{"vif99.0"}},
		{"reset of no vif", []string{"reset", "vif99.0", "--run-dir", w.RunDir()}, 4, []string{"vif99.0", "no such vif"}},
		{"reset of a path", []string{"reset", "../daemon", "--run-dir", w.RunDir()}, 4, []string{"../daemon"}},
		{"reset of nothing", []string{"reset", "", "--run-dir", w.RunDir()}, 4, nil},
		{"list without a daemon", append([]string{"list"}, noDaemon...), 3, []string{"not running", "netbackd run"}},
		{"show without a daemon", append([]string{"show", "vif1.0"}, noDaemon...), 3, []string{"not running"}},
		{"reset without a daemon", append([]string{"reset", "vif1.0"}, noDaemon...), 3, []string{"not running"}},
		{"show of two", []string{"show", "a", "b"}, 2, []string{"netbackd show --help"}},
		{"reset of what", []string{"reset"}, 2, []string{"netbackd reset --help"}},
		{"list of what", []string{"list", "vif1.0"}, 2, []string{"netbackd list --help"}},
		{"an unknown flag", []string{"list", "--yaml"}, 2, []string{"--yaml", "netbackd list --help"}},
		{"an unknown command", []string{"lits"}, 2, []string{"lits", "--help"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := netbackd(w.ctx, c.args...)
			if s.code != c.code || !oneLine(s.err) || s.out != "" {
				t.Errorf("exit code %d, want %d; it said %q and %q", s.code, c.code, s.err, s.out)
			}
			for _, text := range c.says {
				if !strings.Contains(s.err, text) {
					t.Errorf("it said %q, which does not tell of %q", s.err, text)
				}
			}
		})
	}
	// A daemon that was killed has left its socket.
	w.Daemon().Kill()
	if s := w.ask("list"); s.code != 3 || !oneLine(s.err) {
		t.Errorf("after kill -9: exit code %d, it said %q", s.code, s.err)
	}
	w.must(w.StartDaemon(w.ctx))
	f.connect()
}

func TestVersion(t *testing.T) {
	w := newWorld(t)
	if out := fine(t, netbackd(w.ctx, "version")); !strings.HasPrefix(out, "netbackd ") || strings.Count(out, "\n") != 1 {
		t.Errorf("version prints %q", out)
	}
	var v struct {
		Schema                int
		Version, Go, OS, Arch string
	}
	strict(t, fine(t, netbackd(w.ctx, "version", "--json")), &v)
	if v.Schema != 1 || v.Version == "" || v.Go == "" || v.OS != "linux" || v.Arch == "" {
		t.Errorf("version --json has %+v", v)
	}
	d, err := w.Control().Daemon(w.ctx)
	w.must(err)
	if d.Version != v.Version {
		t.Errorf("the daemon is %s, the program %s", d.Version, v.Version)
	}
}

func TestHelp(t *testing.T) {
	w := newWorld(t)
	out := fine(t, netbackd(w.ctx, "--help"))
	for _, c := range []string{"run", "list", "show", "reset", "check", "adopt", "release", "hotplug", "version", "completion"} {
		if !strings.Contains(out, "\n  "+c+" ") {
			t.Errorf("help does not know of %s", c)
		}
		if h := fine(t, netbackd(w.ctx, c, "--help")); !strings.Contains(h, "Usage:") {
			t.Errorf("%s --help prints %q", c, h)
		}
	}
	for _, ofLab := range []string{"sim", "guest", "demo"} {
		if s := netbackd(w.ctx, ofLab); s.code != 2 || !strings.Contains(s.err, "unknown command") {
			t.Errorf("the installed program has %s: %+v", ofLab, s)
		}
	}
}

// TestInstalledDaemonHasNoEmbeddedXen: the installed daemon serves only a real Xen. Without
// one, its error names netbackd-lab.
func TestInstalledDaemonHasNoEmbeddedXen(t *testing.T) {
	w := newWorld(t)
	for dir, says := range map[string]string{w.XenDir(): "gntdev", "/dev/no-xen": "make demo"} {
		s := command(w.ctx, installed, "run", "--xen", dir, "--run-dir", t.TempDir())
		if s.code != 1 || !strings.Contains(s.err, says) {
			t.Errorf("on %s: %+v, want an error with %q", dir, s, says)
		}
	}
}

// TestCompletion: the completion script is valid shell and completes the names of vifs.
func TestCompletion(t *testing.T) {
	w := newWorld(t)
	f := w.rawFront(1)
	for _, shell := range []string{"bash", "zsh", "fish"} {
		out := fine(t, netbackd(w.ctx, "completion", shell))
		if !strings.Contains(out, "netbackd") {
			t.Errorf("completion %s prints %.200q", shell, out)
		}
		path, err := exec.LookPath(shell)
		if err != nil {
			continue
		}
		file := filepath.Join(t.TempDir(), "completion")
		w.must(os.WriteFile(file, []byte(out), 0o600))
		if s := command(w.ctx, path, "-n", file); s.code != 0 {
			t.Errorf("%s does not take its script: %s", shell, s.err)
		}
	}
	for _, c := range []string{"show", "reset"} {
		s := netbackd(w.ctx, "__complete", "--run-dir", w.RunDir(), c, "")
		if words := strings.Fields(s.out); s.code != 0 || !slices.Contains(words, f.name()) {
			t.Errorf("%s is completed by %q", c, s.out)
		}
	}
}

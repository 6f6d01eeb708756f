// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/lab/pagetest"
	"github.com/netbackd/netbackd/internal/netcheck"
	"github.com/netbackd/netbackd/pkg/gntalloc"
)

// TestUnitsAreValid: systemd understands each line of the units, and their sandboxes are
// closed.
func TestUnitsAreValid(t *testing.T) {
	const dir = "../../systemd/"
	pagetest.ValidUnits(t, "netbackd", 13, []string{dir + "netbackd.service", dir + "netbackd-vhost-user@.service"}, dir+"netbackd-vhost-user@.socket")
}

// TestGntallocLimit: the unit, the file in modprobe.d and netbackd check agree on the limit, and
// the texts beside it on what a worker takes.
func TestGntallocLimit(t *testing.T) {
	limit, pages := strconv.Itoa(netcheck.UnitLimit), strconv.Itoa(dataplane.MaxOwnPages)
	workers := strconv.Itoa(gntalloc.Share(netcheck.UnitLimit) / dataplane.MaxOwnPages)
	comma := limit[:len(limit)-3] + "," + limit[len(limit)-3:]
	for path, texts := range map[string][]string{
		"systemd/netbackd.service":              {"-ge " + limit + " ]", "echo " + limit + " >", pages + " per worker"},
		"etc/modprobe.d/netbackd-gntalloc.conf": {"options xen-gntalloc limit=" + limit + "\n", pages + " pages per worker", "enough for " + workers + "\n# workers"},
		"packaging/netbackd.8":                  {"raises to " + comma, pages + " for each worker"},
		"docs/xen.md":                           {comma + " in", pages + "\nfor each worker"},
	} {
		b, err := os.ReadFile("../../" + path)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range texts {
			if !strings.Contains(string(b), text) {
				t.Errorf("%s does not have %q", path, text)
			}
		}
	}
}

// TestLimitIsRaised runs the unit's command on a file in the place of the module's.
func TestLimitIsRaised(t *testing.T) {
	unit, err := os.ReadFile("../../systemd/netbackd.service")
	if err != nil {
		t.Fatal(err)
	}
	_, command, ok := strings.Cut(string(unit), "ExecStartPre=-+/bin/sh -c '")
	command, _, ok2 := strings.Cut(command, "'\n")
	if !ok || !ok2 {
		t.Fatal("the unit has no command")
	}
	file := filepath.Join(t.TempDir(), "limit")
	command = strings.ReplaceAll(strings.ReplaceAll(command, gntalloc.LimitPath, file), "$$", "$")
	for _, c := range []struct{ before, after string }{{"", ""}, {"1024\n", "24576\n"}, {"24576\n", "24576\n"}, {"65536\n", "65536\n"}} {
		if c.before != "" {
			if err := os.WriteFile(file, []byte(c.before), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if out, err := exec.Command("/bin/sh", "-c", command).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%q: %v, %s", c.before, err, out)
		}
		if b, err := os.ReadFile(file); string(b) != c.after || (c.before == "") != os.IsNotExist(err) {
			t.Errorf("%q became %q, want %q", c.before, b, c.after)
		}
	}
}

// TestVhostUserUnitHasLess: the unit of vhost-user devices has nothing that the daemon's has
// not, and no device of Xen.
func TestVhostUserUnitHasLess(t *testing.T) {
	directives := func(name string) map[string]bool {
		b, err := os.ReadFile("../../systemd/" + name)
		if err != nil {
			t.Fatal(err)
		}
		set := map[string]bool{}
		for _, line := range strings.Split(string(b), "\n") {
			if strings.Contains(line, "=") && !strings.HasPrefix(line, "#") {
				set[line] = true
			}
		}
		return set
	}
	daemon, device := directives("netbackd.service"), directives("netbackd-vhost-user@.service")
	for line := range device {
		key, value, _ := strings.Cut(line, "=")
		switch key {
		case "DeviceAllow":
			if strings.Contains(value, "xen") || !daemon[line] {
				t.Errorf("%s", line)
			}
		case "AmbientCapabilities", "CapabilityBoundingSet":
			if value != "CAP_NET_ADMIN" {
				t.Errorf("%s", line)
			}
		}
	}
	for line := range daemon {
		key, _, _ := strings.Cut(line, "=")
		restricts := strings.HasPrefix(key, "Protect") || strings.HasPrefix(key, "Restrict") || strings.HasPrefix(key, "Private") ||
			strings.HasPrefix(key, "SystemCall") && line != "SystemCallFilter=bpf" || key == "NoNewPrivileges" || key == "DevicePolicy" ||
			key == "IPAddressDeny" || key == "UMask" || key == "User" || key == "MemoryDenyWriteExecute" || key == "LockPersonality"
		if restricts && key != "Restart" && key != "RestartSec" && !device[line] {
			t.Errorf("the daemon has %s, vhost-user devices have not", line)
		}
	}
}

// TestDescriptor: the descriptor has what QEMU's vhost-user.json demands, and its program
// takes the arguments that such programs take.
func TestDescriptor(t *testing.T) {
	b, err := os.ReadFile("../../packaging/50-netbackd-net.json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct{ Description, Type, Binary string }
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	if d.Description == "" || d.Type != "net" || d.Binary != "/usr/libexec/netbackd-vhost-user" {
		t.Errorf("%+v", d)
	}
	out, err := runCommand("vhost-user", "--print-capabilities")
	var can struct{ Type string }
	if err := json.Unmarshal([]byte(out), &can); err != nil || can.Type != d.Type {
		t.Errorf("capabilities %q, %v", out, err)
	}
	if err != nil {
		t.Error(err)
	}
	// The wrapper passes the arguments of the file in /etc/default and its own.
	dir := t.TempDir()
	script, err := os.ReadFile("../../packaging/netbackd-vhost-user")
	if err != nil {
		t.Fatal(err)
	}
	program, settings, wrapper := filepath.Join(dir, "program"), filepath.Join(dir, "settings"), filepath.Join(dir, "wrapper")
	text := strings.ReplaceAll(strings.ReplaceAll(string(script), "/usr/sbin/netbackd", program), "/etc/default/netbackd-vhost-user", settings)
	for path, content := range map[string]string{
		program: "#!/bin/sh\necho \"$@\"\n", settings: `NETBACKD_VHOST_USER_ARGS="--bridge br0 --queues 2"`, wrapper: text,
	} {
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, settled := range []bool{true, false} {
		want := "vhost-user --bridge br0 --queues 2 --fd=3\n"
		if !settled {
			want = "vhost-user --fd=3\n"
			if err := os.Remove(settings); err != nil {
				t.Fatal(err)
			}
		}
		if out, err := exec.Command(wrapper, "--fd=3").CombinedOutput(); err != nil || string(out) != want {
			t.Errorf("the wrapper runs %q, %v, want %q", out, err, want)
		}
	}
}

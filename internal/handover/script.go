// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"strings"
	"time"

	"github.com/netbackd/netbackd/pkg/xenstore"
)

// scriptLimit is how long a script may take; libxl gives it as much.
const scriptLimit = 40 * time.Second

// RunScript runs a hotplug script as libxl does when a vif comes, with the
// environment added to our own.
func RunScript(ctx context.Context, script string, env []string) error {
	ctx, cancel := context.WithTimeout(ctx, scriptLimit)
	defer cancel()
	c := exec.CommandContext(ctx, script, "online", "type_if=vif")
	c.Env = append(os.Environ(), env...)
	out, err := c.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s online: %w: %s", script, err, bytes.TrimSpace(out))
	}
	return nil
}

// directory is the vif's directory in xenstore.
func (m *Mover) directory(id ID) (string, error) {
	own, err := m.Store.Read("domid")
	if errors.Is(err, xenstore.ErrNotExist) {
		own, err = "0", nil // only dom0 may have no such node
	}
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("/local/domain/%s/backend/vif/%d/%d", strings.TrimSpace(own), id.Domid, id.Devid), nil
}

// runScript runs the vif's script for the interface it has now.
func (m *Mover) runScript(ctx context.Context, id ID, dir string) error {
	script, err := m.Store.Read(dir + "/script")
	if err != nil {
		return fmt.Errorf("which script puts %s in its place: %w", id.Name(), err)
	}
	if !path.IsAbs(script) {
		script = path.Join("/etc/xen/scripts", script)
	}
	gateway, _ := m.Store.Read(dir + "/gatewaydev")
	run := m.Script
	if run == nil {
		run = RunScript
	}
	return run(ctx, script, []string{
		"script=" + script,
		"XENBUS_TYPE=vif",
		fmt.Sprintf("XENBUS_PATH=backend/vif/%d/%d", id.Domid, id.Devid),
		"XENBUS_BASE_PATH=backend",
		"netdev=" + gateway,
		"vif=" + id.Name(),
		"NETBACKD_HOTPLUG=done", // vif-netbackd has not to call netbackd
	})
}

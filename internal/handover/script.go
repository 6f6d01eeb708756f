// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"strings"
	"time"

	"github.com/netbackd/netbackd/pkg/xenbus"
)

// scriptTimeout bounds a hotplug script, as LIBXL_HOTPLUG_TIMEOUT does.
const scriptTimeout = 40 * time.Second

// RunScript runs a hotplug script as libxl does for a new vif. It adds env to the
// environment of this process.
func RunScript(ctx context.Context, script string, env []string) error {
	ctx, cancel := context.WithTimeout(ctx, scriptTimeout)
	defer cancel()
	c := exec.CommandContext(ctx, script, "online", "type_if=vif")
	c.Env = append(os.Environ(), env...)
	out, err := c.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s online: %w: %s", script, err, bytes.TrimSpace(out))
	}
	return nil
}

// directory returns the vif's directory in xenstore.
func (m *Mover) directory(ctx context.Context, id xenbus.VifID) (string, error) {
	own, err := xenbus.OwnDomid(ctx, m.Store)
	return id.BackendPath(own), err
}

// runScript runs the vif's hotplug script for its present interface.
func (m *Mover) runScript(ctx context.Context, id xenbus.VifID, dir string) error {
	script, err := m.Store.Read(ctx, dir+"/script")
	if err != nil {
		return fmt.Errorf("hotplug script of %s: %w", id, err)
	}
	if !path.IsAbs(script) {
		script = path.Join("/etc/xen/scripts", script)
	}
	gateway, _ := m.Store.Read(ctx, dir+"/gatewaydev")
	_, vifPath, _ := strings.Cut(dir, "/backend/")
	run := m.Script
	if run == nil {
		run = RunScript
	}
	return run(ctx, script, []string{
		"script=" + script,
		"XENBUS_TYPE=vif",
		"XENBUS_PATH=backend/" + vifPath,
		"XENBUS_BASE_PATH=backend",
		"netdev=" + gateway,
		"vif=" + id.String(),
		"NETBACKD_HOTPLUG=done", // so vif-netbackd does not call netbackd
	})
}

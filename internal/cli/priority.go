// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/pflag"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/netcontrol"
)

// Values of --worker-priority.
const (
	priorityAuto = "auto"
	priorityOff  = "off"
)

// priorityFlag adds --worker-priority.
func priorityFlag(fl *pflag.FlagSet, v *string) {
	fl.StringVar(v, "worker-priority", priorityAuto, "`priority` of the threads that move packets: auto (higher while rates are high) or off")
}

// badPriority reports whether v is no value of --worker-priority.
func badPriority(v string) bool { return v != priorityAuto && v != priorityOff }

// setPriority stores the priority of the workers in the status.
func setPriority(d *netcontrol.Daemon, p *dataplane.Pool) {
	state, denied := p.Priority()
	d.Priority = state
	if denied != nil {
		d.Denied = denied.Error()
	}
}

// priorityRow returns the rule for workers' priority and how many are in which class.
func priorityRow(d *netcontrol.Daemon) string {
	s := d.Priority
	counts := make(map[string]int)
	var order []string
	for _, c := range d.Classes {
		if counts[c]++; counts[c] == 1 {
			order = append(order, c)
		}
	}
	for i, c := range order {
		order[i] = fmt.Sprintf("%d %s", counts[c], c)
	}
	if len(order) > 0 {
		s += "; now: " + strings.Join(order, ", ")
	}
	return s
}

// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"strings"
	"testing"

	"github.com/netbackd/netbackd/internal/netcontrol"
)

func TestPriorityFlag(t *testing.T) {
	for _, command := range [][]string{
		{"run", "--worker-priority=high"},
		{"vhost-user", "--socket-path=/nowhere", "--tap=t0", "--worker-priority=high"},
	} {
		if _, err := runCommand(command...); err == nil || !strings.Contains(err.Error(), `--worker-priority is "high", want auto or off`) {
			t.Errorf("%q: %v", command, err)
		}
	}
}

func TestPriorityRow(t *testing.T) {
	const normal, batch = "normal, nice 0", "batch, nice -10"
	for _, tt := range []struct {
		rule    string
		classes []string
		want    string
	}{
		{"switched off", nil, "switched off"},
		{"by rates", []string{normal, normal}, "by rates; now: 2 normal, nice 0"},
		{"by rates", []string{batch, normal, batch}, "by rates; now: 2 batch, nice -10, 1 normal, nice 0"},
	} {
		if got := priorityRow(&netcontrol.Daemon{Priority: tt.rule, Classes: tt.classes}); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}

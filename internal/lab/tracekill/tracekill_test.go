// SPDX-License-Identifier: Apache-2.0

package tracekill

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	Enter()
	os.Exit(m.Run())
}

// TestKill kills cat at calls of each kind of order.
func TestKill(t *testing.T) {
	read, write := Call{NR: unix.SYS_READ}, Call{NR: unix.SYS_WRITE}
	for _, tt := range []struct {
		name  string
		order Order
		want  Point
	}{
		{"entry", Order{Kind: &read, Call: 3}, Point{read, "entry"}},
		{"exit", Order{Kind: &write, Call: 2, Exit: true}, Point{write, "exit"}},
		{"after", Order{Kind: &write, Call: 2, Exit: true, Steps: 50}, Point{write, "after"}},
	} {
		for _, starting := range []bool{true, false} {
			script := "exec cat /dev/zero"
			if starting {
				script = "kill -STOP $$; " + script
			}
			cmd := exec.Command("/bin/sh", "-c", script)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			o := tt.order
			o.PIDs, o.Starting = []int{cmd.Process.Pid}, starting
			k, err := Start(o)
			if err != nil {
				_ = cmd.Process.Kill()
				t.Skip(err)
			}
			r, err := k.Wait(20 * time.Second)
			if err != nil || !r.Died || r.Point != tt.want || r.PID != cmd.Process.Pid {
				t.Errorf("%s, starting %t: %+v, %v", tt.name, starting, r, err)
				_ = cmd.Process.Kill()
			}
			_ = cmd.Wait()
			if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signal() != unix.SIGKILL {
				t.Errorf("%s: it ended with %v", tt.name, cmd.ProcessState)
			}
		}
	}
}

// TestAbandon: a victim that does not come to the call goes on, and ends as it would.
func TestAbandon(t *testing.T) {
	cmd := exec.Command("/bin/sh", "-c", "kill -STOP $$; read x; exit 7")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	k, err := Start(Order{PIDs: []int{cmd.Process.Pid}, Starting: true, Call: 1 << 30})
	if err != nil {
		_ = cmd.Process.Kill()
		t.Skip(err)
	}
	if r, err := k.Stop(); err != nil || r.Died {
		t.Errorf("%+v, %v", r, err)
	}
	_ = in.Close()
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 7 {
		t.Errorf("exit code %d", code)
	}
}

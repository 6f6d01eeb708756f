// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
)

func TestOneWriter(t *testing.T) {
	for _, tt := range []struct {
		name          string
		first, second bool // read-only
		busy          bool
	}{
		{"two writers", false, false, true},
		{"writer and reader", false, true, true},
		{"reader and writer", true, false, true},
		{"two readers", true, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := image(t, 4096)
			first := open(t, Options{Path: path, ReadOnly: tt.first})
			if !tt.busy {
				open(t, Options{Path: path, ReadOnly: tt.second})
				return
			}
			var seen []Holder
			e := refused(t, Options{Path: path, ReadOnly: tt.second, Waiting: func(h Holder) { seen = append(seen, h) }})
			if e.Reason != ReasonBusy || !errors.Is(e, context.Canceled) {
				t.Errorf("%v with reason %v: want %v", e, e.Reason, ReasonBusy)
			}
			if e.Holder.PID != os.Getpid() || e.Holder.Ended || !strings.Contains(e.Error(), strconv.Itoa(os.Getpid())) {
				t.Errorf("%v: want process %d", e, os.Getpid())
			}
			if len(seen) != 1 || seen[0] != e.Holder {
				t.Errorf("holders %v were reported: want %v", seen, e.Holder)
			}
			shut(t, first)
			open(t, Options{Path: path, ReadOnly: tt.second})
		})
	}
}

// TestOpenWaits: Open returns when the lock is free.
func TestOpenWaits(t *testing.T) {
	path := image(t, 4096)
	first := open(t, Options{Path: path})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	waits := 0
	second, err := Open(ctx, Options{Path: path, Waiting: func(Holder) {
		waits++
		shut(t, first)
	}})
	if err != nil || waits != 1 {
		t.Fatalf("%v after %d reports: want one", err, waits)
	}
	shut(t, second)
}

// TestLockOutlivesProcess: a file that a dead process has left open somewhere is locked,
// and the holder is shown as ended.
func TestLockOutlivesProcess(t *testing.T) {
	path := image(t, 4096)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+path)
	out, err := cmd.Output()
	heir, convErr := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil || convErr != nil {
		t.Fatalf("%v, %v: %s", err, convErr, out)
	}
	e := refused(t, Options{Path: path})
	if e.Reason != ReasonBusy || e.Holder != (Holder{PID: cmd.Process.Pid, Ended: true}) {
		t.Errorf("%v: want process %d, ended", e, cmd.Process.Pid)
	}
	if err := unix.Kill(heir, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	open(t, Options{Path: path})
}

func TestFindLock(t *testing.T) {
	const locks = "1: POSIX  ADVISORY  WRITE 11 fe:00:77 0 EOF\n" +
		"2: FLOCK  ADVISORY  WRITE 22 fd:01:77 0 EOF\n" +
		"2: -> FLOCK  ADVISORY  WRITE 33 fe:00:77 0 EOF\n" +
		"3: FLOCK  ADVISORY  READ  44 fe:00:77 0 EOF\n" +
		"4: FLOCK  ADVISORY  READ  -1 fe:00:78 0 EOF\n" +
		"5: FLOCK  ADVISORY  READ 55 fe:00\n" +
		"6: FLOCK  ADVISORY  READ x fe:00:79 0 EOF\n\n"
	dev := unix.Mkdev(0xfe, 0)
	for _, tt := range []struct {
		name   string
		device uint64
		inode  uint64
		want   int
	}{
		{"this file", dev, 77, 44},
		{"another device number for the same inode", 5, 77, 22},
		{"process of another namespace", dev, 78, 0},
		{"broken line", dev, 79, 0},
		{"not locked", dev, 80, 0},
	} {
		if got := findLock([]byte(locks), tt.device, tt.inode); got != tt.want {
			t.Errorf("%s: process %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestFindMount(t *testing.T) {
	const info = "22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n23 22 7:3 / /mnt/a rw - ext4 /dev/loop3 rw\nbroken\n"
	for _, tt := range []struct {
		minor uint32
		want  string
	}{{3, "/mnt/a"}, {4, ""}} {
		if got := findMount([]byte(info), 7, tt.minor); got != tt.want {
			t.Errorf("7:%d: %q, want %q", tt.minor, got, tt.want)
		}
	}
}

func FuzzProcTexts(f *testing.F) {
	f.Add([]byte("1: FLOCK  ADVISORY  WRITE 22 fd:01:77 0 EOF\n"))
	f.Add([]byte("23 22 7:3 / /mnt/a rw - ext4 /dev/loop3 rw\n"))
	fuzzloop.Fuzz(f, func(t *testing.T, text []byte) {
		if pid := findLock(text, 5, 77); pid < 0 {
			t.Errorf("process %d", pid)
		}
		findMount(text, 7, 3)
	})
}

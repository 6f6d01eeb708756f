// SPDX-License-Identifier: Apache-2.0

package logsink

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// note formats the note about lost lines in these tests.
func note(lines uint64, cause error) []byte { return fmt.Appendf(nil, "lost %d: %v\n", lines, cause) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// pipe makes a pipe as a child inherits it: its writing end blocks.
func pipe(t *testing.T) (r *os.File, w int) {
	t.Helper()
	var p [2]int
	must(t, unix.Pipe2(p[:], unix.O_CLOEXEC))
	r = os.NewFile(uintptr(p[0]), "pipe")
	t.Cleanup(func() { _ = r.Close() })
	return r, p[1]
}

// line returns line i, 100 bytes.
func line(i int) []byte { return fmt.Appendf(nil, "%-99d\n", i) }

// TestFullPipe: no process reads. Writers go on, and lines beyond the buffer are counted.
// A late reader finds a note with the number of lost lines in their place.
func TestFullPipe(t *testing.T) {
	r, w := pipe(t)
	s := New(w, note)
	const lines = 20000 // 2 MB, of which a pipe holds 64 KiB and the buffer 256 KiB
	for i := range lines {
		if n, err := s.Write(line(i)); n != 100 || err != nil {
			t.Fatalf("line %d: %d, %v", i, n, err)
		}
	}
	if err := s.Sync(); !errors.Is(err, errFull) {
		t.Errorf("sync of a pipe that no process reads: %v", err)
	}
	lost := s.Lost()
	if lost < lines/2 || lost >= lines {
		t.Fatalf("%d of %d lines lost", lost, lines)
	}
	in := bufio.NewScanner(r)
	var read, told uint64
	last := -1
	for read+told < lines && in.Scan() {
		text := strings.TrimSpace(in.Text())
		if rest, ok := strings.CutPrefix(text, "lost "); ok {
			n, cause, _ := strings.Cut(rest, ": ")
			missing, err := strconv.ParseUint(n, 10, 64)
			must(t, err)
			if cause != errFull.Error() {
				t.Errorf("told as cause: %q", cause)
			}
			told += missing
			last += int(missing)
			continue
		}
		if last++; text != strconv.Itoa(last) {
			t.Fatalf("read %q, want line %d", text, last)
		}
		read++
	}
	if told != lost {
		t.Errorf("read %d lines, told of %d lost; counted %d of %d", read, told, lost, lines)
	}
	_, _ = s.Write([]byte("again\n"))
	if !in.Scan() || in.Text() != "again" {
		t.Errorf("after that: %q", in.Text())
	}
	must(t, s.Sync())
	must(t, unix.Close(w))
}

// TestNonblockingPipe: the sink writes all lines to a pipe that another process made
// non-blocking.
func TestNonblockingPipe(t *testing.T) {
	r, w := pipe(t)
	must(t, unix.SetNonblock(w, true))
	s := New(w, note)
	const lines = 2000 // more than the pipe holds, and no more than the buffer
	for i := range lines {
		_, _ = s.Write(line(i))
	}
	in := bufio.NewScanner(r)
	for i := range lines {
		if !in.Scan() || strings.TrimSpace(in.Text()) != strconv.Itoa(i) {
			t.Fatalf("read %q, want line %d", in.Text(), i)
		}
	}
	must(t, s.Sync())
	if s.Lost() != 0 {
		t.Errorf("%d lines lost", s.Lost())
	}
	must(t, unix.Close(w))
}

// TestUnblock: after Unblock no writer waits, and other descriptors of the pipe still
// block.
func TestUnblock(t *testing.T) {
	r, w := pipe(t)
	other, err := unix.FcntlInt(uintptr(w), unix.F_DUPFD_CLOEXEC, 0)
	must(t, err)
	Unblock(w)
	for err = nil; err == nil; {
		_, err = unix.Write(w, line(0))
	}
	if err != unix.EAGAIN {
		t.Errorf("a full pipe: %v", err)
	}
	if flags, err := unix.FcntlInt(uintptr(other), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK != 0 {
		t.Errorf("the flags of another descriptor of the pipe are %#x, %v", flags, err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	Unblock(pair[0])
	for err = nil; err == nil; {
		_, err = unix.Write(pair[0], line(0))
	}
	if err != unix.EAGAIN {
		t.Errorf("a full socket: %v", err)
	}
	must(t, errors.Join(r.Close(), unix.Close(w), unix.Close(other), unix.Close(pair[0]), unix.Close(pair[1])))
}

// TestReaderGone: the reader has closed the pipe. Lines are counted, nothing else happens.
func TestReaderGone(t *testing.T) {
	ignored := make(chan os.Signal, 1)
	signal.Notify(ignored, unix.SIGPIPE)
	defer signal.Stop(ignored)
	r, w := pipe(t)
	must(t, r.Close())
	s := New(w, note)
	for i := range 10 {
		_, _ = s.Write(line(i))
		must(t, s.Sync())
	}
	if s.Lost() != 10 {
		t.Errorf("%d lines lost", s.Lost())
	}
	must(t, unix.Close(w))
}

// TestTerminalHungUp: writes to a terminal that has hung up fail with EIO.
func TestTerminalHungUp(t *testing.T) {
	ptmx, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip(err)
	}
	n, err := unix.IoctlGetInt(int(ptmx.Fd()), unix.TIOCGPTN)
	must(t, err)
	must(t, unix.IoctlSetPointerInt(int(ptmx.Fd()), unix.TIOCSPTLCK, 0))
	tty, err := unix.Open(fmt.Sprintf("/dev/pts/%d", n), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skip(err)
	}
	s := New(tty, note)
	_, _ = s.Write([]byte("there\n"))
	must(t, s.Sync())
	must(t, ptmx.Close())
	_, _ = s.Write([]byte("gone\n"))
	must(t, s.Sync())
	if s.Lost() != 1 {
		t.Errorf("%d lines lost", s.Lost())
	}
	must(t, unix.Close(tty))
}

// TestFullDisk: a disk is full for a while. A note of the lost lines comes before the next
// line.
func TestFullDisk(t *testing.T) {
	full, err := unix.Open("/dev/full", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	must(t, err)
	path := filepath.Join(t.TempDir(), "log")
	disk, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	must(t, err)
	s := New(full, note)
	for i := range 3 {
		_, _ = s.Write(line(i))
		must(t, s.Sync())
	}
	must(t, unix.Dup3(disk, full, unix.O_CLOEXEC)) // now there is room
	_, _ = s.Write([]byte("room\n"))
	must(t, s.Sync())
	got, err := os.ReadFile(path)
	must(t, err)
	want := string(note(3, unix.ENOSPC)) + "room\n"
	if !bytes.Equal(got, []byte(want)) || s.Lost() != 3 {
		t.Errorf("the log is %q, want %q; %d lines lost", got, want, s.Lost())
	}
	must(t, errors.Join(unix.Close(full), unix.Close(disk)))
}

// TestTornLine: a disk fills up within a line. The note begins a new line.
func TestTornLine(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=4096"); err != nil {
		t.Skip(err)
	}
	defer func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) }()
	path := filepath.Join(dir, "log")
	disk, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_APPEND|unix.O_CLOEXEC, 0o600)
	must(t, err)
	s := New(disk, note)
	for i := range 42 { // 40 whole lines and 96 bytes fit
		_, _ = s.Write(line(i))
		must(t, s.Sync())
	}
	must(t, unix.Mount("none", dir, "tmpfs", unix.MS_REMOUNT, "size=8192"))
	_, _ = s.Write([]byte("room\n"))
	must(t, s.Sync())
	got, err := os.ReadFile(path)
	must(t, err)
	want := "\n" + string(note(2, unix.ENOSPC)) + "room\n"
	if !bytes.HasSuffix(got, []byte(want)) || s.Lost() != 2 {
		t.Errorf("the log ends in %q, want %q; %d lines lost", got[4000:], want, s.Lost())
	}
	must(t, unix.Close(disk))
}

// TestLastWords: the last lines before the exit wait for a bounded time.
func TestLastWords(t *testing.T) {
	r, w := pipe(t)
	Last(w, time.Minute, "netbackd: %v\n", unix.EIO)
	got, err := bufio.NewReader(r).ReadString('\n')
	must(t, err)
	if got != "netbackd: input/output error\n" {
		t.Errorf("read %q", got)
	}
	must(t, unix.SetNonblock(w, true))
	for {
		if _, err := unix.Write(w, line(0)); err != nil {
			break
		}
	}
	must(t, unix.SetNonblock(w, false))
	Last(w, time.Millisecond, "more")
}

// SPDX-License-Identifier: Apache-2.0

package evtchn

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/internal/xendev"
)

// fake is a kernel that writes down every call and answers as it was told. It stands
// below the Device, whose double is [xentest.Evtchn]: the tests here are of the system
// calls that the Device makes.
type fake struct {
	calls []string
	port  uint32  // what a bind gives
	errs  []error // of the next calls; nil when used up

	queue []Port // what read has to give
	limit int    // most ports of one write, 0: no limit
}

var _ kernel = (*fake)(nil)

func (f *fake) device() *Device { return &Device{kernel: f, fd: xendev.New(1 << 20)} }

func (f *fake) call(format string, args ...any) error {
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
	if len(f.errs) == 0 {
		return nil
	}
	err := f.errs[0]
	f.errs = f.errs[1:]
	return err
}

func (f *fake) ioctl(_ int, req uintptr, a arg) (uint32, error) {
	if err := f.call("ioctl %#08x %d %d", req, a.a, a.b); err != nil {
		return 0, err
	}
	return f.port, nil
}

func (f *fake) read(_ int, ports []Port) (int, error) {
	if err := f.call("read %d", len(ports)); err != nil {
		return 0, err
	}
	if len(f.queue) == 0 {
		return 0, unix.EAGAIN
	}
	n := copy(ports[:min(len(ports), maxPorts)], f.queue)
	f.queue = f.queue[n:]
	return n, nil
}

func (f *fake) write(_ int, ports []Port) (int, error) {
	if err := f.call("write %d from %d", len(ports), ports[0]); err != nil {
		return 0, err
	}
	if f.limit > 0 {
		return min(len(ports), f.limit), nil
	}
	return len(ports), nil
}

func (f *fake) close(int) error { return f.call("close") }

// numbered are ports 1 to n.
func numbered(n int) []Port {
	ports := make([]Port, n)
	for i := range ports {
		ports[i] = Port(i + 1)
	}
	return ports
}

func TestCalls(t *testing.T) {
	f := &fake{port: 27}
	d := f.device()
	if got, err := d.BindInterdomain(5, 8); got != 27 || err != nil {
		t.Errorf("BindInterdomain: %d, %v", got, err)
	}
	if got, err := d.BindUnbound(5); got != 27 || err != nil {
		t.Errorf("BindUnbound: %d, %v", got, err)
	}
	for _, err := range []error{d.Notify(27), d.Unbind(27), d.Restrict(5), d.Reset(), d.Unmask([]Port{27})} {
		if err != nil {
			t.Error(err)
		}
	}
	if d.FD() != 1<<20 {
		t.Errorf("FD() = %d", d.FD())
	}
	want := []string{
		"ioctl 0x00084501 5 8", "ioctl 0x00044502 5 0", "ioctl 0x00044504 27 0", "ioctl 0x00044503 27 0",
		"ioctl 0x00024506 5 0", "ioctl 0x00004505 0 0", "write 1 from 27",
	}
	if diff := cmp.Diff(want, f.calls); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
}

func TestErrorsSayWhatAndWhy(t *testing.T) {
	for _, c := range []struct {
		err  error // of the system call
		do   func(d *Device) error
		want string
	}{
		{unix.EINVAL, func(d *Device) error { _, err := d.BindInterdomain(5, 8); return err },
			"evtchn: bind: domid 5: port 8: invalid argument; the domain has no such port, or did not offer it to us, or it is in use already"},
		{unix.ESRCH, func(d *Device) error { _, err := d.BindUnbound(5); return err },
			"evtchn: offer: domid 5: no such process; there is no such domain"},
		{unix.EACCES, func(d *Device) error { _, err := d.BindUnbound(5); return err },
			"evtchn: offer: domid 5: permission denied; this device is restricted: it may only bind ports of the one domain"},
		{unix.ENOSPC, func(d *Device) error { _, err := d.BindInterdomain(5, 8); return err },
			"evtchn: bind: domid 5: port 8: no space left on device; this domain has no event channel left"},
		{unix.ENOTCONN, func(d *Device) error { return d.Notify(9) },
			"evtchn: notify: port 9: transport endpoint is not connected; the port is not bound through this device"},
		{unix.EINVAL, func(d *Device) error { return d.Unbind(9) },
			"evtchn: unbind: port 9: invalid argument; the port is not bound through this device"},
		{unix.EACCES, func(d *Device) error { return d.Restrict(5) },
			"evtchn: restrict: domid 5: permission denied; the device is restricted already"},
		{unix.EINVAL, func(d *Device) error { return d.Restrict(0) },
			"evtchn: restrict: domid 0: invalid argument; domain 0 and reserved ids cannot be named"},
		{unix.ENOSYS, func(d *Device) error { return d.Restrict(5) },
			"evtchn: restrict: domid 5: function not implemented; this kernel cannot restrict a device: run a newer one"},
		{unix.EIO, func(d *Device) error { return d.Reset() }, "evtchn: reset: input/output error"},
		{unix.EIO, func(d *Device) error { return d.Close() }, "evtchn: close: input/output error"},
		{unix.ENOMEM, func(d *Device) error { return d.Unmask([]Port{9}) },
			"evtchn: unmask: port 9: cannot allocate memory"},
		{unix.EFAULT, func(d *Device) error { _, err := d.Pending(make([]Port, 1)); return err },
			"evtchn: pending: bad address"},
	} {
		err := c.do((&fake{errs: []error{c.err}}).device())
		if err == nil || err.Error() != c.want {
			t.Errorf("got:  %v\nwant: %s", err, c.want)
		}
		var e *Error
		if !errors.Is(err, c.err) || !errors.As(err, &e) {
			t.Errorf("%v is not an Error of %v", err, c.err)
		}
	}
}

func TestPortZeroIsRefused(t *testing.T) {
	f := &fake{}
	d := f.device()
	_, bind := d.BindInterdomain(5, 0)
	for _, err := range []error{bind, d.Notify(0), d.Unbind(0), d.Unmask([]Port{1, 0, 2})} {
		if !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), noPort) {
			t.Errorf("%v, want EINVAL and why", err)
		}
	}
	if len(f.calls) != 0 {
		t.Errorf("calls: %v", f.calls)
	}
}

func TestPending(t *testing.T) {
	for _, c := range []struct {
		name  string
		f     fake
		buf   int
		want  int
		err   error
		calls []string
	}{
		{name: "none", buf: 4, calls: []string{"read 4"}},
		{name: "no room", f: fake{queue: numbered(2)}},
		{name: "fewer than room", f: fake{queue: numbered(2)}, buf: 4, want: 2, calls: []string{"read 4"}},
		{name: "as many as room", f: fake{queue: numbered(4)}, buf: 4, want: 4, calls: []string{"read 4"}},
		{name: "more than room", f: fake{queue: numbered(9)}, buf: 4, want: 4, calls: []string{"read 4"}},
		{name: "interrupted", f: fake{queue: numbered(1), errs: []error{unix.EINTR}}, buf: 4, want: 1,
			calls: []string{"read 4", "read 4"}},
		{name: "more than one read gives", f: fake{queue: numbered(maxPorts + 7)}, buf: 2 * maxPorts, want: maxPorts + 7,
			calls: []string{"read 1024", "read 1024"}},
		{name: "as many as one read gives", f: fake{queue: numbered(maxPorts)}, buf: 2 * maxPorts, want: maxPorts,
			calls: []string{"read 1024", "read 1024"}},
		{name: "overflow", f: fake{errs: []error{unix.EFBIG}}, buf: 4, err: ErrOverflow, calls: []string{"read 4"}},
		{name: "overflow after some", f: fake{queue: numbered(maxPorts), errs: []error{nil, unix.EFBIG}}, buf: 2 * maxPorts,
			want: maxPorts, calls: []string{"read 1024", "read 1024"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			want := numbered(c.want)
			buf := make([]Port, c.buf)
			n, err := c.f.device().Pending(buf)
			if !errors.Is(err, c.err) {
				t.Errorf("Pending: %v, want %v", err, c.err)
			}
			if diff := cmp.Diff(want, buf[:n]); diff != "" {
				t.Errorf("ports (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(c.calls, c.f.calls); diff != "" {
				t.Errorf("calls (-want +got):\n%s", diff)
			}
		})
	}
}

func TestUnmask(t *testing.T) {
	for _, c := range []struct {
		name  string
		f     fake
		ports int
		err   error
		calls []string
	}{
		{name: "none"},
		{name: "a batch in one write", ports: 64, calls: []string{"write 64 from 1"}},
		{name: "more than one write takes", ports: maxPorts + 1, calls: []string{"write 1024 from 1", "write 1 from 1025"}},
		{name: "short writes", f: fake{limit: 2}, ports: 5,
			calls: []string{"write 5 from 1", "write 3 from 3", "write 1 from 5"}},
		{name: "interrupted", f: fake{errs: []error{unix.EINTR}}, ports: 2, calls: []string{"write 2 from 1", "write 2 from 1"}},
		{name: "failing halfway", f: fake{limit: 2, errs: []error{nil, unix.ENOMEM}}, ports: 5, err: unix.ENOMEM,
			calls: []string{"write 5 from 1", "write 3 from 3"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := c.f.device().Unmask(numbered(c.ports)); !errors.Is(err, c.err) {
				t.Errorf("Unmask: %v, want %v", err, c.err)
			}
			if diff := cmp.Diff(c.calls, c.f.calls); diff != "" {
				t.Errorf("calls (-want +got):\n%s", diff)
			}
		})
	}
}

// TestUnmaskThatTakesNothing must not go on for ever.
func TestUnmaskThatTakesNothing(t *testing.T) {
	d := &Device{kernel: deaf{&fake{}}, fd: xendev.New(1 << 20)}
	if err := d.Unmask(numbered(1)); !errors.Is(err, unix.EIO) {
		t.Errorf("Unmask: %v, want EIO", err)
	}
}

// deaf takes no port.
type deaf struct{ *fake }

func (deaf) write(int, []Port) (int, error) { return 0, nil }

func TestClosed(t *testing.T) {
	f := &fake{}
	d := f.device()
	for range 2 {
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if d.FD() != -1 {
		t.Errorf("FD() = %d", d.FD())
	}
	_, bind := d.BindInterdomain(5, 8)
	_, offer := d.BindUnbound(5)
	_, pending := d.Pending(make([]Port, 1))
	for _, err := range []error{bind, offer, pending, d.Notify(1), d.Unbind(1), d.Restrict(5), d.Reset(), d.Unmask([]Port{1})} {
		if !errors.Is(err, ErrClosed) || !errors.Is(err, os.ErrClosed) {
			t.Errorf("%v, want ErrClosed", err)
		}
	}
	if diff := cmp.Diff([]string{"close"}, f.calls); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
}

// TestSystemCalls runs the real read and write, over a socket: the memory of
// the ports passes through it.
func TestSystemCalls(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[1])
	d := &Device{kernel: linux{}, fd: xendev.New(fds[0])}
	defer d.Close()
	buf := make([]Port, 8)
	if n, err := d.Pending(buf); n != 0 || err != nil {
		t.Errorf("Pending of nothing: %d, %v", n, err)
	}
	if err := d.Unmask([]Port{1, 0x01020304}); err != nil {
		t.Fatal(err)
	}
	raw := make([]byte, 64)
	n, err := unix.Read(fds[1], raw)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]byte{1, 0, 0, 0, 4, 3, 2, 1}, raw[:n]); diff != "" {
		t.Errorf("bytes (-want +got):\n%s", diff)
	}
	if _, err := unix.Write(fds[1], raw[:n]); err != nil {
		t.Fatal(err)
	}
	n, err = d.Pending(buf)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Port{1, 0x01020304}, buf[:n]); diff != "" {
		t.Errorf("ports (-want +got):\n%s", diff)
	}
	// A socket has no such ioctl, which is also an answer.
	if err := d.Notify(1); !errors.Is(err, unix.ENOTTY) {
		t.Errorf("Notify: %v, want ENOTTY", err)
	}
}

func TestNothingIsAllocatedPerEvent(t *testing.T) {
	d := &Device{kernel: ready{&fake{}}, fd: xendev.New(1 << 20)}
	buf := make([]Port, 16)
	if n := testing.AllocsPerRun(100, func() {
		n, err := d.Pending(buf)
		if err != nil || d.Unmask(buf[:n]) != nil || d.Notify(1) != nil {
			t.Fatal("failed")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// ready always has two events.
type ready struct{ *fake }

func (ready) ioctl(int, uintptr, arg) (uint32, error)    { return 0, nil }
func (ready) read(_ int, ports []Port) (int, error)      { return copy(ports, []Port{3, 4}), nil }
func (ready) write(_ int, ports []Port) (n int, _ error) { return len(ports), nil }

func TestOpenSaysWhatToDo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "evtchn")
	_, err := Open(path)
	if !errors.Is(err, unix.ENOENT) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open: %v, want ENOENT", err)
	}
	want := "evtchn: open: " + path + ": no such file or directory; " +
		"load the module (modprobe xen-evtchn); if that fails, this machine is not a Xen domain"
	if err.Error() != want {
		t.Errorf("Open: %v\nwant: %s", err, want)
	}
}

func TestOpenDoesNotBlock(t *testing.T) {
	d, err := Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	flags, err := unix.FcntlInt(uintptr(d.FD()), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Errorf("flags %#x, %v: want O_NONBLOCK", flags, err)
	}
}

// SPDX-License-Identifier: Apache-2.0

package nlsock

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/netns"
)

func TestMain(m *testing.M) {
	if code, done := netns.Enter(); done {
		os.Exit(code)
	}
	goleak.VerifyTestMain(m)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// sockets counts the descriptors of sockets.
func sockets(t *testing.T) (n int) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	for _, fd := range fds {
		if to, _ := os.Readlink("/proc/self/fd/" + fd.Name()); strings.HasPrefix(to, "socket:") {
			n++
		}
	}
	return n
}

// TestSocketsAreKept: requests one after the other use the same socket, many at a time get
// their own answers, and few sockets are left.
func TestSocketsAreKept(t *testing.T) {
	netns.Need(t)
	_, err := LinkByName("lo")
	must(t, err)
	before := sockets(t)
	for range 20 {
		l, err := LinkByName("lo")
		must(t, err)
		if _, err := LinkByIndex(l.Attrs().Index); err != nil {
			t.Error(err)
		}
		if _, err := LinkByName("none"); !errors.As(err, new(netlink.LinkNotFoundError)) {
			t.Errorf("an interface that does not exist: %v", err)
		}
	}
	if n := sockets(t); n != before {
		t.Errorf("%d sockets, before %d", n, before)
	}
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for range 50 {
				name, want := "lo", true
				if i%2 == 1 {
					name, want = fmt.Sprintf("none%d", i), false
				}
				l, err := LinkByName(name)
				if (err == nil) != want || want && l.Attrs().Name != name {
					t.Errorf("%s: %v, %v", name, l, err)
				}
			}
		})
	}
	wg.Wait()
	if n := sockets(t); n > before+maxIdle {
		t.Errorf("%d sockets are left, before %d", n, before)
	}
}

// TestErrorsEndTheSocket: a socket whose request did not end with a whole answer of the kernel
// is not used again.
func TestErrorsEndTheSocket(t *testing.T) {
	netns.Need(t)
	_, err := LinkByName("lo")
	must(t, err)
	before := sockets(t)
	for _, c := range []struct {
		err  error
		kept bool
	}{
		{unix.ENODEV, true}, {unix.EEXIST, true}, {nil, true},
		{unix.EAGAIN, false}, {unix.ENOBUFS, false}, {unix.EINTR, false}, {unix.ENOMEM, false},
		{netlink.ErrDumpInterrupted, false},
	} {
		if err := Do(func(*netlink.Handle) error { return c.err }); !errors.Is(err, c.err) {
			t.Errorf("%v became %v", c.err, err)
		}
		if n := sockets(t); (n == before) != c.kept {
			t.Errorf("after %v there are %d sockets, before %d", c.err, n, before)
		}
		_, err := LinkByName("lo")
		must(t, err)
	}
}

// TestLateAnswer: an answer that is left in a socket is not taken for that of the next request.
func TestLateAnswer(t *testing.T) {
	netns.Need(t)
	c, err := take(unix.NETLINK_ROUTE)
	must(t, err)
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.Seq = 1 << 30
	must(t, c.sockets[unix.NETLINK_ROUTE].Socket.Send(req))
	c.give(nil)
	if l, err := LinkByName("none"); !errors.As(err, new(netlink.LinkNotFoundError)) {
		t.Errorf("got %v, %v", l, err)
	}
	if l, err := LinkByName("lo"); err != nil || l.Attrs().Name != "lo" {
		t.Errorf("got %v, %v", l, err)
	}
}

// TestOtherNamespace: a thread in another network namespace asks that one, and keeps no socket
// of it.
func TestOtherNamespace(t *testing.T) {
	netns.Need(t)
	_, err := LinkByName("lo")
	must(t, err)
	before := sockets(t)
	ns, err := netns.New()
	must(t, err)
	defer func() { must(t, ns.Close()) }()
	must(t, ns.Do(func() error {
		_, err := netns.AddBridge("br7")
		if err == nil {
			_, err = LinkByName("br7")
		}
		return err
	}))
	if _, err := LinkByName("br7"); !errors.As(err, new(netlink.LinkNotFoundError)) {
		t.Errorf("the bridge of the other namespace is here: %v", err)
	}
	if n := sockets(t); n != before {
		t.Errorf("%d sockets, before %d", n, before)
	}
}

// TestSocketThatCannotBeBound: its descriptor is closed once, so a file that gets the number
// stays open.
func TestSocketThatCannotBeBound(t *testing.T) {
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends without capabilities
		hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		err := unix.Capset(&hdr, &none[0])
		if err == nil {
			// Only an administrator may hear of changes of IPsec.
			_, err = newSocket(unix.NETLINK_XFRM, 1)
		}
		failed <- err
	}()
	if err := <-failed; errors.Is(err, unix.EPROTONOSUPPORT) {
		t.Skip(err)
	} else if !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "bind") {
		t.Fatalf("the socket: %v, want that it cannot be bound", err)
	}
	var files []int
	for range 32 {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
		must(t, err)
		files = append(files, fd)
	}
	for range 3 {
		runtime.GC()
		unreachable := make(chan struct{}) // cleanups run in turn
		runtime.AddCleanup(new([64]byte), func(c chan struct{}) { close(c) }, unreachable)
		runtime.GC()
		<-unreachable
	}
	for _, fd := range files {
		if err := unix.Close(fd); err != nil {
			t.Errorf("file %d was closed: %v", fd, err)
		}
	}
}

// TestLinkEvents: changes of interfaces are told until the events are stopped.
func TestLinkEvents(t *testing.T) {
	netns.Need(t)
	events, stop, err := LinkEvents()
	must(t, err)
	_, err = netns.AddBridge("br8")
	must(t, err)
	select {
	case <-events:
	case <-time.After(10 * time.Second):
		t.Error("no event")
	}
	must(t, netns.Delete("br8"))
	stop()
	if _, open := <-events; open {
		t.Error("there are events after the end")
	}
}

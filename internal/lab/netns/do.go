// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// NS is a handle on a network namespace and keeps it alive. It may be used by
// many goroutines, until Close.
type NS struct{ handle netns.NsHandle }

// New creates an empty network namespace; its loopback device is down. The
// caller's own namespace does not change.
func New() (*NS, error) {
	ns := &NS{}
	err := onOwnThread(func() (err error) {
		ns.handle, err = netns.New()
		return explainClone(err)
	})
	if err != nil {
		return nil, err
	}
	return ns, nil
}

// OfPid returns the network namespace of a process.
func OfPid(pid int) (*NS, error) {
	h, err := netns.GetFromPid(pid)
	switch {
	case err == nil:
		return &NS{h}, nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("network of process %d: %w", pid, os.ErrProcessDone)
	default:
		return nil, fmt.Errorf("network of process %d: %w", pid, err)
	}
}

// Do runs fn in the network namespace of a process, as [NS.Do] does.
func Do(pid int, fn func() error) error {
	ns, err := OfPid(pid)
	if err != nil {
		return err
	}
	return errors.Join(ns.Do(fn), ns.Close())
}

// Do runs fn in the namespace and returns its error. What fn opens there -
// sockets, TAP queues - stays there when it is used elsewhere later.
//
// fn runs in a goroutine of its own, on a thread of its own that ends with it:
// goroutines started by fn are not in the namespace. The thread may be one that
// has done other work before, so a process which was started with Pdeathsig may
// die of Do, unless [Start] started it. A test must not call t.FailNow or t.Fatal
// in fn; Do reports it as an error.
func (ns *NS) Do(fn func() error) error {
	return onOwnThread(func() error {
		if err := netns.Set(ns.handle); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return fn()
	})
}

// Path names the namespace for as long as the handle is open, for tools that
// take one, as in `nsenter --net=PATH`. It is of use to this process and its
// children.
func (ns *NS) Path() string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(ns.handle))
}

// Close gives up the handle. The namespace lives on while something else keeps
// it.
func (ns *NS) Close() error { return ns.handle.Close() }

var errGoexit = errors.New("function ended its goroutine: runtime.Goexit or t.FailNow inside Do")

// onOwnThread runs fn on a thread that nothing else will ever run on. The
// thread is never unlocked, so the runtime ends it together with the goroutine
// and there is no way for a changed namespace to leak to other goroutines.
//
// It is never the main thread. That one cannot end: the runtime would park it in
// the namespace it was in last, and /proc would show that as the process's own.
func onOwnThread(fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// Held until the other one has a thread of its own, and it does
			// not lose what it was: nothing here changed it.
			defer runtime.UnlockOSThread()
			result <- onOwnThread(fn)
			return
		}
		err := errGoexit
		defer func() { result <- err }()
		err = fn()
	}()
	return <-result
}

// Sysctl sets a kernel parameter of the caller's network namespace, as in
// Sysctl("net/ipv6/conf/default/disable_ipv6", "1"). The name is the path below
// /proc/sys: interface names may contain dots.
func Sysctl(name, value string) error {
	f, err := os.OpenFile("/proc/sys/"+name, os.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// NoIPv6 ends IPv6 in the namespaces made by [Enter]; elsewhere it does nothing. It
// announces itself on every link that comes up, so a test that counts frames does
// without.
func NoIPv6() error {
	if Available() != nil {
		return nil
	}
	for _, name := range []string{"all", "default"} {
		err := Sysctl("net/ipv6/conf/"+name+"/disable_ipv6", "1")
		if err != nil && !errors.Is(err, os.ErrNotExist) { // a kernel without has none
			return err
		}
	}
	return nil
}

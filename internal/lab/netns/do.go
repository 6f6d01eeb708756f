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

// Do runs fn in the namespace and returns its error. Sockets and TAP queues that fn opens
// stay in the namespace when other goroutines use them later.
//
// fn runs in a goroutine and on a thread of its own, which end with it. Goroutines started
// by fn are not in the namespace. The thread may have started a process with Pdeathsig
// before, which then dies, unless [Start] started it. A test must not call t.FailNow or
// t.Fatal in fn; Do reports it as an error.
func (ns *NS) Do(fn func() error) error {
	return onOwnThread(func() error {
		if err := netns.Set(ns.handle); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return fn()
	})
}

// Path returns a path of the namespace for tools, as in `nsenter --net=PATH`. It is valid
// while the handle is open, in this process and its children.
func (ns *NS) Path() string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(ns.handle))
}

// Close closes the handle. The namespace exists as long as something else refers to it.
func (ns *NS) Close() error { return ns.handle.Close() }

var errGoexit = errors.New("function ended its goroutine: runtime.Goexit or t.FailNow inside Do")

// onOwnThread runs fn on a thread that runs nothing else afterwards. The thread is never
// unlocked, so the runtime ends it together with the goroutine, and no other goroutine
// runs in the changed namespace.
//
// It is never the main thread. The main thread cannot end: the runtime would park it in
// its last namespace, and /proc would show that as the process's own.
func onOwnThread(fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// Lock the main thread until the other goroutine has a thread of its
			// own. Its namespace is unchanged, so it may be unlocked.
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

// NoIPv6 disables IPv6 in the namespaces made by [Enter]; elsewhere it does nothing. IPv6
// sends frames on every link that comes up, which disturbs a test that counts frames.
func NoIPv6() error {
	if Available() != nil {
		return nil
	}
	for _, name := range []string{"all", "default"} {
		err := Sysctl("net/ipv6/conf/"+name+"/disable_ipv6", "1")
		if err != nil && !errors.Is(err, os.ErrNotExist) { // a kernel without IPv6 has no such file
			return err
		}
	}
	return nil
}

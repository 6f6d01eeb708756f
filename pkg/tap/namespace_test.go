// SPDX-License-Identifier: Apache-2.0

package tap

import (
	"errors"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/netns"
)

// otherNetwork makes a network namespace for a test.
func otherNetwork(t *testing.T) *netns.NS {
	t.Helper()
	ns, err := netns.New()
	must(t, err)
	t.Cleanup(func() { must(t, ns.Close()) })
	return ns
}

// move moves an interface of the calling thread's network to another.
func move(t *testing.T, name string, ns *netns.NS) {
	t.Helper()
	f, err := os.Open(ns.Path())
	must(t, err)
	defer func() { must(t, f.Close()) }()
	link, err := netlink.LinkByName(name)
	must(t, err)
	must(t, netlink.LinkSetNsFd(link, int(f.Fd())))
}

// moved makes a device with two queues, moves it, and puts decoys where it was: an
// interface of the same name, and one with its old interface index.
func moved(t *testing.T, cfg Config) (*Device, *netns.NS) {
	t.Helper()
	ns := otherNetwork(t)
	cfg.Queues, cfg.Persist = 2, true
	d := newTAP(t, cfg)
	must(t, d.AddAltName("second"))
	index := d.Index()
	// The index is taken there.
	must(t, ns.Do(func() error {
		return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "there", Index: index}})
	}))
	move(t, cfg.Name, ns)
	for _, decoy := range []netlink.LinkAttrs{{Name: cfg.Name}, {Name: "decoy", Index: index}} {
		must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: decoy}))
		t.Cleanup(func() { must(t, netns.Delete(decoy.Name)) })
	}
	return d, ns
}

// decoysAreAsTheyWere checks that nothing was done to the wrong interface.
func decoysAreAsTheyWere(t *testing.T, name string) {
	t.Helper()
	for _, n := range []string{name, "decoy"} {
		link, err := netlink.LinkByName(n)
		must(t, err)
		if a := link.Attrs(); a.MTU != 1500 || a.RawFlags&unix.IFF_UP != 0 || len(a.AltNames) > 0 {
			t.Errorf("%s was changed: %+v", n, a)
		}
	}
}

func TestADeviceIsFoundInAnotherNamespace(t *testing.T) {
	netns.NeedTUN(t)
	both(t, func(t *testing.T, cfg Config) {
		d, ns := moved(t, cfg)
		must(t, d.SetMTU(1234))
		must(t, d.SetUp())
		must(t, d.SetQueues(4))
		must(t, d.SetCarrier(false))
		must(t, d.SetCarrier(true))
		i := info(t, d)
		if i.Name != cfg.Name || i.MTU != 1234 || !i.Up || !i.Carrier || i.Namespace == "" || len(i.AltNames) != 1 {
			t.Errorf("it is %+v", i)
		}
		must(t, ns.Do(func() error { return netns.Rename(cfg.Name, "web") }))
		if i := info(t, d); i.Name != "web" {
			t.Errorf("renamed, it is %+v", i)
		}
		for i, q := range d.queues {
			if err := d.sameDevice(q.fd); err != nil {
				t.Errorf("queue %d: %v", i, err)
			}
		}
		decoysAreAsTheyWere(t, cfg.Name)
		must(t, d.Close())
		must(t, ns.Do(func() error {
			if exists("web") {
				return errors.New("the device is still there")
			}
			return nil
		}))
		decoysAreAsTheyWere(t, cfg.Name)
	})
}

// TestWithoutTheRightToEnter: netbackd's service has CAP_NET_ADMIN, and may not enter
// namespaces.
func TestWithoutTheRightToEnter(t *testing.T) {
	netns.NeedTUN(t)
	both(t, func(t *testing.T, cfg Config) {
		d, ns := moved(t, cfg)
		must(t, ns.Do(func() error { return netns.Up(cfg.Name) }))
		must(t, confined(func() error {
			must(t, d.SetCarrier(false))
			must(t, d.SetCarrier(true))
			must(t, d.SetQueues(1))
			must(t, d.SetQueues(2))
			if d.active != 2 {
				t.Errorf("%d active queues", d.active)
			}
			wantErr(t, d.SetQueues(3), ErrElsewhere, "move it back")
			wantErr(t, d.SetMTU(1234), ErrElsewhere)
			wantErr(t, d.AddAltName("third"), ErrElsewhere)
			i := info(t, d)
			if i.Name != cfg.Name || i.MTU != 1500 || !i.Up || !i.Carrier || i.Namespace == "" {
				t.Errorf("it is %+v", i)
			}
			link, id, err := findIn(t, "second")
			must(t, err)
			if link.Attrs().Name != cfg.Name {
				t.Errorf("by its second name: %+v", link.Attrs())
			}
			must(t, d.CloseKeep())
			if _, _, err := findIn(t, "second"); err != nil {
				t.Errorf("kept, but %v", err)
			}
			return DeleteIn(id, link)
		}))
		if _, _, err := findIn(t, "second"); !errors.As(err, new(netlink.LinkNotFoundError)) {
			t.Errorf("deleted, but %v", err)
		}
		decoysAreAsTheyWere(t, cfg.Name)
	})
}

// findIn looks for an interface in all namespaces that have a number.
func findIn(t *testing.T, name string) (link netlink.Link, id int, err error) {
	t.Helper()
	ids, err := Numbers()
	must(t, err)
	for _, id = range ids {
		if link, err = LinkIn(id, name); err == nil {
			return link, id, nil
		}
	}
	return nil, 0, netlink.LinkNotFoundError{}
}

// confined runs f on a thread with CAP_NET_ADMIN and no other capability.
func confined(f func() error) error {
	done := make(chan error, 1)
	go func() {
		err := errors.New("the test failed")
		defer func() { done <- err }()
		runtime.LockOSThread() // the thread ends with the goroutine
		hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		caps := [2]unix.CapUserData{{
			Effective: 1 << unix.CAP_NET_ADMIN, Permitted: 1 << unix.CAP_NET_ADMIN,
		}}
		if err = unix.Capset(&hdr, &caps[0]); err == nil {
			err = f()
		}
	}()
	return <-done
}

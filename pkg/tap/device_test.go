// SPDX-License-Identifier: Apache-2.0

package tap

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/netns"
)

func TestCreate(t *testing.T) {
	netns.NeedTUN(t)
	both(t, func(t *testing.T, cfg Config) {
		for _, persist := range []bool{false, true} {
			for _, queues := range []int{0, 1, 4} {
				t.Run(fmt.Sprintf("persist %v, %d queues", persist, queues), func(t *testing.T) {
					cfg.Persist, cfg.Queues = persist, queues
					d := newTAP(t, cfg)
					flags := netlink.TUNTAP_MULTI_QUEUE_DEFAULTS
					if cfg.VnetHdr {
						flags |= netlink.TUNTAP_VNET_HDR
					}
					tt := tuntap(t, cfg.Name)
					got := []any{tt.Index, tt.Flags, !tt.NonPersist, tt.Queues, tt.DisabledQueues, tt.RawFlags & unix.IFF_UP}
					want := []any{d.Index(), flags, persist, max(queues, 1), 0, uint32(0)}
					if diff := cmp.Diff(want, got); diff != "" {
						t.Errorf("index, flags, persist, queues, disabled, up (-want +got):\n%s", diff)
					}
					if d.Adopted() || d.VnetHdr() != cfg.VnetHdr || d.Queues() != max(queues, 1) || d.active != d.Queues() {
						t.Errorf("device says adopted %v, vnet header %v, %d queues, %d active",
							d.Adopted(), d.VnetHdr(), d.Queues(), d.active)
					}
					if name, err := d.Name(); err != nil || name != cfg.Name {
						t.Errorf("name is %q, %v", name, err)
					}
					for i := range d.Queues() {
						q := d.Queue(i)
						fl, err := unix.FcntlInt(uintptr(q.FD()), unix.F_GETFL, 0)
						if err != nil || fl&unix.O_NONBLOCK == 0 || q.Index() != i {
							t.Errorf("queue %d: index %d, flags %#x, %v", i, q.Index(), fl, err)
						}
						fl, err = unix.FcntlInt(uintptr(q.FD()), unix.F_GETFD, 0)
						if err != nil || fl&unix.FD_CLOEXEC == 0 {
							t.Errorf("queue %d: would be inherited, %v", i, err)
						}
					}
					must(t, d.Close())
					if exists(cfg.Name) {
						t.Error("device is still there after Close")
					}
				})
			}
		}
	})
}

func TestCreateRefusesNonsense(t *testing.T) {
	for name, tc := range map[string]struct {
		cfg  Config
		want error
	}{
		"no name":              {Config{}, errName},
		"name too long":        {Config{Name: "vif12345.1234567"}, errName},
		"name with a slash":    {Config{Name: "vif/1"}, errName},
		"name to be completed": {Config{Name: "vif%d"}, errName},
		"name with a blank":    {Config{Name: "vif 1"}, errName},
		"dot":                  {Config{Name: "."}, errName},
		"negative queues":      {Config{Name: "v", Queues: -1}, errQueues},
		"too many queues":      {Config{Name: "v", Queues: 257}, errQueues},
		"plain with offload":   {Config{Name: "v", Offload: Offload{Csum: true}}, errPlain},
		"segments unsummed":    {Config{Name: "v", VnetHdr: true, Offload: Offload{TSO6: true}}, errOffload},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Create(tc.cfg)
			wantErr(t, err, tc.want)
			var e *Error
			if !errors.As(err, &e) || e.Op != "create" || e.Name != tc.cfg.Name {
				t.Errorf("got %#v", err)
			}
		})
	}
}

func TestCarrier(t *testing.T) {
	netns.NeedTUN(t)
	both(t, func(t *testing.T, cfg Config) {
		cfg.NoCarrier = true
		d := newTAPUp(t, cfg)
		check := func(when string, want bool) {
			t.Helper()
			if got := info(t, d).Carrier; got != want {
				t.Errorf("%s: carrier is %v", when, got)
			}
		}
		check("created without", false)
		must(t, d.SetQueues(3))
		check("more queues", false)
		must(t, d.Use(1))
		must(t, d.Use(3))
		check("queues taken away and given back", false)
		must(t, d.SetCarrier(true))
		check("turned on", true)
		must(t, d.SetQueues(5))
		must(t, d.SetQueues(1))
		check("queues come and go", true)
		must(t, d.SetCarrier(false))
		check("turned off", false)
	})
}

func TestInfo(t *testing.T) {
	netns.NeedTUN(t)
	both(t, func(t *testing.T, cfg Config) {
		d := newTAP(t, cfg)
		bridge := newBridge(t, "br0")
		must(t, netns.Attach(cfg.Name, "br0"))
		must(t, d.SetMTU(9000))
		must(t, d.SetTxQueueLen(1234))
		got := info(t, d)
		if len(got.MAC) != 6 {
			t.Errorf("hardware address is %v", got.MAC)
		}
		got.MAC = nil
		want := Info{Name: cfg.Name, MTU: 9000, TxQueueLen: 1234, Master: bridge}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("down (-want +got):\n%s", diff)
		}
		must(t, netns.Up(cfg.Name))
		if got := info(t, d); !got.Up || !got.Carrier {
			t.Errorf("brought up, but %+v", got)
		}
		if err := d.SetMTU(1 << 20); err == nil {
			t.Error("took an MTU of 1 MiB")
		}
	})
}

func TestSetQueuesFollowsARename(t *testing.T) {
	netns.NeedTUN(t)
	both(t, func(t *testing.T, cfg Config) {
		d := newTAPUp(t, cfg)
		must(t, netns.Rename(cfg.Name, "web"))
		if name, err := d.Name(); err != nil || name != "web" {
			t.Errorf("name is %q, %v", name, err)
		}
		q0 := d.Queue(0)
		must(t, d.SetQueues(4))
		if d.Queue(0) != q0 {
			t.Error("queue 0 is another one after more were opened")
		}
		if tt := tuntap(t, "web"); tt.Queues != 4 || tt.Index != d.Index() {
			t.Errorf("web has %d queues and index %d", tt.Queues, tt.Index)
		}
		must(t, d.SetQueues(2))
		if tt := tuntap(t, "web"); tt.Queues != 2 {
			t.Errorf("web has %d queues", tt.Queues)
		}
		if exists(cfg.Name) {
			t.Error("a stray device has the old name")
		}
	})
}

func TestSetQueuesIsNotFooledByTheOldName(t *testing.T) {
	netns.NeedTUN(t)
	cfg := Config{Name: "vif1.0", VnetHdr: true, Queues: 2}
	d := newTAP(t, cfg)
	must(t, netns.Rename(cfg.Name, "web"))
	stranger := newTAP(t, cfg)
	must(t, d.SetQueues(3))
	if ours, theirs := tuntap(t, "web").Queues, tuntap(t, cfg.Name).Queues; ours != 3 || theirs != 2 {
		t.Errorf("%d queues, and %d of the stranger's", ours, theirs)
	}
	if stranger.Index() == d.Index() {
		t.Error("both have the same index")
	}
}

func TestSetQueuesWhileRenamed(t *testing.T) {
	netns.NeedTUN(t)
	both(t, func(t *testing.T, cfg Config) {
		d := newTAP(t, cfg)
		// Not for a moment may there be another device: scripts would see
		// it.
		updates, done := make(chan netlink.LinkUpdate, 1024), make(chan struct{})
		must(t, netlink.LinkSubscribe(updates, done))
		var watcher sync.WaitGroup
		watcher.Go(func() {
			for u := range updates {
				if u.Link.Type() == "tuntap" && int(u.Index) != d.Index() {
					t.Errorf("stray device %s", u.Attrs().Name)
				}
			}
		})
		defer watcher.Wait()
		defer close(done)

		names := []string{"a0", "b0", "c0"}
		stop := make(chan struct{})
		var renamer sync.WaitGroup
		renamer.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
					link := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Index: d.Index()}}
					if err := netlink.LinkSetName(link, names[i%len(names)]); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
		lost := 0
		for range 50 {
			for _, n := range []int{8, 1} {
				if err := d.SetQueues(n); errors.Is(err, errRenamed) {
					lost++ // no script renames that often by accident
				} else if err != nil {
					t.Fatal(err)
				}
			}
		}
		close(stop)
		renamer.Wait()
		if lost > 5 {
			t.Errorf("lost against the renamer %d times of 100", lost)
		}
		must(t, d.SetQueues(3))
		if i := info(t, d); tuntap(t, i.Name).Queues != 3 {
			t.Errorf("%d queues", tuntap(t, i.Name).Queues)
		}
	})
}

func TestSetQueuesLimits(t *testing.T) {
	netns.NeedTUN(t)
	both(t, func(t *testing.T, cfg Config) {
		d := newTAP(t, cfg)
		must(t, d.SetQueues(MaxQueues))
		if n := tuntap(t, cfg.Name).Queues; n != MaxQueues {
			t.Errorf("%d queues", n)
		}
		for _, n := range []int{-1, 0, MaxQueues + 1} {
			wantErr(t, d.SetQueues(n), errQueues)
		}
		must(t, d.SetQueues(1))
	})
}

// fewFiles runs f with room for some ten more descriptors.
func fewFiles(t *testing.T, f func()) {
	t.Helper()
	next, err := unix.Dup(0) // they are given out from below
	must(t, err)
	must(t, unix.Close(next))
	var limit unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	low := limit
	low.Cur = uint64(next) + 10
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &low))
	defer func() { must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)) }()
	f()
}

func TestCreateLeavesWhatThereWasWhenItFails(t *testing.T) {
	netns.NeedTUN(t)
	both(t, func(t *testing.T, cfg Config) {
		tooMany := cfg
		tooMany.Queues = 100
		for _, persist := range []bool{false, true} {
			tooMany.Persist = persist
			t.Run(fmt.Sprintf("nothing, persist %v", persist), func(t *testing.T) {
				before := openFDs(t)
				fewFiles(t, func() {
					_, err := Create(tooMany)
					wantErr(t, err, unix.EMFILE, "LimitNOFILE")
				})
				if exists(cfg.Name) {
					t.Error("half a device is left")
				}
				if after := openFDs(t); after != before {
					t.Errorf("%d descriptors, were %d", after, before)
				}
			})
			t.Run(fmt.Sprintf("a persistent device, persist %v", persist), func(t *testing.T) {
				d := newTAP(t, cfg)
				must(t, d.CloseKeep())
				fewFiles(t, func() {
					_, err := Create(tooMany)
					wantErr(t, err, unix.EMFILE)
				})
				if tt := tuntap(t, cfg.Name); tt.Index != d.Index() || tt.NonPersist || tt.Queues != 0 {
					t.Errorf("was index %d, is %+v", d.Index(), tt)
				}
				must(t, netns.Delete(cfg.Name))
			})
		}
	})
}

func TestSetQueuesLeavesWhatThereWasWhenItFails(t *testing.T) {
	netns.NeedTUN(t)
	both(t, func(t *testing.T, cfg Config) {
		cfg.Queues = 2
		d := newTAP(t, cfg)
		fewFiles(t, func() {
			wantErr(t, d.SetQueues(100), unix.EMFILE, "LimitNOFILE")
		})
		if tt := tuntap(t, cfg.Name); tt.Queues != 2 || d.Queues() != 2 || d.active != 2 {
			t.Errorf("%d queues, device says %d, %d active", tt.Queues, d.Queues(), d.active)
		}
		must(t, d.SetQueues(3))
	})
}

func TestUseDetaches(t *testing.T) {
	netns.NeedTUN(t)
	both(t, func(t *testing.T, cfg Config) {
		cfg.Queues = 4
		d := newTAP(t, cfg)
		check := func(attached, detached int) {
			t.Helper()
			tt := tuntap(t, cfg.Name)
			if tt.Queues != attached || tt.DisabledQueues != detached || d.active != attached {
				t.Errorf("%d attached, %d detached, device says %d attached; want %d and %d",
					tt.Queues, tt.DisabledQueues, d.active, attached, detached)
			}
		}
		fds := [...]int{d.Queue(0).FD(), d.Queue(1).FD(), d.Queue(2).FD(), d.Queue(3).FD()}
		check(4, 0)
		must(t, d.Use(2))
		check(2, 2)
		must(t, d.Use(3))
		check(3, 1)
		must(t, d.Use(1))
		check(1, 3)
		for i, fd := range fds {
			if d.Queue(i).FD() != fd {
				t.Errorf("queue %d has another descriptor", i)
			}
		}
		must(t, d.SetQueues(5)) // attaches all
		check(5, 0)
		must(t, d.Use(1))
		must(t, d.SetQueues(3)) // closes detached ones, attaches the rest
		check(3, 0)
		wantErr(t, d.Use(0), errQueues)
		must(t, d.Use(1))
		must(t, d.Close()) // with detached queues
		if exists(cfg.Name) {
			t.Error("device is still there")
		}
	})
}

func TestAdoptionAfterTheHolderWasKilled(t *testing.T) {
	netns.NeedTUN(t)
	both(t, func(t *testing.T, cfg Config) {
		kind := "plain"
		if cfg.VnetHdr {
			kind = "vnet"
		}
		_, kill := hold(t, cfg.Name, kind)
		bridge := newBridge(t, "br0")
		must(t, netns.Attach(cfg.Name, "br0"))
		must(t, netns.Up(cfg.Name))
		before := tuntap(t, cfg.Name)
		kill()

		cfg.Persist, cfg.Queues = true, 2
		d := newTAP(t, cfg)
		if !d.Adopted() || d.Index() != before.Index {
			t.Errorf("adopted %v, index %d, was %d", d.Adopted(), d.Index(), before.Index)
		}
		i := info(t, d)
		if i.Master != bridge || !i.Up || !i.Carrier {
			t.Errorf("bridge %d, %+v", bridge, i)
		}
		after := tuntap(t, cfg.Name)
		if after.Flags != before.Flags || after.Queues != 2 || after.NonPersist {
			t.Errorf("got %+v, was %+v", after, before)
		}
		if cfg.VnetHdr {
			n, err := unix.IoctlGetUint32(d.Queue(0).FD(), unix.TUNGETVNETHDRSZ)
			if err != nil || n != VnetHdrLen {
				t.Errorf("vnet header has %d bytes, %v", n, err)
			}
		}
		must(t, d.CloseKeep())
		d = newTAP(t, cfg)
		if !d.Adopted() || d.Index() != before.Index {
			t.Errorf("after CloseKeep: adopted %v, index %d, was %d", d.Adopted(), d.Index(), before.Index)
		}
		must(t, d.Close())
		if exists(cfg.Name) {
			t.Error("device is still there")
		}
	})
}

func TestADeviceInUseIsRefusedByNameOfTheHolder(t *testing.T) {
	netns.NeedTUN(t)
	both(t, func(t *testing.T, cfg Config) {
		kind := "plain"
		if cfg.VnetHdr {
			kind = "vnet"
		}
		pid, _ := hold(t, cfg.Name, kind)
		start := time.Now()
		_, err := Create(cfg)
		wantErr(t, err, ErrBusy, "held by "+itoa(pid)+" (", "stop it first", cfg.Name)
		if took := time.Since(start); took >= lingerWait {
			t.Errorf("took %v to see a live holder", took)
		}
		if tt := tuntap(t, cfg.Name); tt.Queues != 3 || tt.NonPersist {
			t.Errorf("the holder's device has changed: %+v", tt)
		}
	})
	t.Run("ourselves", func(t *testing.T) {
		cfg := Config{Name: "vif1.0"}
		newTAP(t, cfg)
		_, err := Create(cfg)
		wantErr(t, err, ErrBusy, "held by this process")
	})
}

// inFlight moves the queues of a persistent device to where no process has
// them, as an io_uring of a dying process does, and returns what lets go.
func inFlight(t *testing.T, cfg Config) (release func()) {
	t.Helper()
	d := newTAP(t, cfg)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	must(t, unix.Sendmsg(pair[0], []byte{0}, unix.UnixRights(d.Queue(0).FD()), nil, 0))
	must(t, d.CloseKeep())
	release = sync.OnceFunc(func() {
		if err := errors.Join(unix.Close(pair[0]), unix.Close(pair[1])); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(release)
	return release
}

func TestCreateWaitsForLingeringQueues(t *testing.T) {
	netns.NeedTUN(t)
	cfg := Config{Name: "vif1.0", VnetHdr: true, Persist: true}
	release := inFlight(t, cfg)
	timer := time.AfterFunc(10*lingerPoll, release)
	defer timer.Stop()
	if d := newTAP(t, cfg); !d.Adopted() {
		t.Error("did not adopt the device")
	}
}

func TestCreateDoesNotWaitForEver(t *testing.T) {
	netns.NeedTUN(t)
	cfg := Config{Name: "vif1.0", VnetHdr: true, Persist: true}
	release := inFlight(t, cfg)
	_, err := Create(cfg)
	wantErr(t, err, ErrBusy, "no process visible from here")
	release()
	must(t, netns.Delete(cfg.Name))
}

func TestANameThatIsTaken(t *testing.T) {
	netns.NeedTUN(t)
	const name = "vif1.0"
	// raw opens a persistent device with any flags, and lets go of it.
	raw := func(flags uint16) func(*testing.T) {
		return func(t *testing.T) {
			fd, err := openTUN()
			must(t, err)
			must(t, attachByName(fd, name, flags))
			must(t, setPersist(fd, true))
			must(t, unix.Close(fd))
		}
	}
	for what, tc := range map[string]struct {
		setup   func(*testing.T)
		vnetHdr bool
		says    []string
	}{
		"by a bridge":            {func(t *testing.T) { _, err := netns.AddBridge(name); must(t, err) }, true, []string{"a bridge, driver bridge", "unbind its driver"}},
		"by a bridge, plain":     {func(t *testing.T) { _, err := netns.AddBridge(name); must(t, err) }, false, []string{"a bridge"}},
		"by a TUN":               {raw(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_MULTI_QUEUE), true, []string{"a tun"}},
		"by a one-queue TAP":     {raw(unix.IFF_TAP | unix.IFF_NO_PI), true, []string{"flags tap|no_pi, not tap|multi_queue|no_pi|vnet_hdr", "ip link delete vif1.0"}},
		"by a TAP with pi":       {raw(unix.IFF_TAP | unix.IFF_MULTI_QUEUE), false, []string{"flags tap|multi_queue, not"}},
		"by a plain TAP":         {raw(flagsPlain), true, []string{"not tap|multi_queue|no_pi|vnet_hdr"}},
		"by a TAP with vnet hdr": {raw(flagsVnet), false, []string{"flags tap|multi_queue|no_pi|vnet_hdr, not tap|multi_queue|no_pi"}},
	} {
		t.Run(what, func(t *testing.T) {
			tc.setup(t)
			defer func() { must(t, netns.Delete(name)) }()
			before, err := netlink.LinkByName(name)
			must(t, err)
			_, err = Create(Config{Name: name, VnetHdr: tc.vnetHdr})
			wantErr(t, err, ErrMismatch, tc.says...)
			after, err := netlink.LinkByName(name)
			must(t, err)
			if b, ok := before.(*netlink.Tuntap); ok {
				a := after.(*netlink.Tuntap)
				if a.Flags != b.Flags || a.NonPersist != b.NonPersist || a.Index != b.Index {
					t.Errorf("was %+v, is %+v", b, a)
				}
			}
		})
	}
}

func TestADeletedDeviceIsGone(t *testing.T) {
	netns.NeedTUN(t)
	both(t, func(t *testing.T, cfg Config) {
		cfg.Persist, cfg.Queues = true, 2
		d := newTAPUp(t, cfg)
		must(t, netns.Delete(cfg.Name))
		_, err := d.Name()
		wantErr(t, err, ErrGone)
		_, err = d.Info()
		wantErr(t, err, ErrGone)
		wantErr(t, d.SetMTU(1400), ErrGone, "set mtu 1400 vif1.0")
		wantErr(t, d.SetTxQueueLen(10), ErrGone)
		wantErr(t, d.SetCarrier(true), ErrGone)
		wantErr(t, d.SetQueues(3), ErrGone)
		wantErr(t, d.Use(1), ErrGone)
		wantErr(t, d.SetOffload(Offload{}), ErrGone)
		buf := make([]byte, 100)
		if _, err := d.Queue(0).Read(buf); err != unix.EBADFD {
			t.Errorf("Read: %v, want EBADFD", err)
		}
		if _, err := d.Queue(1).Write(buf); err != unix.EBADFD {
			t.Errorf("Write: %v, want EBADFD", err)
		}
		p := []unix.PollFd{{Fd: int32(d.Queue(0).FD()), Events: unix.POLLIN}}
		if n, err := unix.Poll(p, 0); n != 1 || p[0].Revents&unix.POLLERR == 0 {
			t.Errorf("poll: %d, %#x, %v", n, p[0].Revents, err)
		}
		must(t, d.Close())

		if d := newTAP(t, cfg); d.Adopted() {
			t.Error("a new device says it was adopted")
		}
	})
}

func TestAClosedDevice(t *testing.T) {
	netns.NeedTUN(t)
	d := newTAP(t, Config{Name: "vif1.0", VnetHdr: true})
	q := d.Queue(0)
	must(t, d.Close())
	must(t, d.Close())
	must(t, d.CloseKeep())
	_, err := d.Name()
	wantErr(t, err, ErrClosed)
	_, err = d.Info()
	wantErr(t, err, ErrClosed)
	for _, err := range []error{
		d.SetMTU(1400), d.SetTxQueueLen(1), d.SetCarrier(true), d.SetQueues(1), d.Use(1),
		d.SetOffload(Offload{}), d.SetSteering(-1),
	} {
		wantErr(t, err, ErrClosed)
	}
	if _, err := q.Write(make([]byte, 60)); err != unix.EBADF || q.FD() != -1 {
		t.Errorf("Write: %v, fd %d", err, q.FD())
	}
}

// TestUse: who needs now more queues and now fewer opens each once.
func TestUse(t *testing.T) {
	netns.NeedTUN(t)
	both(t, func(t *testing.T, cfg Config) {
		d := newTAP(t, cfg)
		for i, tt := range []struct{ use, open, active int }{{4, 4, 4}, {1, 4, 1}, {3, 4, 3}, {5, 5, 5}, {2, 5, 2}} {
			var before []*Queue
			for q := range d.Queues() {
				before = append(before, d.Queue(q))
			}
			must(t, d.Use(tt.use))
			if d.Queues() != tt.open || d.active != tt.active {
				t.Errorf("step %d: %d queues, %d active", i, d.Queues(), d.active)
			}
			for q := range before {
				if d.Queue(q) != before[q] {
					t.Errorf("step %d: queue %d is another one", i, q)
				}
			}
		}
		wantErr(t, d.Use(0), errQueues)
		wantErr(t, d.Use(MaxQueues+1), errQueues)
	})
}

func TestAdoptOpenQueues(t *testing.T) {
	netns.NeedTUN(t)
	both(t, func(t *testing.T, cfg Config) {
		cfg.Queues, cfg.Persist = 3, true
		if cfg.VnetHdr {
			cfg.Offload = Offload{Csum: true}
		}
		d := newTAPUp(t, cfg)
		must(t, d.Use(2))
		var fds []int
		for i := range d.Queues() {
			fd, err := unix.Dup(d.Queue(i).FD())
			must(t, err)
			fds = append(fds, fd)
		}
		must(t, netns.Rename(cfg.Name, "web"))
		index := d.Index()

		t.Run("some", func(t *testing.T) {
			_, err := Adopt(cfg, fds[:2])
			wantErr(t, err, errQueues, "2 given, the device has 3")
		})
		t.Run("none", func(t *testing.T) {
			_, err := Adopt(cfg, nil)
			wantErr(t, err, errQueues)
		})
		t.Run("in another order", func(t *testing.T) {
			_, err := Adopt(cfg, []int{fds[2], fds[0], fds[1]})
			wantErr(t, err, errQueues, "not the first ones")
		})
		t.Run("of the wrong kind", func(t *testing.T) {
			wrong := cfg
			wrong.VnetHdr, wrong.Offload = !cfg.VnetHdr, Offload{}
			_, err := Adopt(wrong, fds)
			wantErr(t, err, ErrMismatch)
		})
		t.Run("not attached", func(t *testing.T) {
			fd, err := openTUN()
			must(t, err)
			defer func() { must(t, unix.Close(fd)) }()
			_, err = Adopt(cfg, []int{fd})
			wantErr(t, err, ErrGone)
		})
		t.Run("of two devices", func(t *testing.T) {
			other := newTAP(t, Config{Name: "other", VnetHdr: cfg.VnetHdr})
			_, err := Adopt(cfg, []int{fds[0], fds[1], other.Queue(0).FD()})
			wantErr(t, err, errRenamed)
		})

		must(t, d.CloseKeep())
		a, err := Adopt(cfg, fds)
		if err != nil {
			for _, fd := range fds {
				err = errors.Join(err, unix.Close(fd))
			}
			t.Fatal(err)
		}
		if a.Index() != index || !a.Adopted() || a.Queues() != 3 || a.active != 2 {
			t.Errorf("index %d, was %d; adopted %v, %d queues, %d active",
				a.Index(), index, a.Adopted(), a.Queues(), a.active)
		}
		if !info(t, a).Carrier {
			t.Error("the carrier went off")
		}
		must(t, a.SetQueues(4))
		must(t, a.Close())
		if exists("web") {
			t.Error("device is still there")
		}
	})
}

// TestSomebodyKeepsTheQueues: copies of the queues, kept for a successor, hinder
// neither the removal of a queue nor that of the device.
func TestSomebodyKeepsTheQueues(t *testing.T) {
	netns.NeedTUN(t)
	both(t, func(t *testing.T, cfg Config) {
		cfg.Queues, cfg.Persist = 3, true
		d := newTAPUp(t, cfg)
		var kept []int
		for i := range d.Queues() {
			fd, err := unix.Dup(d.Queue(i).FD())
			must(t, err)
			kept = append(kept, fd)
		}
		must(t, d.SetQueues(1))
		link, err := netlink.LinkByName(cfg.Name)
		must(t, err)
		if l := link.(*netlink.Tuntap); l.Queues != 1 || l.DisabledQueues != 2 {
			t.Errorf("the host has %d queues, and %d detached ones", l.Queues, l.DisabledQueues)
		}
		must(t, d.SetQueues(2))
		if d.Queue(1).Index() != 1 {
			t.Errorf("the second queue is number %d", d.Queue(1).Index())
		}
		index := d.Index()
		must(t, d.CloseKeep())
		if l, err := netlink.LinkByIndex(index); err != nil || l.(*netlink.Tuntap).Queues != 1 {
			t.Errorf("%+v, %v", l, err)
		}
		// The one in between was opened after the copies were made, and is gone.
		a, err := Adopt(cfg, slices.Clone(kept))
		must(t, err)
		if a.Index() != index || !info(t, a).Carrier {
			t.Errorf("index %d, was %d; carrier %t", a.Index(), index, info(t, a).Carrier)
		}
		for i := range kept { // a has the others
			kept[i], err = unix.Dup(a.Queue(i).FD())
			must(t, err)
			defer func() { must(t, unix.Close(kept[i])) }()
		}
		must(t, a.Close())
		if exists(cfg.Name) {
			t.Error("device is still there")
		}
	})
}

func TestADeviceStaysInItsNamespace(t *testing.T) {
	netns.NeedTUN(t)
	both(t, func(t *testing.T, cfg Config) {
		ns, err := netns.New()
		must(t, err)
		defer func() { must(t, ns.Close()) }()
		var d *Device
		must(t, ns.Do(func() (err error) {
			d, err = Create(cfg)
			return err
		}))
		defer func() { must(t, d.Close()) }()
		// One of the same index here must not be taken for it.
		var decoy *Device
		for i := 0; decoy == nil || decoy.Index() < d.Index(); i++ {
			decoy = newTAP(t, Config{Name: fmt.Sprintf("decoy%d", i)})
		}
		must(t, d.SetMTU(1234))
		if i := info(t, d); i.Name != cfg.Name || i.MTU != 1234 {
			t.Errorf("got %+v", i)
		}
		if i := info(t, decoy); i.MTU != 1500 {
			t.Errorf("decoy has MTU %d", i.MTU)
		}
	})
}

func TestNothingIsLeftOpen(t *testing.T) {
	netns.NeedTUN(t)
	both(t, func(t *testing.T, cfg Config) {
		cycle := func() {
			cfg.Queues = 2
			d, err := Create(cfg)
			must(t, err)
			must(t, d.SetQueues(4))
			must(t, d.Use(2))
			must(t, d.SetQueues(1))
			_, err = Create(cfg)
			wantErr(t, err, ErrBusy)
			must(t, d.Close())
			_, err = Create(Config{Name: "lo", VnetHdr: cfg.VnetHdr})
			wantErr(t, err, ErrMismatch)
		}
		cycle()
		before := openFDs(t)
		for range 100 {
			cycle()
		}
		if after := openFDs(t); after != before {
			t.Errorf("%d descriptors, were %d", after, before)
		}
	})
}

func TestManyDevicesAtOnce(t *testing.T) {
	netns.NeedTUN(t)
	before := openFDs(t)
	const n = 64
	var wg sync.WaitGroup
	devices := make([]*Device, n)
	for i := range n {
		wg.Go(func() {
			var err error
			devices[i], err = Create(Config{
				Name: fmt.Sprintf("many%d", i), VnetHdr: i%2 == 0, Queues: 2, Persist: i%3 == 0,
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	for _, d := range devices {
		wg.Go(func() {
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for i := range n {
		if name := fmt.Sprintf("many%d", i); exists(name) {
			t.Errorf("%s is still there", name)
		}
	}
	if after := openFDs(t); after != before {
		t.Errorf("%d descriptors, were %d", after, before)
	}
}

func TestErrorsOnTheWayToTheDriver(t *testing.T) {
	netns.NeedTUN(t)
	both(t, func(t *testing.T, cfg Config) {
		kind := "plain"
		if cfg.VnetHdr {
			kind = "vnet"
		}
		run := func(t *testing.T, helperName string, attr *syscall.SysProcAttr) string {
			t.Helper()
			cmd := helper(helperName, cfg.Name, kind)
			cmd.SysProcAttr = attr
			out, err := cmd.Output()
			if errors.Is(err, unix.EPERM) {
				t.Skip("not root: cannot become another user")
			}
			if err == nil {
				t.Fatal("it worked")
			}
			return string(out)
		}
		t.Run("not permitted to open", func(t *testing.T) {
			if fi, err := os.Stat(tunPath); err != nil || fi.Mode().Perm()&0o006 != 0 {
				t.Skip(tunPath, "is open to everybody")
			}
			got := run(t, "create", &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}})
			for _, want := range []string{"create vif1.0: open /dev/net/tun: permission denied", "run as root or `chmod 666 /dev/net/tun`"} {
				if !strings.Contains(got, want) {
					t.Errorf("got %q, want it to say %q", got, want)
				}
			}
		})
		t.Run("not permitted to create", func(t *testing.T) {
			got := run(t, "powerless", nil)
			if !strings.Contains(got, "operation not permitted") || !strings.Contains(got, "CAP_NET_ADMIN") {
				t.Errorf("got %q", got)
			}
			if strings.Contains(got, "left open") {
				t.Errorf("got %q", got)
			}
		})
	})
	for _, tc := range []struct {
		err  error
		want string
	}{
		{unix.ENOENT, "modprobe tun"},
		{unix.ENODEV, "modprobe tun"},
		{unix.EACCES, "chmod 666"},
		{unix.EMFILE, "LimitNOFILE"},
	} {
		if got := openHint(tc.err); !strings.Contains(got, tc.want) {
			t.Errorf("hint for %v is %q", tc.err, got)
		}
	}
}

// TestAdoptionKeepsTheOwner: a user who may open the device may still open it later.
func TestAdoptionKeepsTheOwner(t *testing.T) {
	netns.NeedTUN(t)
	both(t, func(t *testing.T, cfg Config) {
		cfg.Persist = true
		must(t, newTAP(t, cfg).CloseKeep())
		fd, err := openTUN()
		must(t, err)
		must(t, attachByName(fd, cfg.Name, cfg.flags()))
		must(t, unix.IoctlSetInt(fd, unix.TUNSETOWNER, 12))
		must(t, unix.IoctlSetInt(fd, unix.TUNSETGROUP, 34))
		must(t, unix.Close(fd))
		newTAP(t, cfg)
		if tt := tuntap(t, cfg.Name); tt.Owner != 12 || tt.Group != 34 {
			t.Errorf("owner %d, group %d", tt.Owner, tt.Group)
		}
	})
}

func TestSetPersist(t *testing.T) {
	netns.NeedTUN(t)
	both(t, func(t *testing.T, cfg Config) {
		d := newTAP(t, cfg)
		for _, on := range []bool{true, false} {
			must(t, d.SetPersist(on))
			if got := !tuntap(t, cfg.Name).NonPersist; got != on {
				t.Errorf("persistent %v, want %v", got, on)
			}
		}
		must(t, d.Close())
		wantErr(t, d.SetPersist(true), ErrClosed)
	})
}

// TestOwnerWithoutPrivileges: the owner of a device opens it, sets its offloads and uses its
// queues without CAP_NET_ADMIN.
func TestOwnerWithoutPrivileges(t *testing.T) {
	netns.NeedTUN(t)
	cfg := Config{Name: "vif1.0", VnetHdr: true, Persist: true}
	made := newTAP(t, cfg)
	must(t, made.CloseKeep())
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		done <- func() (err error) {
			h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var c [2]unix.CapUserData
			if err := unix.Capget(&h, &c[0]); err != nil {
				return err
			}
			for i := range c {
				c[i].Effective = 0
			}
			if err := unix.Capset(&h, &c[0]); err != nil {
				return err
			}
			cfg.Queues, cfg.NoCarrier = 4, true
			d, err := Create(cfg)
			if err != nil {
				return err
			}
			if !d.Adopted() || d.Queues() != 4 {
				t.Errorf("adopted %v, %d queues", d.Adopted(), d.Queues())
			}
			for _, o := range []Offload{{Csum: true, TSO4: true}, {}} {
				err = errors.Join(err, d.SetOffload(o))
			}
			if err := d.SetMTU(1400); !errors.Is(err, unix.EPERM) {
				t.Errorf("set an MTU without the right to: %v", err)
			}
			return errors.Join(err, d.Rest(), d.Use(2), d.SetCarrier(true), d.CloseKeep())
		}()
	}()
	must(t, <-done)
	must(t, netns.Delete(cfg.Name))
}

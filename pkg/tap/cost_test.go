// SPDX-License-Identifier: Apache-2.0

package tap

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/netns"
)

// qdiscs returns the kinds of all queueing disciplines of a device.
func qdiscs(t *testing.T, name string) (kinds []string) {
	t.Helper()
	link, err := netlink.LinkByName(name)
	must(t, err)
	all, err := netlink.QdiscList(link)
	must(t, err)
	for _, q := range all {
		kinds = append(kinds, q.Type())
	}
	return kinds
}

// TestOneQueueingDiscipline counts what makes a device costly: each of the kernel's
// disciplines is 12 KiB, if it is the smallest.
func TestOneQueueingDiscipline(t *testing.T) {
	netns.NeedTUN(t)
	for what, cfg := range map[string]Config{
		"any":    {Name: "vif1.0", VnetHdr: true, Persist: true, Queues: 2},
		"single": {Name: "vif1.0", VnetHdr: true, Persist: true, Single: true},
	} {
		t.Run(what, func(t *testing.T) {
			d := newTAP(t, cfg)
			must(t, d.SetNoQueue())
			for _, when := range []string{"up", "up again", "up, and others set the length"} {
				must(t, netns.Up(cfg.Name))
				if got := qdiscs(t, cfg.Name); len(got) > 1 || len(got) == 1 && got[0] != "noqueue" {
					t.Errorf("%s: %d disciplines, %v", when, len(got), got)
				}
				must(t, netns.Down(cfg.Name))
				must(t, d.SetTxQueueLen(200))
			}
			queues, err := os.ReadDir("/sys/class/net/" + cfg.Name + "/queues")
			must(t, err)
			if len(queues) != 2*d.Queues() {
				t.Errorf("%d queues open, sysfs shows %d in both directions", d.Queues(), len(queues))
			}
		})
	}
}

// TestTheHostsDisciplineStays: one that the host sets stays when queues come and go,
// with the carrier, and when the device is adopted.
func TestTheHostsDisciplineStays(t *testing.T) {
	netns.NeedTUN(t)
	cfg := Config{Name: "vif1.0", VnetHdr: true, Persist: true}
	d := newTAP(t, cfg)
	must(t, d.SetNoQueue())
	must(t, netns.Up(cfg.Name))
	must(t, netlink.QdiscReplace(&netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: d.Index(), Parent: netlink.HANDLE_ROOT, Handle: netlink.MakeHandle(7, 0)},
		Rate:       1 << 20, Limit: 1 << 20, Buffer: 1 << 20,
	}))
	check := func(when string) {
		t.Helper()
		got := qdiscs(t, cfg.Name)
		for _, kind := range got {
			if kind == "tbf" {
				return
			}
		}
		t.Errorf("%s: the host's tbf is gone: %v", when, got)
	}
	check("set")
	must(t, d.SetQueues(4))
	must(t, d.SetCarrier(false))
	must(t, d.SetQueues(1))
	must(t, d.SetCarrier(true))
	check("queues and carrier changed")
	must(t, d.CloseKeep())
	a, err := Create(cfg)
	must(t, err)
	defer func() { must(t, a.Close()) }()
	check("adopted")
	must(t, a.SetNoQueue())
	check("asked for noqueue")
}

// TestNoQueueAgain: Open vSwitch, for one, deletes the discipline of an interface that it
// is given, and the kernel makes its own again.
func TestNoQueueAgain(t *testing.T) {
	netns.NeedTUN(t)
	for what, single := range map[string]bool{"any": false, "single": true} {
		t.Run(what, func(t *testing.T) {
			d := newTAPUp(t, Config{Name: "vif1.0", VnetHdr: true, Single: single})
			if got := qdiscs(t, "vif1.0"); len(got) == 0 || got[0] == "noqueue" {
				t.Fatalf("the kernel made %v", got)
			}
			for range 2 {
				must(t, d.SetNoQueue())
				if got := qdiscs(t, "vif1.0"); len(got) != 1 || got[0] != "noqueue" {
					t.Errorf("%d disciplines, %v", len(got), got)
				}
			}
		})
	}
}

// usedKiB is the memory of the whole machine's kernel that devices are made of.
func usedKiB(t testing.TB) (sum int) {
	t.Helper()
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		switch f[0] {
		case "Slab:", "VmallocUsed:", "Percpu:":
			n, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			sum += n
		}
	}
	return sum
}

// BenchmarkKernelMemory measures what devices that are up cost the kernel, and compares them
// with devices as the kernel makes them, with its own queueing discipline and length of
// queues. How large these are depends on the kernel and on the number of processors. What
// else the machine does disturbs the figures, so there are several rounds.
func BenchmarkKernelMemory(b *testing.B) {
	const rounds = 5
	kinds := []struct {
		name         string
		single, bare bool
		devices      int
		most         float64 // of the kernel's own device
	}{{"kernels-own", false, true, 4, 1}, {"any", false, false, 40, 0.04}, {"single", true, false, 40, 0.01}}
	each := make([][]int, len(kinds))
	for range rounds {
		for i, k := range kinds {
			before := usedKiB(b)
			open := createUp(b, k.devices, k.single, k.bare)
			each[i] = append(each[i], (usedKiB(b)-before)/k.devices)
			for _, d := range open {
				if err := d.Close(); err != nil {
					b.Fatal(err)
				}
			}
		}
	}
	for i := range each {
		slices.Sort(each[i])
	}
	own := float64(each[0][rounds/2])
	for i, k := range kinds {
		got := float64(each[i][rounds/2])
		b.ReportMetric(got, k.name+"-KiB/device")
		if got > k.most*own {
			b.Errorf("%s: %.0f KiB a device, at most %.3f of the %.0f KiB of the kernel's own; the rounds: %v", k.name, got, k.most, own, each)
		}
	}
	b.ReportMetric(0, "ns/op")
}

// createUp makes devices, sets their queues as netbackd does unless bare is set, and sets
// them up.
func createUp(b *testing.B, devices int, single, bare bool) (open []*Device) {
	b.Helper()
	for i := range devices {
		name := fmt.Sprintf("vif%d.0", i)
		d, err := Create(Config{Name: name, VnetHdr: true, Single: single})
		if err == nil {
			open = append(open, d)
			if !bare {
				err = errors.Join(d.SetTxQueueLen(512), d.SetNoQueue())
			}
			err = errors.Join(err, netns.Up(name))
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	return open
}

func TestSetMAC(t *testing.T) {
	netns.NeedTUN(t)
	both(t, func(t *testing.T, cfg Config) {
		d := newTAP(t, cfg)
		want := net.HardwareAddr{0xfe, 0xff, 0xff, 0xff, 0xff, 0xff}
		must(t, d.SetMAC(want))
		if got := info(t, d).MAC; got.String() != want.String() {
			t.Errorf("the address is %v", got)
		}
	})
}

// TestADeviceWithOneQueue: it can be adopted as any other, whichever is asked for.
func TestADeviceWithOneQueue(t *testing.T) {
	netns.NeedTUN(t)
	both(t, func(t *testing.T, cfg Config) {
		one := cfg
		one.Single, one.Persist = true, true
		d, err := Create(one)
		must(t, err)
		if tt := tuntap(t, cfg.Name); tt.Flags&netlink.TUNTAP_MULTI_QUEUE != 0 || d.MaxQueues() != 1 {
			t.Errorf("flags %#x, at most %d queues", tt.Flags, d.MaxQueues())
		}
		wantErr(t, d.SetQueues(2), errQueues)
		must(t, d.SetQueues(1))
		_, err = Create(cfg)
		wantErr(t, err, ErrBusy, "this process")
		inUse := func(want bool) {
			t.Helper()
			if got, err := InUse(tuntap(t, cfg.Name)); err != nil || got != want {
				t.Errorf("in use: %v, %v", got, err)
			}
		}
		inUse(true)
		index := d.Index()
		must(t, d.CloseKeep())
		inUse(false)
		many := cfg
		many.Queues, many.Persist = 4, true
		d, err = Create(many)
		must(t, err)
		if d.Index() != index || d.Queues() != 1 || d.MaxQueues() != 1 {
			t.Errorf("index %d, was %d; %d queues, at most %d", d.Index(), index, d.Queues(), d.MaxQueues())
		}
		fd, err := unix.Dup(d.Queue(0).FD())
		must(t, err)
		must(t, d.CloseKeep())
		d, err = Adopt(many, []int{fd})
		must(t, err)
		if d.Index() != index || d.MaxQueues() != 1 {
			t.Errorf("handed over: index %d, was %d; at most %d queues", d.Index(), index, d.MaxQueues())
		}
		must(t, d.Close())

		// The other way round: one that a predecessor made for many queues.
		d, err = Create(many)
		must(t, err)
		must(t, d.CloseKeep())
		d, err = Create(one)
		must(t, err)
		if !d.Adopted() || d.MaxQueues() != MaxQueues {
			t.Errorf("adopted %v, at most %d queues", d.Adopted(), d.MaxQueues())
		}
		must(t, d.SetQueues(4))
		must(t, d.Close())
	})
}

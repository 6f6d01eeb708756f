// SPDX-License-Identifier: Apache-2.0

package steer

import (
	"errors"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
	"github.com/netbackd/netbackd/internal/lab/packettest"
	"github.com/netbackd/netbackd/pkg/toeplitz"
)

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

// newProgram loads a program and removes it after the test. It skips the test if the
// kernel refuses the program.
func newProgram(t testing.TB) *Program {
	t.Helper()
	p, err := New()
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS) {
		t.Skip(err)
	}
	must(t, err)
	t.Cleanup(func() { must(t, p.Close()) })
	return p
}

// run steers a frame of at least one byte in a test run of the kernel. The kernel removes
// an Ethernet header before it calls a program of this type, so run puts another one
// before the frame.
func run(t failer, p *Program, frame []byte) int {
	t.Helper()
	queue, err := p.prog.Run(&ebpf.RunOptions{Data: append(make([]byte, 14), frame...)})
	must(t, err)
	return int(queue)
}

func TestProgramInEachSituation(t *testing.T) {
	p := newProgram(t)
	for _, s := range situations(t) {
		t.Run(s.name, func(t *testing.T) {
			must(t, p.Set(s.config))
			if got := run(t, p, s.frame); got != s.want.Queue {
				t.Errorf("queue %d, want %d", got, s.want.Queue)
			}
		})
	}
}

func TestProgramIsItsTwin(t *testing.T) {
	p := newProgram(t)
	rapid.Check(t, func(t *rapid.T) {
		c := drawConfig(t, 1<<16)
		must(t, p.Set(c))
		for range 20 {
			frame := drawFrame(t)
			if got, want := run(t, p, frame), wanted(c, frame); got != want.Queue {
				t.Fatalf("%x: queue %d, want %+v", frame, got, want)
			}
		}
	})
}

// TestProgramOnCutFrames cuts frames of all kinds at every byte, so that each bounds check
// fails once.
func TestProgramOnCutFrames(t *testing.T) {
	p := newProgram(t)
	tcp, udp := &packettest.TCP{}, &packettest.UDP{}
	opt := packettest.Options(packettest.ProtoDest, 16)
	for _, f := range []packettest.Frame{
		{IPv4: &packettest.IPv4{}, TCP: tcp},
		{IPv4: &packettest.IPv4{MF: true}, TCP: tcp},
		{IPv4: &packettest.IPv4{}, UDP: udp},
		{IPv4: &packettest.IPv4{Options: make([]byte, 8)}, TCP: tcp},
		{IPv4: &packettest.IPv4{Options: make([]byte, 8)}, UDP: udp},
		{IPv6: &packettest.IPv6{}, TCP: tcp},
		{IPv6: &packettest.IPv6{}, UDP: udp},
		{IPv6: &packettest.IPv6{Ext: []packettest.Ext{opt, opt}}, TCP: tcp},
		{IPv6: &packettest.IPv6{Ext: []packettest.Ext{opt, opt}}, UDP: udp},
		{IPv6: &packettest.IPv6{Ext: []packettest.Ext{opt, packettest.Fragment(0, true, 1)}}, TCP: tcp},
	} {
		for tags := range maxTags + 2 {
			f.Tags = make([]packettest.Tag, tags)
			frame := f.Bytes()
			for _, types := range []toeplitz.Types{toeplitz.AllTypes, 5, 10} {
				c := &Config{Types: types, Hasher: hasher(t, rssKey), Mapping: toeplitz.NewMapping(1 << 16)}
				must(t, p.Set(c))
				for n := 1; n <= len(frame); n++ {
					if got, want := run(t, p, frame[:n]), wanted(c, frame[:n]); got != want.Queue {
						t.Errorf("types %04b, %x: queue %#x, want %+v", types, frame[:n], got, want)
					}
				}
			}
		}
	}
}

// TestEveryByteCounts sets each byte of the longest input to each value.
func TestEveryByteCounts(t *testing.T) {
	p := newProgram(t)
	c := &Config{Types: toeplitz.AllTypes, Hasher: hasher(t, rssKey), Mapping: toeplitz.NewMapping(1 << 16)}
	must(t, p.Set(c))
	for _, f := range []packettest.Frame{
		{IPv4: &packettest.IPv4{}, TCP: &packettest.TCP{}},
		{IPv6: &packettest.IPv6{}, TCP: &packettest.TCP{}},
	} {
		frame := f.Bytes()
		for at := 12; at < 14+44 && at < len(frame); at++ {
			was := frame[at]
			for v := range 256 {
				frame[at] = byte(v)
				if got, want := run(t, p, frame), wanted(c, frame); got != want.Queue {
					t.Fatalf("byte %d is %#x: queue %#x, want %+v", at, v, got, want)
				}
			}
			frame[at] = was
		}
	}
}

func TestANewProgramHasOneQueue(t *testing.T) {
	p := newProgram(t)
	frame := packettest.Frame{IPv4: &packettest.IPv4{}, TCP: &packettest.TCP{}}.Bytes()
	if got := run(t, p, frame); got != 0 {
		t.Errorf("queue %d", got)
	}
	if p.FD() < 0 {
		t.Errorf("fd %d", p.FD())
	}
}

func TestAClosedProgram(t *testing.T) {
	newProgram(t) // or skip
	p, err := New()
	must(t, err)
	must(t, p.Close())
	must(t, p.Close())
	if err := p.Set(new(Config)); !errors.Is(err, os.ErrClosed) || err.Error() != "steer: set: file already closed" {
		t.Errorf("got %v, want ErrClosed", err)
	}
}

func TestProgramsKeepNoDescriptors(t *testing.T) {
	p := newProgram(t)
	before := openFDs(t)
	for range 3 {
		must(t, p.Set(new(Config)))
		must(t, Probe())
	}
	if after := openFDs(t); after != before {
		t.Errorf("%d descriptors, were %d", after, before)
	}
}

func openFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(entries)
}

// withCapabilities runs f on a thread that has only these capabilities and then ends.
func withCapabilities(t *testing.T, f func() error, caps ...int) error {
	t.Helper()
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		for _, c := range caps {
			data[c/32].Effective |= 1 << (c % 32)
			data[c/32].Permitted |= 1 << (c % 32)
		}
		if err := unix.Capset(&hdr, &data[0]); err != nil {
			result <- err
			return
		}
		result <- f()
	}()
	return <-result
}

func TestCapabilities(t *testing.T) {
	newProgram(t) // or skip
	for _, c := range []int{unix.CAP_BPF, unix.CAP_SYS_ADMIN} {
		if err := withCapabilities(t, Probe, c); err != nil {
			t.Errorf("with capability %d alone: %v", c, err)
		}
	}
	err := withCapabilities(t, Probe, unix.CAP_NET_ADMIN)
	var e *Error
	if !errors.As(err, &e) || !errors.Is(err, unix.EPERM) || e.Op != "load" || !strings.Contains(err.Error(), "CAP_BPF is needed") {
		t.Errorf("without: %v", err)
	}
}

func TestHints(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
		may  bool
		want string
	}{
		{"no capability", unix.EPERM, false, "CAP_BPF is needed"},
		{"capability, but a sandbox", unix.EPERM, true, "seccomp"},
		{"kernel without bpf", unix.ENOSYS, true, "CONFIG_BPF_SYSCALL"},
		{"kernel without a feature", ebpf.ErrNotSupported, true, "CONFIG_BPF_SYSCALL"},
		{"verifier", &ebpf.VerifierError{Cause: unix.EINVAL}, true, "verifier"},
		{"something else", unix.ENOMEM, true, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := hint(tt.err, tt.may)
			if !strings.Contains(got, tt.want) || tt.want == "" && got != "" {
				t.Errorf("got %q", got)
			}
		})
	}
	if fail("load", nil) != nil {
		t.Error("success is an error")
	}
}

func FuzzProgram(f *testing.F) {
	p := newProgram(f)
	f.Add(packettest.Frame{IPv4: &packettest.IPv4{Options: make([]byte, 4)}, TCP: &packettest.TCP{}}.Bytes(), uint32(15))
	f.Add(packettest.Frame{IPv6: &packettest.IPv6{Ext: []packettest.Ext{packettest.Options(packettest.ProtoDest, 16)}}, TCP: &packettest.TCP{}}.Bytes(), uint32(15))
	f.Add(packettest.Frame{Tags: make([]packettest.Tag, 2), IPv4: &packettest.IPv4{MF: true}, UDP: &packettest.UDP{}}.Bytes(), uint32(1))
	set := map[toeplitz.Types]*Config{}
	for types := range toeplitz.AllTypes + 1 {
		set[types] = &Config{Types: types, Hasher: hasher(f, rssKey), Mapping: toeplitz.NewMapping(1 << 16)}
	}
	last := toeplitz.Types(0xffff)
	fuzzloop.Fuzz(f, func(t *testing.T, frame []byte, types uint32) {
		if len(frame) == 0 || len(frame) > 1514 {
			return // a test run takes no frame of this size
		}
		c := set[toeplitz.Types(types)&toeplitz.AllTypes]
		if c.Types != last {
			must(t, p.Set(c))
			last = c.Types
		}
		want := wanted(c, frame)
		if got := run(t, p, frame); got != want.Queue {
			t.Fatalf("queue %#x, want %+v", got, want)
		}
		if diff := cmp.Diff(want, c.Choose(frame)); diff != "" {
			t.Fatalf("twin (-want +got)\n%s", diff)
		}
	})
}

// BenchmarkProgram reports the time that the kernel measures in a test run, without the
// system call.
func BenchmarkProgram(b *testing.B) {
	p := newProgram(b)
	must(b, p.Set(&Config{Types: toeplitz.AllTypes, Hasher: hasher(b, rssKey), Mapping: mapping(b, 4, 0, 1, 2, 3)}))
	for name, frame := range benchFrames() {
		b.Run(name, func(b *testing.B) {
			_, took, err := p.prog.Benchmark(append(make([]byte, 14), frame...), max(b.N, 1000), b.ResetTimer)
			must(b, err)
			b.ReportMetric(float64(took.Nanoseconds()), "ns/op")
		})
	}
}

func BenchmarkSet(b *testing.B) {
	p := newProgram(b)
	c := &Config{Types: toeplitz.AllTypes, Hasher: hasher(b, rssKey), Mapping: mapping(b, 4, 0, 1, 2, 3)}
	for b.Loop() {
		must(b, p.Set(c))
	}
}

// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/ctrlserver"
	"github.com/netbackd/netbackd/internal/device"
	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
	"github.com/netbackd/netbackd/internal/offload"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

const frontDir = "/local/domain/7/device/vif/0"

// keyMap is a directory of keys. It is a reader.
type keyMap map[string]string

func (m keyMap) Read(_ context.Context, path string) (string, error) {
	v, ok := m[strings.TrimPrefix(path, frontDir+"/")]
	if !ok {
		return "", &xenstore.Error{Op: "READ", Path: path, Err: xenstore.ErrNotExist}
	}
	return v, nil
}

// with returns a copy of m with other keys: pairs of key and value; "-" removes the
// key.
func (m keyMap) with(pairs ...string) keyMap {
	m = maps.Clone(m)
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] == "-" {
			delete(m, pairs[i])
		} else {
			m[pairs[i]] = pairs[i+1]
		}
	}
	return m
}

var (
	oneQueue = keyMap{
		"request-rx-copy": "1", "feature-rx-notify": "1", "feature-sg": "1",
		"tx-ring-ref": "8", "rx-ring-ref": "9", "event-channel": "3",
	}
	twoQueues = keyMap{
		"request-rx-copy": "1", "multi-queue-num-queues": "2",
		"queue-0/tx-ring-ref": "8", "queue-0/rx-ring-ref": "9", "queue-0/event-channel-tx": "3", "queue-0/event-channel-rx": "4",
		"queue-1/tx-ring-ref": "10", "queue-1/rx-ring-ref": "11", "queue-1/event-channel-tx": "5", "queue-1/event-channel-rx": "6",
	}
)

// ctrlRing has the keys of a frontend with a control ring.
var ctrlRing = oneQueue.with("ctrl-ring-ref", "10", "event-channel-ctrl", "5")

const testMaxQueues = 8

func TestReadFrontend(t *testing.T) {
	csum := offload.Guest{CsumIPv4: true}
	one := features{rxCopy: true, rxNotify: true, sg: true, guest: csum}
	two := features{rxCopy: true, guest: csum}
	for _, tt := range []struct {
		name string
		keys keyMap
		want frontend
	}{
		{"one queue, one channel", oneQueue, frontend{features: one, queues: []queueKeys{{8, 9, 3, 3}}}},
		{"one queue, said so", oneQueue.with("multi-queue-num-queues", "1"), frontend{features: one, queues: []queueKeys{{8, 9, 3, 3}}}},
		{"one queue, two channels", oneQueue.with("event-channel", "-", "event-channel-tx", "3", "event-channel-rx", "4"), frontend{features: one, queues: []queueKeys{{8, 9, 3, 4}}}},
		{"two channels count before one", oneQueue.with("event-channel-tx", "5", "event-channel-rx", "6"), frontend{features: one, queues: []queueKeys{{8, 9, 5, 6}}}},
		{"half of two channels does not count", oneQueue.with("event-channel-tx", "5"), frontend{features: one, queues: []queueKeys{{8, 9, 3, 3}}}},
		{"two queues", twoQueues, frontend{features: two, queues: []queueKeys{{8, 9, 3, 4}, {10, 11, 5, 6}}}},
		{"with one queue the keys are flat", twoQueues.with("multi-queue-num-queues", "1", "tx-ring-ref", "1", "rx-ring-ref", "2", "event-channel", "7"),
			frontend{features: two, queues: []queueKeys{{1, 2, 7, 7}}}},
		{"all features", oneQueue.with("feature-gso-tcpv4", "1", "feature-gso-tcpv6", "1", "feature-ipv6-csum-offload", "1", "request-multicast-control", "1"),
			frontend{features: features{true, true, true, true, offload.Guest{CsumIPv4: true, CsumIPv6: true, GSOTCPv4: true, GSOTCPv6: true}}, queues: []queueKeys{{8, 9, 3, 3}}}},
		{"no checksums", oneQueue.with("feature-no-csum-offload", "1"), frontend{features: features{rxCopy: true, rxNotify: true, sg: true}, queues: []queueKeys{{8, 9, 3, 3}}}},
		{"GSO without scatter-gather is none", oneQueue.with("feature-sg", "0", "feature-gso-tcpv4", "1", "feature-gso-tcpv6", "1"),
			frontend{features: features{rxCopy: true, rxNotify: true, guest: csum}, queues: []queueKeys{{8, 9, 3, 3}}}},
		{"withdrawn keys left empty", oneQueue.with("feature-gso-tcpv4", "", "request-multicast-control", ""), frontend{features: one, queues: []queueKeys{{8, 9, 3, 3}}}},
		{"white space and NULs", oneQueue.with("tx-ring-ref", "8\x00", "rx-ring-ref", " 9\n", "feature-sg", "1\x00"), frontend{features: one, queues: []queueKeys{{8, 9, 3, 3}}}},
		{"a control ring", oneQueue.with("ctrl-ring-ref", "10", "event-channel-ctrl", "5"),
			frontend{features: one, queues: []queueKeys{{8, 9, 3, 3}}, ctrl: ctrlKeys{true, 10, 5}}},
		{"a control ring that was withdrawn", oneQueue.with("ctrl-ring-ref", "", "event-channel-ctrl", ""), frontend{features: one, queues: []queueKeys{{8, 9, 3, 3}}}},
		{"a channel for no control ring", oneQueue.with("event-channel-ctrl", "x"), frontend{features: one, queues: []queueKeys{{8, 9, 3, 3}}}},
		{"headroom", oneQueue.with("xdp-headroom", "256"), frontend{features: one, headroom: 256, queues: []queueKeys{{8, 9, 3, 3}}}},
		{"no headroom", oneQueue.with("xdp-headroom", "0"), frontend{features: one, queues: []queueKeys{{8, 9, 3, 3}}}},
		{"withdrawn headroom", oneQueue.with("xdp-headroom", ""), frontend{features: one, queues: []queueKeys{{8, 9, 3, 3}}}},
		{"too much headroom", oneQueue.with("xdp-headroom", "65535"), frontend{features: one, headroom: 0x7FFF, queues: []queueKeys{{8, 9, 3, 3}}}},
		{"largest numbers", oneQueue.with("tx-ring-ref", "4294967295", "event-channel", "131071"), frontend{features: one, queues: []queueKeys{{4294967295, 9, 131071, 131071}}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := readFrontend(t.Context(), tt.keys, frontDir, testMaxQueues, ctrlserver.Slot)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, *got, cmp.AllowUnexported(frontend{}, features{}, queueKeys{}, ctrlKeys{})); diff != "" {
				t.Errorf("unexpected frontend (-want +got):\n%s", diff)
			}
		})
	}
}

// TestBadKeys: an error names the key, the value and the values that are allowed.
func TestBadKeys(t *testing.T) {
	const gref, port = "a number from 0 to 4294967295", "a number from 1 to 131071"
	long := strings.Repeat("7", 2000)
	type badKey struct {
		keys   keyMap
		key    string
		values []string // "-": missing
		want   string
	}
	numbers := []string{"", "x", "-1", "+1", "1.0", "0x8", "8 9", "4294967296", "99999999999999999999", long, "8\x009", "\x1b[2J"}
	bads := []badKey{
		{oneQueue, "request-rx-copy", []string{"-", "0", ""}, "1: page flipping is not supported"},
		{oneQueue, "multi-queue-num-queues", append([]string{"0", "9"}, numbers...), "a number from 1 to 8"},
		{oneQueue, "tx-ring-ref", append([]string{"-"}, numbers...), gref},
		{oneQueue, "rx-ring-ref", append([]string{"-"}, numbers...), gref},
		{oneQueue, "event-channel", append([]string{"-", "0", "131072"}, numbers...), port},
		{ctrlRing, "ctrl-ring-ref", numbers[1:], gref},
		{ctrlRing, "event-channel-ctrl", append([]string{"-", "0", "131072"}, numbers...), port},
		{oneQueue, "xdp-headroom", append([]string{"65536"}, numbers[1:]...), "a number from 0 to 65535"},
		{twoQueues, "queue-0/tx-ring-ref", append([]string{"-"}, numbers...), gref},
		{twoQueues, "queue-1/rx-ring-ref", append([]string{"-"}, numbers...), gref},
		{twoQueues, "queue-1/event-channel-tx", append([]string{"0"}, numbers...), port},
		{twoQueues, "queue-1/event-channel-rx", append([]string{"0"}, numbers...), port},
	}
	for _, ft := range featureTable {
		if ft.read == "" {
			continue
		}
		bads = append(bads, badKey{oneQueue, ft.read, []string{"2", "yes", "-1", "01", "true", long}, "0 or 1"})
	}
	for _, b := range bads {
		for _, v := range b.values {
			name := fmt.Sprintf("%s=%.20q", b.key, v)
			_, err := readFrontend(t.Context(), b.keys.with(b.key, v), frontDir, testMaxQueues, ctrlserver.Slot)
			want := fmt.Sprintf("22 frontend key %q is %q, want %s", b.key, xenbus.Clip(v), b.want)
			if v == "-" {
				want = fmt.Sprintf("2 frontend key %q is missing, want %s", b.key, b.want)
			}
			if err == nil {
				t.Errorf("%s: no error, want %q", name, want)
				continue
			}
			if diff := cmp.Diff(want, device.ErrorText(err)); diff != "" {
				t.Errorf("%s: unexpected error node (-want +got):\n%s", name, diff)
			}
			var k *xenbus.KeyError
			if !errors.As(err, &k) {
				t.Errorf("%s: %T is no KeyError", name, err)
			}
		}
	}
}

// TestUnreadableKey: a guest can hide its nodes from a driver domain. A hidden node
// counts as missing.
func TestUnreadableKey(t *testing.T) {
	r := readerFunc(func(path string) (string, error) {
		if strings.HasSuffix(path, "/rx-ring-ref") {
			return "", &xenstore.Error{Op: "READ", Path: path, Err: unix.EACCES}
		}
		return oneQueue.Read(t.Context(), path)
	})
	_, err := readFrontend(t.Context(), r, frontDir, testMaxQueues, ctrlserver.Slot)
	if want := `2 frontend key "rx-ring-ref" is missing, want a number from 0 to 4294967295`; err == nil || device.ErrorText(err) != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

type readerFunc func(string) (string, error)

func (f readerFunc) Read(_ context.Context, path string) (string, error) { return f(path) }

func TestOffers(t *testing.T) {
	read := func(pub []node) map[string]string {
		m := map[string]string{}
		for _, p := range pub {
			if _, twice := m[p.key]; twice {
				t.Errorf("%s is published twice", p.key)
			}
			m[p.key] = p.value
		}
		return m
	}
	want := map[string]string{
		"feature-sg": "1", "feature-gso-tcpv4": "1", "feature-gso-tcpv6": "1",
		"feature-no-csum-offload": "0", "feature-ipv6-csum-offload": "1",
		"feature-rx-copy": "1", "feature-rx-flip": "0",
		"feature-multicast-control": "1", "feature-dynamic-multicast-control": "1",
		"feature-split-event-channels": "1", "multi-queue-max-queues": "4",
		"feature-ctrl-ring": "1", "feature-control-ring": "0", "feature-xdp-headroom": "1",
	}
	if diff := cmp.Diff(want, read(backendOffer{4, true, true, ctrlserver.Slot}.nodes())); diff != "" {
		t.Errorf("unexpected keys (-want +got):\n%s", diff)
	}
	for _, k := range []string{"feature-gso-tcpv4", "feature-gso-tcpv6", "feature-ipv6-csum-offload"} {
		want[k] = "0"
	}
	want["feature-no-csum-offload"] = "1"
	want["feature-split-event-channels"] = "0"
	want["feature-ctrl-ring"], want["feature-control-ring"] = "0", "1"
	if diff := cmp.Diff(want, read(backendOffer{4, false, false, ctrlserver.Stream}.nodes())); diff != "" {
		t.Errorf("unexpected keys without offload, with one channel (-want +got):\n%s", diff)
	}
}

// FuzzReadFrontend reads a directory that a guest has filled with lines of key=value.
func FuzzReadFrontend(f *testing.F) {
	for _, m := range []keyMap{
		oneQueue, twoQueues, ctrlRing, {},
		oneQueue.with("multi-queue-num-queues", "0"),
		oneQueue.with("multi-queue-num-queues", "8"),
		oneQueue.with("event-channel", "0"),
	} {
		var b strings.Builder
		for k, v := range m {
			b.WriteString(k + "=" + v + "\n")
		}
		f.Add(b.String(), b.String())
	}
	read := func(t *testing.T, dir string) *frontend {
		m := keyMap{}
		for line := range strings.SplitSeq(dir, "\n") {
			if k, v, ok := strings.Cut(line, "="); ok {
				m[k] = v
			}
		}
		reads := 0
		fr, err := readFrontend(t.Context(), readerFunc(func(path string) (string, error) {
			reads++
			return m.Read(t.Context(), path)
		}), frontDir, testMaxQueues, ctrlserver.Slot)
		if most := len(featureTable) + 4 + 5*testMaxQueues; reads > most {
			t.Errorf("%d reads, want at most %d", reads, most)
		}
		if (err == nil) == (fr == nil) {
			t.Fatalf("%v and %v", fr, err)
		}
		if err != nil {
			if text := device.ErrorText(err); len(text) > 512 || strings.ContainsAny(text, "\n\x00") {
				t.Errorf("error node would be %q", text)
			}
			return nil
		}
		if n := len(fr.queues); n < 1 || n > testMaxQueues {
			t.Errorf("%d queues", n)
		}
		for _, q := range fr.queues {
			if q.txPort == 0 || q.rxPort == 0 || q.txPort > maxPort || q.rxPort > maxPort {
				t.Errorf("ports of %+v", q)
			}
		}
		if !fr.features.rxCopy || (fr.features.guest.GSOTCPv4 || fr.features.guest.GSOTCPv6) && !fr.features.sg {
			t.Errorf("features %+v", fr.features)
		}
		return fr
	}
	fuzzloop.Fuzz(f, func(t *testing.T, one, two string) {
		a, b := read(t, one), read(t, two)
		if a.same(b) != b.same(a) || a.sameRings(b) != b.sameRings(a) {
			t.Errorf("same is not symmetric: %+v, %+v", a, b)
		}
		if a.same(b) && !a.sameRings(b) {
			t.Errorf("same without the same rings: %+v, %+v", a, b)
		}
		if a != nil && (!a.same(read(t, one)) || !a.same(a)) {
			t.Errorf("%+v is not the same as itself", a)
		}
	})
}

// TestControlRingThatWasNotOffered: keys that the frontend of another back end has left
// are ignored.
func TestControlRingThatWasNotOffered(t *testing.T) {
	f, err := readFrontend(t.Context(), ctrlRing.with("event-channel-ctrl", "nonsense"), frontDir, testMaxQueues, 0)
	if err != nil || f.ctrl.there {
		t.Errorf("%+v, %v", f, err)
	}
}

// SPDX-License-Identifier: Apache-2.0

package vbd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// keyMap is a directory of keys. It is a reader.
type keyMap map[string]string

func (m keyMap) Read(_ context.Context, path string) (string, error) {
	v, ok := m[strings.TrimPrefix(path, frontDir+"/")]
	if !ok {
		return "", &xenstore.Error{Op: "READ", Path: path, Err: xenstore.ErrNotExist}
	}
	return v, nil
}

// with returns a copy of m with other keys: pairs of key and value; "-" removes the key.
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
	oneQueue  = keyMap{"protocol": "x86_64-abi", "ring-ref": "8", "event-channel": "3", "feature-persistent": "1"}
	twoQueues = keyMap{
		"protocol": "x86_64-abi", "multi-queue-num-queues": "2", "ring-page-order": "1",
		"queue-0/ring-ref0": "8", "queue-0/ring-ref1": "9", "queue-0/event-channel": "3",
		"queue-1/ring-ref0": "10", "queue-1/ring-ref1": "11", "queue-1/event-channel": "4",
	}
	testOffer = offer{maxSegments: 256, maxQueues: 4, maxOrder: 2}
)

func TestReadFrontend(t *testing.T) {
	one := frontend{protocol: blkif.X8664, persistent: true, queues: []queueKeys{{[]xen.Gref{8}, 3}}}
	with := func(f frontend, change func(*frontend)) frontend { change(&f); return f }
	for _, tt := range []struct {
		name string
		keys keyMap
		want frontend
	}{
		{"one queue", oneQueue, one},
		{"one queue, said so", oneQueue.with("multi-queue-num-queues", "1"), one},
		{"order 0, said so", oneQueue.with("ring-page-order", "0"), one},
		{"order 0 and a number", oneQueue.with("ring-page-order", "0", "ring-ref", "-", "ring-ref0", "8"), one},
		{"of both, that with a number counts", oneQueue.with("ring-page-order", "0", "ring-ref", "7", "ring-ref0", "8"), one},
		{"numbers of the system before", oneQueue.with("ring-ref0", "7", "ring-ref1", "9"), one},
		{"a NUL behind the value", oneQueue.with("ring-ref", "8\x00"), one},
		{"not persistent", oneQueue.with("feature-persistent", "0"), with(one, func(f *frontend) { f.persistent = false })},
		{"nothing of persistence", oneQueue.with("feature-persistent", "-"), with(one, func(f *frontend) { f.persistent = false })},
		{"32 bits", oneQueue.with("protocol", "x86_32-abi"), with(one, func(f *frontend) { f.protocol = blkif.X8632 })},
		{"arm", oneQueue.with("protocol", "arm-abi"), with(one, func(f *frontend) { f.protocol = blkif.ARM })},
		{"two pages", oneQueue.with("ring-page-order", "1", "ring-ref0", "8", "ring-ref1", "8"),
			with(one, func(f *frontend) { f.order = 1; f.queues = []queueKeys{{[]xen.Gref{8, 8}, 3}} })},
		{"two queues", twoQueues, frontend{
			protocol: blkif.X8664, order: 1, queues: []queueKeys{{[]xen.Gref{8, 9}, 3}, {[]xen.Gref{10, 11}, 4}},
		}},
		{"the highest numbers", oneQueue.with("ring-ref", "4294967295", "event-channel", "131071"),
			with(one, func(f *frontend) { f.queues = []queueKeys{{[]xen.Gref{4294967295}, 131071}} })},
	} {
		got, err := readFrontend(t.Context(), tt.keys, frontDir, testOffer)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if diff := cmp.Diff(&tt.want, got, cmp.AllowUnexported(frontend{}, queueKeys{})); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", tt.name, diff)
		}
	}
	absent, err := blkif.ParseProtocol("", false)
	got, rerr := readFrontend(t.Context(), oneQueue.with("protocol", "-"), frontDir, testOffer)
	if err != nil || rerr != nil || got.protocol != absent {
		t.Errorf("without a protocol: %+v, %v, want %v", got, rerr, absent)
	}
}

func TestReadFrontendErrors(t *testing.T) {
	for _, tt := range []struct {
		key, value string
		errno      unix.Errno
	}{
		{"protocol", "x86_16-abi", unix.EINVAL},
		{"protocol", "X86_64-ABI", unix.EINVAL},
		{"feature-persistent", "yes", unix.EINVAL},
		{"ring-page-order", "3", unix.EINVAL},
		{"ring-page-order", "-1", unix.EINVAL},
		{"ring-page-order", "0x1", unix.EINVAL},
		{"multi-queue-num-queues", "0", unix.EINVAL},
		{"multi-queue-num-queues", "5", unix.EINVAL},
		{"multi-queue-num-queues", "18446744073709551616", unix.EINVAL},
		{"queue-0/ring-ref0", "-", unix.ENOENT},
		{"queue-1/ring-ref1", "-", unix.ENOENT},
		{"queue-1/ring-ref1", "4294967296", unix.EINVAL},
		{"queue-1/ring-ref1", "", unix.EINVAL},
		{"queue-0/event-channel", "0", unix.EINVAL},
		{"queue-0/event-channel", "131072", unix.EINVAL},
		{"queue-1/event-channel", "-", unix.ENOENT},
	} {
		_, err := readFrontend(t.Context(), twoQueues.with(tt.key, tt.value), frontDir, testOffer)
		var key *xenbus.KeyError
		if !errors.As(err, &key) || key.Key != tt.key || !errors.Is(err, tt.errno) {
			t.Errorf("%s = %q: %v", tt.key, tt.value, err)
		}
	}
}

// TestNothingReadAfterAnError: a frontend cannot make the daemon read more than it may.
func TestNothingReadAfterAnError(t *testing.T) {
	keys := &countingReader{keyMap: twoQueues.with("multi-queue-num-queues", "4294967295")}
	if _, err := readFrontend(t.Context(), keys, frontDir, testOffer); err == nil || keys.reads > 4 {
		t.Errorf("%v after %d reads", err, keys.reads)
	}
}

type countingReader struct {
	keyMap
	reads int
}

func (c *countingReader) Read(ctx context.Context, path string) (string, error) {
	c.reads++
	return c.keyMap.Read(ctx, path)
}

// TestBadKeys: a frontend with wrong keys is told so, and is served when they are right.
func TestBadKeys(t *testing.T) {
	for i, pairs := range [][2]string{
		{"ring-ref", "banana"}, {"event-channel", "77"}, {"ring-ref", "99999"}, {"protocol", "none"},
		{"ring-page-order", "9"}, {"multi-queue-num-queues", "99"},
	} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			w := newWorld(t)
			w.t = t
			w.attach("hotplug-status", "connected")
			w.publish(1, 0, pairs[0], pairs[1])
			w.frontState(xenbus.Initialised)
			got := w.settle()
			if !strings.HasPrefix(got, "init-wait open connect") || !strings.HasSuffix(got, "closing closed") {
				t.Errorf("steps %q", got)
			}
			w.wantHeld(nothing)
			if w.get(errorKey) == "-" || w.v.status().Error == "" {
				t.Error("no error")
			}
			w.wantSteps("") // it is not tried again unchanged
			w.frontState(xenbus.Closed)
			w.wantSteps("")
			w.frontState(xenbus.Initialising)
			w.wantSteps("init-wait")
			w.publish(1, 0)
			w.frontState(xenbus.Initialised)
			w.wantSteps("connect connected")
			w.wantError("-")
			w.works(0)
		})
	}
}

// TestForeignFrontendDir: the directory of another domain is not used.
func TestForeignFrontendDir(t *testing.T) {
	w := newWorld(t)
	w.attach("frontend", "/local/domain/8/device/vbd/51712")
	w.wantSteps("release closed release")
	w.wantError("a directory below /local/domain/7")
}

// TestUnexpectedState: a frontend in a state that a vbd's never has is closed.
func TestUnexpectedState(t *testing.T) {
	w := newWorld(t)
	w.up(1, 0)
	w.frontState(xenbus.Reconfiguring)
	w.wantSteps("unexpected disconnect closing closed")
	w.wantError("state")
	w.wantHeld(nothing)
}

// FuzzReadFrontend reads any keys: it ends with a frontend within its bounds or an error, after
// a bounded number of reads.
func FuzzReadFrontend(f *testing.F) {
	for _, m := range []keyMap{oneQueue, twoQueues, twoQueues.with("ring-page-order", "2"), oneQueue.with("multi-queue-num-queues", "4")} {
		text := ""
		for k, v := range m {
			text += k + "=" + v + "\n"
		}
		f.Add(text)
	}
	fuzzloop.Fuzz(f, func(t *testing.T, text string) {
		keys := &countingReader{keyMap: keyMap{}}
		for line := range strings.Lines(text) {
			k, v, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
			keys.keyMap[k] = v
		}
		got, err := readFrontend(t.Context(), keys, frontDir, testOffer)
		if most := 4 + testOffer.maxQueues*(1<<testOffer.maxOrder+2); keys.reads > most {
			t.Errorf("%d reads, want at most %d", keys.reads, most)
		}
		if err != nil {
			if got != nil || len(err.Error()) > 400 {
				t.Errorf("%+v, %v", got, err)
			}
			return
		}
		if n := len(got.queues); n < 1 || n > testOffer.maxQueues || got.order < 0 || got.order > testOffer.maxOrder {
			t.Errorf("%d queues of order %d", n, got.order)
		}
		for _, q := range got.queues {
			if len(q.refs) != 1<<got.order || q.port < 1 || q.port > maxPort {
				t.Errorf("queue %+v of order %d", q, got.order)
			}
		}
	})
}

// SPDX-License-Identifier: Apache-2.0

package ringscript

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/lab/netfront"
	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/internal/vif"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// Daemon asks netbackd about vifs. *control.Client is one.
type Daemon interface {
	Vifs(ctx context.Context) ([]vif.Status, error)
	Reset(ctx context.Context, name string) error
}

// UmpireConfig is the configuration of an Umpire for one vif.
type UmpireConfig struct {
	Domid xen.Domid
	Devid int
	Store netfront.Store // dom0's
	// Daemon serves the vif.
	Daemon Daemon
}

// Umpire runs on the host and answers a player's questions about the effects of its
// script. It belongs to one goroutine.
type Umpire struct {
	cfg  UmpireConfig
	id   xenbus.VifID
	sock *packetSocket

	drops, counters map[string]uint64 // values at the last question
}

// umpirePatience limits the time that an umpire waits for the expected answer. A player
// waits longer for it.
const umpirePatience = patience

// statusInterval is the pause between two questions to the daemon.
const statusInterval = 10 * time.Millisecond

// NewUmpire makes an umpire for a vif. It opens nothing yet.
func NewUmpire(cfg UmpireConfig) *Umpire {
	return &Umpire{cfg: cfg, id: xenbus.VifID{Domid: cfg.Domid, Devid: cfg.Devid}}
}

// Close closes the umpire's socket.
func (u *Umpire) Close() error {
	if u.sock == nil {
		return nil
	}
	c := u.sock
	u.sock = nil
	return c.close()
}

// answer answers one question.
func (u *Umpire) answer(ctx context.Context, question string) (string, error) {
	words, err := split(question)
	if err != nil || len(words) == 0 {
		return "", fmt.Errorf("no question: %.60q", question)
	}
	ctx, cancel := context.WithTimeout(ctx, umpirePatience)
	defer cancel()
	verb, words := words[0], words[1:]
	switch verb {
	case "begin":
		return "", u.begin(ctx)
	case "out":
		return u.out(ctx, words)
	case "inject":
		return "", u.inject(ctx, words)
	case "drops":
		return u.count(ctx, &u.drops, words, dropsOf)
	case "counters":
		return u.count(ctx, &u.counters, words, func(s *vif.Status) map[string]uint64 { return s.Counters })
	case "reset":
		return "", u.cfg.Daemon.Reset(ctx, u.id.String())
	case "in-force":
		return u.inForce(ctx)
	case "error":
		return u.fact(ctx, words, func(*vif.Status) (string, error) { return u.errorNode(ctx) })
	}
	if say := facts[verb]; say != nil {
		return u.fact(ctx, words, func(s *vif.Status) (string, error) { return say(s), nil })
	}
	return "", fmt.Errorf("no such question: %.60q", verb)
}

// facts maps each question about a vif to its answer.
var facts = map[string]func(*vif.Status) string{
	"quarantined": func(s *vif.Status) string { return orNo(s.Quarantine) },
	"carrier":     func(s *vif.Status) string { return choose(s.Carrier, "up", "down") },
	"stalled":     func(s *vif.Status) string { return choose(s.Stalled, "yes", "no") },
	"grants":      func(s *vif.Status) string { return strconv.Itoa(s.Grants) },
	"ports":       func(s *vif.Status) string { return strconv.Itoa(s.Ports) },
	"headroom":    func(s *vif.Status) string { return strconv.Itoa(s.Headroom) },
	"mcast":       func(s *vif.Status) string { return strings.Join(s.Mcast, " ") },
	"features":    func(s *vif.Status) string { return strings.Join(s.Features, " ") },
	"served":      served,
	"hashing":     hashing,
	"steered": func(s *vif.Status) string {
		return choose(s.Control != nil && strings.HasPrefix(s.Control.Steering, "hash"), "hash", "host")
	},
	"static": static,
	"held": func(s *vif.Status) string {
		for _, q := range s.Queues {
			if q.Held > 0 {
				return "yes"
			}
		}
		return "no"
	},
}

// served returns the protocol of the control ring, and the reason if it is out of use.
func served(s *vif.Status) string {
	c := s.Control
	switch {
	case c == nil:
		return "no"
	case c.Error != "":
		return strings.TrimSpace(c.Protocol + " out of use: " + c.Error)
	}
	return c.Protocol
}

// hashing returns algorithm, types, begin of the key and its length, and mapping of a
// guest with a control ring.
func hashing(s *vif.Status) string {
	c := s.Control
	if c == nil {
		return "no"
	}
	key := "-"
	if c.KeyBytes > 0 {
		key = fmt.Sprintf("%.8s/%d", c.Key, c.KeyBytes)
	}
	mapping := strings.ReplaceAll(strings.Trim(fmt.Sprint(c.Mapping), "[]"), " ", ",")
	return fmt.Sprintf("%s %s %s %s", c.Algorithm, orDash(strings.Join(c.Types, ",")), key, orDash(mapping))
}

// static returns the number of static grants of each queue.
func static(s *vif.Status) string {
	var n []string
	for _, q := range s.Queues {
		n = append(n, strconv.Itoa(q.Static))
	}
	return strings.Join(n, " ")
}

// inForce returns all settings that a guest can make over the control ring.
func (u *Umpire) inForce(ctx context.Context) (string, error) {
	s, err := u.status(ctx)
	if err != nil {
		return "", err
	}
	text := hashing(s) + " static " + static(s)
	if s.Control != nil {
		text += " key " + s.Control.Key
	}
	return text, nil
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func orNo(s string) string {
	if s == "" {
		return "no"
	}
	return s
}

func choose(b bool, yes, no string) string {
	if b {
		return yes
	}
	return no
}

// status asks the daemon.
func (u *Umpire) status(ctx context.Context) (*vif.Status, error) {
	all, err := u.cfg.Daemon.Vifs(ctx)
	if err != nil {
		return nil, err
	}
	for i := range all {
		if all[i].Name == u.id.String() {
			return &all[i], nil
		}
	}
	return nil, fmt.Errorf("netbackd has no %v", u.id)
}

// until asks the daemon until ok returns true. The end of ctx is no error: the caller
// answers with the last status, and the player reports the difference.
func (u *Umpire) until(ctx context.Context, ok func(*vif.Status) (bool, error)) error {
	err := poll(ctx, statusInterval, func() (bool, error) {
		s, err := u.status(ctx)
		if err != nil {
			return false, err
		}
		return ok(s)
	})
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// fact waits until the answer of say equals or contains the wanted text, and returns the
// answer.
func (u *Umpire) fact(ctx context.Context, words []string, say func(*vif.Status) (string, error)) (got string, err error) {
	want := ""
	if len(words) > 0 {
		want = words[0]
	}
	err = u.until(ctx, func(s *vif.Status) (bool, error) {
		got, err = say(s)
		return got == want || want != "" && want != "no" && len(want) > 3 && strings.Contains(got, want), err
	})
	return got, err
}

// errorNode returns the value of the vif's error node.
func (u *Umpire) errorNode(ctx context.Context) (string, error) {
	v, err := u.cfg.Store.Read(ctx, u.id.ErrorPath(xen.Dom0))
	if errors.Is(err, xenstore.ErrNotExist) {
		return "no", nil
	}
	return v, err
}

// dropsOf returns the counters of packets that were not delivered.
func dropsOf(s *vif.Status) map[string]uint64 {
	m := map[string]uint64{}
	for _, c := range dataplane.Counters {
		if n := s.Counters[c.Name]; c.Kind == dataplane.Drop && n > 0 {
			m[c.Name] = n
		}
	}
	return m
}

// count waits until the counters have increased by the wanted amounts since the last
// question, and returns the increases. It returns all drops, and the other counters that
// the question names.
func (u *Umpire) count(ctx context.Context, before *map[string]uint64, words []string, read func(*vif.Status) map[string]uint64) (string, error) {
	want := map[string]int64{}
	for _, w := range words {
		name, n, _ := strings.Cut(w, "=")
		v, err := strconv.ParseInt(n, 10, 64)
		if err != nil {
			return "", fmt.Errorf("%q is no count", w)
		}
		want[name] = v
	}
	got := map[string]int64{}
	var now map[string]uint64
	err := u.until(ctx, func(s *vif.Status) (bool, error) {
		now = read(s)
		clear(got)
		for name, n := range now {
			if d := int64(n - (*before)[name]); d != 0 {
				got[name] = d
			}
		}
		for name, n := range want {
			if got[name] < n {
				return false, nil
			}
		}
		return true, nil
	})
	if err != nil {
		return "", err
	}
	*before = maps.Clone(now)
	if before == &u.counters {
		for name := range got {
			if _, asked := want[name]; !asked {
				delete(got, name)
			}
		}
		for name := range want {
			got[name] += 0 // the answer has zeros, too
		}
	}
	return formatCounts(got), nil
}

// formatCounts returns NAME=N..., in the order of the names.
func formatCounts(m map[string]int64) string {
	var words []string
	for _, name := range slices.Sorted(maps.Keys(m)) {
		words = append(words, fmt.Sprintf("%s=%d", name, m[name]))
	}
	return strings.Join(words, " ")
}

// begin starts a new script: earlier events do not count.
func (u *Umpire) begin(ctx context.Context) error {
	var s *vif.Status
	if err := u.until(ctx, func(now *vif.Status) (bool, error) {
		s = now
		return s.Interface != "" && s.Up, nil
	}); err != nil {
		return err
	}
	if s.Interface == "" {
		return fmt.Errorf("%v has no interface", u.id)
	}
	if u.sock == nil {
		if err := alone(s.Interface); err != nil {
			return err
		}
		c, err := openPacketSocket(s.Interface)
		if err != nil {
			return err
		}
		u.sock = c
	}
	u.drops, u.counters = dropsOf(s), maps.Clone(s.Counters)
	_, err := u.sock.drain()
	return err
}

// alone makes sure that only the umpire sends over an interface: it takes it off its
// bridge, and keeps the kernel from sending packets of its own.
func alone(ifname string) error {
	l, err := netlink.LinkByName(ifname)
	if err == nil {
		err = netlink.LinkSetNoMaster(l)
	}
	if err != nil {
		return fmt.Errorf("take %s off its bridge: %w", ifname, err)
	}
	return netns.Sysctl("net/ipv6/conf/"+ifname+"/disable_ipv6", "1")
}

var errNoScript = errors.New("no script has begun")

// out waits until the wanted number of frames have come out, and returns all that have.
func (u *Umpire) out(ctx context.Context, words []string) (string, error) {
	if u.sock == nil || len(words) != 1 {
		return "", errNoScript
	}
	n, err := strconv.Atoi(words[0])
	if err != nil {
		return "", err
	}
	var got []string
	err = poll(ctx, pollInterval, func() (bool, error) {
		more, err := u.sock.drain()
		got = append(got, more...)
		return len(got) >= n, err
	})
	if err != nil && ctx.Err() == nil {
		return "", err
	}
	return repeats(got), nil
}

// inject sends a frame to the guest, once or several times.
func (u *Umpire) inject(ctx context.Context, words []string) error {
	if u.sock == nil || len(words) < 1 {
		return errNoScript
	}
	n, err := strconv.Atoi(words[0])
	if err != nil {
		return err
	}
	spec, err := readSpec(words[1:])
	if err != nil {
		return err
	}
	f := spec.make()
	for range n {
		if err := u.sock.send(ctx, f); err != nil {
			return err
		}
	}
	return nil
}

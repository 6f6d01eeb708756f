// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// statesPage names the page of the manual about the states.
const statesPage = "../../docs/states.md"

// statesTable is a table of that page: a vif's actions, by the row and by its own state.
type statesTable map[string]map[string][]string

// readStates reads the tables by name.
func readStates(t *testing.T) map[string]statesTable {
	t.Helper()
	page, err := os.ReadFile(statesPage)
	if err != nil {
		t.Fatal(err)
	}
	tables := map[string]statesTable{}
	var at statesTable
	var columns []string
	for line := range strings.Lines(string(page)) {
		if name, ok := strings.CutPrefix(line, "<!-- table "); ok {
			at, columns = statesTable{}, nil
			tables[strings.TrimSuffix(name, " -->\n")] = at
			continue
		}
		if at == nil || !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "| ---") {
			continue
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if columns == nil {
			columns = cells[1:]
			continue
		}
		row := map[string][]string{}
		for i, own := range columns {
			row[own[:1]] = strings.Fields(cells[1+i])
		}
		at[strings.Fields(cells[0])[0]] = row
	}
	return tables
}

// combination is one vif of the walk.
type combination struct {
	*rawFront
	own     xenbus.State // the vif's state; Reconfigured is Connected with an answer
	front   string       // the frontend's state node: its value, gone, or noDir
	hotplug string       // the hotplug-status node; gone: no node
	online  bool
	does    []string // the actions by the page
	began   time.Time
}

// noDir is the frontend's state without a directory.
const noDir = "\x00no directory"

func (c *combination) String() string {
	return fmt.Sprintf("%s: own %v, frontend %q, hotplug-status %q, online %t, does %q", c.name(), c.own, c.front, c.hotplug, c.online, c.does)
}

// ends returns the final state of the vif, and whether it has an error.
func (c *combination) ends() (state string, fails bool) {
	state = c.own.Value()
	for _, word := range c.does {
		switch _, err := strconv.Atoi(word); {
		case err == nil:
			state = word
		case word == "waits":
			state = "6"
		case word == "error":
			fails = true
		}
	}
	return state, fails
}

// fixed returns the nodes of the frontend's directory that the toolstack writes.
func (c *combination) fixed() map[string]string {
	return map[string]string{
		"backend": c.back(), "backend-id": "0", "handle": strconv.Itoa(c.devid), "mac": c.mac(), "state": "1",
	}
}

func (c *combination) mac() string { return fmt.Sprintf("00:16:3e:00:%02x:%02x", c.domid, c.devid) }

// table returns the page's table that the combination is in, row its row.
func (c *combination) table() string {
	switch {
	case !c.online:
		return "unwanted"
	case c.hotplug == "connected", c.hotplug == gone:
		return "wanted"
	}
	return "pending"
}

func (c *combination) row() string {
	if n, err := strconv.Atoi(c.front); err == nil && 1 <= n && n <= 8 {
		return c.front
	}
	if c.front == noDir {
		return "gone"
	}
	return "6" // an invalid state counts as Closed
}

// attach makes the vif as a toolstack does, or directly in the combination if the vif
// starts there.
func (c *combination) attach(tx *xenstore.Tx, rate int) error {
	back := map[string]string{
		"frontend": c.dir(), "frontend-id": strconv.Itoa(int(c.domid)), "online": "1", "state": "1",
		"script": "/etc/xen/scripts/vif-bridge", "mac": c.mac(), "bridge": bridge,
		"handle": strconv.Itoa(c.devid), "type": "vif", "hotplug-status": "connected",
	}
	err := errors.Join(put(c.w.ctx, tx, c.back(), back), put(c.w.ctx, tx, c.dir(), c.fixed()))
	if err == nil && c.own == xenbus.Initialising {
		err = errors.Join(c.arrangeBack(tx, rate), c.arrangeFront(tx, rate))
	}
	return err
}

// arrangeBack makes the toolstack's part of the combination, arrangeFront the guest's. The
// daemon has looked when it shows the rate.
func (c *combination) arrangeBack(tx *xenstore.Tx, rate int) error {
	online := "1"
	if !c.online {
		online = "0"
	}
	return put(c.w.ctx, tx, c.back(), map[string]string{"online": online, "hotplug-status": c.hotplug, "rate": rateKey(rate)})
}

func (c *combination) arrangeFront(tx *xenstore.Tx, rate int) error {
	if err := tx.Write(c.w.ctx, c.back()+"/rate", rateKey(rate)); err != nil {
		return err
	}
	if c.front == noDir {
		return tx.Remove(c.w.ctx, c.dir())
	}
	front := c.keys()
	front["state"] = c.front
	return put(c.w.ctx, tx, c.dir(), front)
}

func rateKey(rate int) string { return fmt.Sprintf("%d,1000", rate) }

// put writes nodes of a directory, or removes them.
func put(ctx context.Context, tx *xenstore.Tx, dir string, nodes map[string]string) error {
	for k, v := range nodes {
		var err error
		if v != gone {
			err = tx.Write(ctx, dir+"/"+k, v)
		} else if err = tx.Remove(ctx, dir+"/"+k); errors.Is(err, xenstore.ErrNotExist) {
			err = nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// walk has all combinations, each on a vif of its own.
type walk struct {
	*world
	all []*combination
}

// each calls f for every vif in transactions.
func (w *walk) each(f func(c *combination, tx *xenstore.Tx) error) {
	w.t.Helper()
	for _, c := range w.all {
		c.began = time.Now()
		w.must(w.Store().Transaction(w.ctx, func(tx *xenstore.Tx) error { return f(c, tx) }))
	}
}

// await waits until every vif is in the state that want returns; "" means any. It returns
// the time of the slowest vif.
func (w *walk) await(what string, want func(*combination) string) (longest time.Duration) {
	w.t.Helper()
	waiting := map[*combination]string{}
	for _, c := range w.all {
		if s := want(c); s != "" {
			waiting[c] = s
		}
	}
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for len(waiting) > 0 {
		late := time.Now().After(deadline)
		for c, s := range waiting {
			got := w.read(c.back() + "/state")
			switch {
			case got == s:
				longest = max(longest, time.Since(c.began))
				delete(waiting, c)
			case late:
				w.t.Errorf("%s: %v: shows %s, want %s; error node %q", what, c, got, s, w.read(c.errNode()))
			}
		}
		if late {
			w.t.FailNow()
		}
		<-tick.C
	}
	return longest
}

// toOwn brings every vif from InitWait, or from Connected, to its own state.
func (w *walk) toOwn() {
	w.t.Helper()
	w.each(func(c *combination, tx *xenstore.Tx) error {
		front := map[xenbus.State]xenbus.State{
			xenbus.InitWait: xenbus.Initialising, xenbus.Connected: xenbus.Connected, xenbus.Reconfigured: xenbus.Connected,
			xenbus.Closing: xenbus.Closing, xenbus.Closed: xenbus.Closed,
		}
		if c.own == xenbus.Initialising {
			return nil
		}
		return errors.Join(put(w.ctx, tx, c.dir(), c.keys()), tx.Write(w.ctx, c.dir()+"/state", front[c.own].Value()))
	})
	w.await("the way to its own state", func(c *combination) string {
		switch c.own {
		case xenbus.Initialising:
			return ""
		case xenbus.Reconfigured:
			return "4"
		}
		return c.own.Value()
	})
	w.each(func(c *combination, tx *xenstore.Tx) error {
		if c.own != xenbus.Reconfigured {
			return nil
		}
		return tx.Write(w.ctx, c.dir()+"/state", xenbus.Reconfiguring.Value())
	})
	w.await("the answer", func(c *combination) string {
		if c.own == xenbus.Reconfigured {
			return "8"
		}
		return ""
	})
}

// looked waits until the daemon has looked at every vif since it got this rate.
func (w *walk) looked(rate int) {
	w.t.Helper()
	w.waitEvery(200*time.Millisecond, "the daemon to have looked at all", func() bool {
		vifs, err := w.Control().Vifs(w.ctx)
		w.must(err)
		told := map[string]string{}
		for _, s := range vifs {
			told[s.Name] = s.Rate
		}
		return !slices.ContainsFunc(w.all, func(c *combination) bool {
			return c.own != xenbus.Initialising && !strings.HasPrefix(told[c.name()], strconv.Itoa(rate))
		})
	})
}

// arranged makes the combinations and checks that each vif does what the page says.
func (w *walk) arranged(rate int) {
	w.t.Helper()
	// One after the other: a vif that looks meanwhile may see the old state, and then
	// the new one.
	for i, arrange := range []func(*combination, *xenstore.Tx, int) error{(*combination).arrangeBack, (*combination).arrangeFront} {
		w.each(func(c *combination, tx *xenstore.Tx) error {
			if c.own == xenbus.Initialising {
				return nil
			}
			return arrange(c, tx, rate+i)
		})
		w.looked(rate + i)
	}
	w.await("in the end", func(c *combination) string { s, _ := c.ends(); return s })
	for _, c := range w.all {
		if _, fails := c.ends(); fails && w.read(c.errNode()) == absent {
			w.t.Errorf("%v: has no error to tell of", c)
		}
	}
}

// TestEveryStateHasAnAnswer goes through every state of a vif with every state of its
// frontend, of its hotplug script and of the toolstack's request. The final state is the
// one of docs/states.md, no action repeats without end, a good frontend may connect
// afterwards, and the vif can be detached.
func TestEveryStateHasAnAnswer(t *testing.T) {
	tables := readStates(t)
	w := &walk{world: newPlainWorld(t)}
	fronts := []string{noDir, gone, "0", "four", "1", "2", "3", "4", "5", "6", "7", "8"}
	for _, own := range []xenbus.State{xenbus.Initialising, xenbus.InitWait, xenbus.Connected, xenbus.Reconfigured, xenbus.Closing, xenbus.Closed} {
		for _, hotplug := range []string{"connected", gone, "", "error"} {
			domid := w.domain()
			guest := w.join(domid, 0)
			for devid := range 2 * len(fronts) {
				f := *guest
				f.devid = devid
				f.newRings(1)
				c := &combination{rawFront: &f, own: own, front: fronts[devid/2], hotplug: hotplug, online: devid%2 == 0}
				if !c.online && hotplug != "connected" && hotplug != "" {
					continue // the script does not matter for an unwanted device
				}
				c.does = tables[c.table()][c.row()][own.Value()]
				if len(c.does) == 0 {
					t.Fatalf("the page has no %v", c)
				}
				w.all = append(w.all, c)
			}
		}
	}
	const rate = 100001
	began := time.Now()
	lap := func(what string) {
		t.Logf("%s of %d vifs: %v", what, len(w.all), time.Since(began).Round(time.Millisecond))
		began = time.Now()
	}
	w.each(func(c *combination, tx *xenstore.Tx) error { return c.attach(tx, rate) })
	w.await("a new device", func(c *combination) string {
		if c.own == xenbus.Initialising {
			return ""
		}
		return "2"
	})
	w.toOwn()
	lap("the way to their own states")
	w.arranged(rate)
	lap("the answers")

	// Nothing changes, so no vif sends a request to xenstored.
	before := w.calls()
	time.Sleep(time.Second)
	if n := w.calls() - before; n > len(w.all)/10 {
		t.Errorf("%d system calls of the embedded Xen, with %d vifs at rest", n, len(w.all))
	}
	began = time.Now()

	wanted := func(state string) func(*combination) string {
		return func(c *combination) string {
			if c.online {
				return state
			}
			s, _ := c.ends()
			return s
		}
	}
	w.each(func(c *combination, tx *xenstore.Tx) error {
		if !c.online {
			return nil
		}
		return put(w.ctx, tx, c.dir(), c.fixed())
	})
	w.await("a good frontend", wanted("2"))
	w.each(func(c *combination, tx *xenstore.Tx) error {
		if !c.online {
			return nil
		}
		front := c.keys()
		front["state"] = "4"
		return errors.Join(tx.Write(w.ctx, c.back()+"/hotplug-status", "connected"), put(w.ctx, tx, c.dir(), front))
	})
	w.await("a good frontend", wanted("4"))
	lap("good frontends")

	var again []*combination
	for _, c := range w.all {
		if c.online && c.own != xenbus.Initialising {
			again = append(again, c)
		}
	}
	some := &walk{world: w.world, all: again}
	some.toOwn()
	some.arranged(rate + 2)
	lap("the way back")
	for group := range slices.Chunk(w.all, 72) {
		some := &walk{world: w.world, all: group}
		some.each(func(c *combination, tx *xenstore.Tx) error {
			if err := tx.Write(w.ctx, c.back()+"/online", "0"); err != nil {
				return err
			}
			if s, err := tx.Read(w.ctx, c.back()+"/state"); err != nil || s == "6" {
				return err
			}
			return tx.Write(w.ctx, c.back()+"/state", "5")
		})
		if took := some.await("detached", func(*combination) string { return "6" }); took > closeLimit {
			t.Errorf("Closed after %v", took)
		}
	}
	lap("detaching")
	w.each(func(c *combination, tx *xenstore.Tx) error { return tx.Remove(w.ctx, c.back()) })
	w.waitEvery(200*time.Millisecond, "all to be forgotten", func() bool {
		vifs, err := w.Control().Vifs(w.ctx)
		w.must(err)
		return len(vifs) == 0
	})
	if links := linkNames(t); fmt.Sprint(links) != fmt.Sprintf("[lo %s]", bridge) {
		t.Errorf("interfaces %v are left", links)
	}
	lap("forgetting")
}

// calls counts the reads and writes that the embedded Xen has made: its xenstored makes
// some for each request.
func (w *walk) calls() int {
	w.t.Helper()
	path := fmt.Sprintf("/proc/%d/io", w.Xen().PID())
	return int(w.statusField(path, "syscr:") + w.statusField(path, "syscw:"))
}

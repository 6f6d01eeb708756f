// SPDX-License-Identifier: Apache-2.0

package vbd

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/netbackd/netbackd/pkg/xenbus"
)

var update = flag.Bool("update", false, "write the tables of docs/block-states.md")

// statesPage is the page with the results of plan.
const statesPage = "../../docs/block-states.md"

// TestStatesPage: the tables of the page have the present results of plan.
func TestStatesPage(t *testing.T) {
	page, err := os.ReadFile(statesPage)
	if err != nil {
		t.Fatal(err)
	}
	want := page
	for name, table := range map[string]string{
		"wanted":   statesTable(situation{online: true, plugged: true}),
		"pending":  statesTable(situation{online: true}),
		"unwanted": statesTable(situation{plugged: true}),
		"detached": statesTable(situation{plugged: true, detach: detachGrace}),
		"node":     nodesTable(),
	} {
		begin, end := fmt.Appendf(nil, "<!-- table %s -->\n", name), []byte("<!-- end -->\n")
		head, rest, ok := bytes.Cut(want, begin)
		_, tail, ok2 := bytes.Cut(rest, end)
		if !ok || !ok2 {
			t.Fatalf("%s has no table %s", statesPage, name)
		}
		want = slices.Concat(head, begin, []byte(table), end, tail)
	}
	if *update {
		if err := os.WriteFile(statesPage, want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if !bytes.Equal(page, want) {
		t.Errorf("%s is out of date; go test ./internal/vbd -run StatesPage -update writes it:\n%s", statesPage, want)
	}
}

// begin returns a vbd in a state as it usually is there.
func (s situation) begin(own, front xenbus.State) situation {
	s.own, s.node, s.front = own, own, front
	switch {
	case own == xenbus.Connected:
		s.conn, s.disk = connLive, diskOpen
	case own == xenbus.Closing && front == xenbus.Closing:
		s.conn, s.disk = connLive, diskOpen
	case s.plugged && own != xenbus.Initialising:
		s.disk = diskOpen
	}
	if s.detach != detachNone && own != xenbus.Closed {
		s.node = xenbus.Closing // as the toolstack writes it
	}
	return s
}

// statesTable lists the steps of a vbd for each state of its frontend.
func statesTable(base situation) string {
	var b strings.Builder
	header(&b, "frontend", allOwn)
	for _, front := range allFront {
		name := fmt.Sprintf("%d %v", int(front), front)
		if front == xenbus.Unknown {
			name = "gone"
		}
		fmt.Fprintf(&b, "| %s |", name)
		for _, own := range allOwn {
			fmt.Fprintf(&b, " %s |", does(base.begin(own, front)))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// nodesTable lists the steps of a vbd whose node shows another state, while its frontend
// waits in the state that matches the vbd's.
func nodesTable() string {
	own := []xenbus.State{xenbus.InitWait, xenbus.Connected, xenbus.Closing, xenbus.Closed}
	front := map[xenbus.State]xenbus.State{xenbus.InitWait: xenbus.Initialising, xenbus.Connected: xenbus.Connected, xenbus.Closing: xenbus.Closing, xenbus.Closed: xenbus.Closed}
	var b strings.Builder
	header(&b, "node shows", own)
	for _, node := range allFront {
		if node == xenbus.Initialising {
			continue // the toolstack has made the device again
		}
		name := fmt.Sprintf("%d", int(node))
		if node == xenbus.Unknown {
			name = "nonsense"
		}
		fmt.Fprintf(&b, "| %s |", name)
		for _, own := range own {
			s := situation{online: true, plugged: true}.begin(own, front[own])
			s.node = node
			fmt.Fprintf(&b, " %s |", does(s))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func header(b *strings.Builder, first string, states []xenbus.State) {
	fmt.Fprintf(b, "| %s |", first)
	for _, s := range states {
		fmt.Fprintf(b, " %d %v |", int(s), s)
	}
	b.WriteString("\n|" + strings.Repeat(" --- |", 1+len(states)) + "\n")
}

// does returns the visible steps of a vbd until it has nothing left to do. States are
// numbers.
func does(s situation) string {
	words := map[step]string{
		stepConnect: "connects", stepDisconnect: "disconnects", stepOpen: "opens",
		stepRelease: "frees", stepGrace: "waits", stepUnexpected: "error",
	}
	var said []string
	for range 10 {
		if s.detach == detachNone && !s.online && s.own == xenbus.Closing { // see checkDetach
			s.detach = detachGrace
		}
		steps := plan(s)
		for _, st := range steps {
			word := words[st]
			if state, ok := shownBy(st); ok {
				word = state.Value()
			}
			if n := len(said); (st == stepRelease || st == stepGrace) && n > 0 && slices.Contains(said, word) {
				continue // repeated without effect
			}
			said = append(said, word)
		}
		next, usual := s.after(steps)
		if !usual {
			next.block = blockRefused
		}
		if next == s {
			break
		}
		s = next
	}
	if len(said) == 0 {
		return "."
	}
	return strings.Join(said, " ")
}

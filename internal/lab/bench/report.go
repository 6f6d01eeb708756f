// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
)

// Goal is a figure with a bar that it has to meet.
type Goal struct {
	ID    string  `json:"id"`
	What  string  `json:"what"`
	Value float64 `json:"value"`
	Bar   float64 `json:"bar"`
	Least bool    `json:"at_least"` // the bar is a lower bound, else an upper
	Void  bool    `json:"void"`     // the measurement behind it is void
	Pass  bool    `json:"pass"`

	// Goal is the value to be reached, if the bar is less; 0: the bar.
	Goal float64 `json:"goal,omitempty"`

	// Low and High bound the value at 95 % confidence; both 0: it is exact, or not known.
	Low  float64 `json:"low,omitempty"`
	High float64 `json:"high,omitempty"`

	// Room is the time in nanoseconds per packet that the program would take if its own
	// work took none. 0: the goal has none.
	Room float64 `json:"room_ns,omitempty"`
}

// Report holds all measurements.
type Report struct {
	Host    string   `json:"host"`
	Commit  string   `json:"commit,omitempty"` // of the measured code
	Method  []string `json:"method"`           // how the figures were obtained, for the reader
	Results []Result `json:"results"`
	Goals   []Goal   `json:"goals"`
	Seconds float64  `json:"seconds"`
}

// AtLeast adds a goal with a lower bound.
func (r *Report) AtLeast(id, what string, value, bar float64, void bool) {
	r.Goals = append(r.Goals, Goal{ID: id, What: what, Value: value, Bar: bar, Least: true, Void: void, Pass: value >= bar})
}

// maxSpread is the widest confidence interval, relative to the value, of a share. A goal
// with a wider one is void.
const maxSpread = 0.02

// Share adds a goal with a lower bound: the share of its room that the program reaches. room
// is the time of that room. The goal is missed if the whole confidence interval is below the
// bar.
func (r *Report) Share(id, what string, share Bounded, bar, room float64) {
	r.Goals = append(r.Goals, Goal{
		ID: id, What: what, Value: share.Value, Bar: bar, Least: true, Void: share.Spread() > maxSpread,
		Pass: share.High >= bar, Low: share.Low, High: share.High, Room: room,
	})
}

// Aim sets what the last goal is to reach in the end, if its bar is less.
func (r *Report) Aim(goal float64) {
	if g := &r.Goals[len(r.Goals)-1]; g.Bar != goal {
		g.Goal = goal
	}
}

// AtMost adds a goal with an upper bound.
func (r *Report) AtMost(id, what string, value, bar float64, void bool) {
	r.Goals = append(r.Goals, Goal{ID: id, What: what, Value: value, Bar: bar, Void: void, Pass: value <= bar})
}

// Missed returns the number of goals that were not met.
func (r *Report) Missed() (n int) {
	for _, g := range r.Goals {
		if !g.Pass {
			n++
		}
	}
	return n
}

// Print writes the report as tables.
func (r *Report) Print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, r.Host)
	if r.Commit != "" {
		fmt.Fprintln(t, r.Commit)
	}
	for _, m := range r.Method {
		fmt.Fprintln(t, m)
	}
	for i := range r.Results {
		res := &r.Results[i]
		void := ""
		if res.Void {
			void = fmt.Sprintf("  VOID: spread %.0f %%", 100*res.Spread)
		}
		fmt.Fprintf(t, "\n%s (%d rounds, try %d)%s\n", res.Name, res.Rounds, res.Tries, void)
		fmt.Fprintln(t, "\tns/packet\tlow\thigh\tratio\tp")
		for _, f := range res.Figures {
			fmt.Fprintf(t, "  %s\t%.0f\t%.0f\t%.0f\t%.3f\t%.3f\n", f.Peer, f.Median, f.Low, f.High, f.Ratio, f.P)
		}
	}
	fmt.Fprintln(t, "\ngoals\tvalue\t95 %\tbar\troom\t")
	for _, g := range r.Goals {
		rel, verdict := "<=", "pass"
		if g.Least {
			rel = ">="
		}
		if !g.Pass {
			verdict = "MISSED"
		}
		if g.Void {
			verdict += " (void)"
		}
		if g.Goal != 0 && g.High < g.Goal {
			verdict += fmt.Sprintf(", below the goal of %.4g", g.Goal)
		}
		room, within := "", ""
		if g.Room != 0 {
			room = fmt.Sprintf("%.0f ns", g.Room)
		}
		if g.High != 0 {
			within = fmt.Sprintf("%.3f..%.3f", g.Low, g.High)
		}
		fmt.Fprintf(t, "  %s  %s\t%.4g\t%s\t%s %.4g\t%s\t%s\n", g.ID, g.What, g.Value, within, rel, g.Bar, room, verdict)
	}
	fmt.Fprintf(t, "\n%.0f s\n", r.Seconds)
	return t.Flush()
}

// WriteJSON writes the report to a file.
func (r *Report) WriteJSON(path string) error {
	b, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

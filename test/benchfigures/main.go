// SPDX-License-Identifier: Apache-2.0

// Benchfigures draws the report of test/bench as SVG, and writes its goals into a page.
//
//	benchfigures REPORT DIR
//
// REPORT is JSON, as "test/bench -json" writes it. DIR gets the plots, and in DIR/README.md the
// text between two marks becomes the table of the goals. The same report gives the same bytes.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/netbackd/netbackd/internal/lab/bench"
	"github.com/netbackd/netbackd/internal/lab/plot"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: benchfigures REPORT DIR")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "benchfigures:", err)
		os.Exit(1)
	}
}

func run(report, dir string) error {
	b, err := os.ReadFile(report)
	if err != nil {
		return err
	}
	r := &bench.Report{}
	if err := json.Unmarshal(b, r); err != nil {
		return fmt.Errorf("%s: %w", report, err)
	}
	for name, p := range drawings(r) {
		svg, err := p.SVG()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := plot.Write(filepath.Join(dir, name), svg); err != nil {
			return err
		}
	}
	return plot.Fill(filepath.Join(dir, "README.md"), begin, end, table(r))
}

// The marks around the table in a page.
const (
	begin = "<!-- goals of make bench -->\n"
	end   = "<!-- end of goals -->\n"
)

// table returns the goals as a table in Markdown.
func table(r *bench.Report) string {
	var b strings.Builder
	fmt.Fprintf(&b, "\nMeasured on: %s; netbackd %s.\n\n", r.Host, r.Commit)
	b.WriteString("| goal | | value | 95 % | bar | room | |\n|-|-|-|-|-|-|-|\n")
	for _, g := range r.Goals {
		rel, within, room, verdict := "at most", "", "", "met"
		if g.Least {
			rel = "at least"
		}
		if g.High != 0 {
			within = fmt.Sprintf("%.3f to %.3f", g.Low, g.High)
		}
		if g.Room != 0 {
			room = fmt.Sprintf("%.0f ns", g.Room)
		}
		if !g.Pass {
			verdict = "**missed**"
		}
		if g.Void {
			verdict += ", void"
		}
		if g.Goal != 0 && g.High < g.Goal {
			verdict += fmt.Sprintf("; below the goal of %.4g", g.Goal)
		}
		fmt.Fprintf(&b, "| %s | %s | %.4g | %s | %s %.4g | %s | %s |\n", g.ID, g.What, g.Value, within, rel, g.Bar, room, verdict)
	}
	b.WriteString("\n")
	return b.String()
}

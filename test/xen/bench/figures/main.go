// SPDX-License-Identifier: Apache-2.0

// Figures draws the report of test/xen/bench as SVG, and writes its tables into a page.
//
//	figures -now FILE [-before FILE] DIR
//
// FILE is a report as JSON, as "run -j" writes it; the one before is that of an older netbackd.
// DIR gets the plots; in DIR/xen.md the text between two marks becomes the tables.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/netbackd/netbackd/internal/lab/plot"
)

func main() {
	now := flag.String("now", "", "the report")
	before := flag.String("before", "", "the report of an older netbackd, if it is there")
	flag.Parse()
	if *now == "" || flag.NArg() != 1 {
		flag.Usage()
		os.Exit(2)
	}
	if err := run(*now, *before, flag.Arg(0)); err != nil {
		fmt.Fprintln(os.Stderr, "figures:", err)
		os.Exit(1)
	}
}

func run(nowPath, beforePath, dir string) error {
	now, err := readReport(nowPath)
	if err != nil {
		return err
	}
	before := &report{}
	if beforePath != "" {
		before, err = readReport(beforePath)
		if errors.Is(err, fs.ErrNotExist) {
			before = &report{}
		} else if err != nil {
			return err
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, bars := range drawings(before, now) {
		if len(bars.Rows) == 0 {
			continue
		}
		svg, err := bars.SVG()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := plot.Write(filepath.Join(dir, name), svg); err != nil {
			return err
		}
	}
	return plot.Fill(filepath.Join(dir, "xen.md"), begin, end, tables(before, now))
}

func readReport(path string) (*report, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := &report{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

// The marks around the tables of a page.
const (
	begin = "<!-- tables -->\n"
	end   = "<!-- end of tables -->\n"
)

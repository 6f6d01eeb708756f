// SPDX-License-Identifier: Apache-2.0

package command

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/hostcheck"
)

// Report prints the report of check, in a table or as JSON. It returns an error if the host
// is not ready.
func Report(c *cobra.Command, r hostcheck.Report, asJSON bool) error {
	out := c.OutOrStdout()
	var err error
	if asJSON {
		err = WriteJSON(out, r)
	} else {
		err = writeCheck(out, r, isTerminal(out))
	}
	if err == nil && !r.Ready {
		err = fmt.Errorf("this host is not ready: problems: %d", r.Problems())
	}
	return err
}

// isTerminal reports whether w shows colours.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// writeCheck prints the report.
func writeCheck(w io.Writer, r hostcheck.Report, colour bool) error {
	colours := map[hostcheck.Level]string{hostcheck.OK: "32", hostcheck.Note: "33", hostcheck.Problem: "1;31"}
	var table bytes.Buffer
	t := Table(&table)
	for _, i := range r.Items {
		fmt.Fprintf(t, "%s\t%s\t%s\n", i.Level, i.Name, i.Text)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	lines := strings.SplitAfter(table.String(), "\n")
	for n, i := range r.Items {
		line := lines[n]
		if colour {
			level := string(i.Level)
			line = "\x1b[" + colours[i.Level] + "m" + level + "\x1b[0m" + strings.TrimPrefix(line, level)
		}
		if i.Fix != "" {
			line += "           -> " + i.Fix + "\n"
		}
		if _, err := io.WriteString(w, line); err != nil {
			return err
		}
	}
	return nil
}

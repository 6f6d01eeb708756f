// SPDX-License-Identifier: Apache-2.0

package command

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"text/tabwriter"
)

// WriteJSON prints v as indented JSON.
func WriteJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// Table returns a writer that aligns columns which are separated by tabs. Its Flush prints
// the table.
func Table(w io.Writer) *tabwriter.Writer { return tabwriter.NewWriter(w, 0, 0, 2, ' ', 0) }

// Size formats a number of bytes with a unit.
func Size(n uint64) string {
	const units = "kMGTPE"
	if n < 1000 {
		return strconv.FormatUint(n, 10)
	}
	v, i := float64(n)/1000, 0
	for v >= 999.95 && i < len(units)-1 {
		v /= 1000
		i++
	}
	return fmt.Sprintf("%.1f%c", v, units[i])
}

// Ratio formats a divided by b.
func Ratio(a, b uint64) string {
	if b == 0 {
		return "-"
	}
	return fmt.Sprintf("%.3f", float64(a)/float64(b))
}

// OrNone returns v, or a dash if it is empty.
func OrNone(v string) string {
	if v == "" {
		return "-"
	}
	return v
}

// UpDown returns "up" or "down".
func UpDown(v bool) string {
	if v {
		return "up"
	}
	return "down"
}

// OnOff returns "on" or "off".
func OnOff(v bool) string {
	if v {
		return "on"
	}
	return "off"
}

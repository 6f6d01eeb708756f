// SPDX-License-Identifier: Apache-2.0

// Package plot draws the figures of benchmarks as SVG: [Bars] for measurements beside each
// other, [Lines] for a cost that depends on a number.
//
// The same input gives the same bytes, so that a plot in the repository changes only with its
// figures. Text stays text, in a font that viewers have. Colours differ in lightness as well,
// and follow the order of the series.
//
// The package knows nothing of what was measured. Only benchmarks import it.
package plot

// SPDX-License-Identifier: Apache-2.0

package plot

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// Point is a measurement at a number.
type Point struct{ X, Y float64 }

// LineSeries is a line through its points, in the order of X.
type LineSeries struct {
	Name   string
	Points []Point
}

// Lines show a cost that depends on a number, as of vifs or of packets in a batch.
type Lines struct {
	Title  string
	X, Y   string // the labels of the axes
	LogX   bool   // X grows by factors; all X are above 0
	LogY   bool   // Y does; else the axis begins at 0
	Series []LineSeries
	Marks  []Mark // at values of Y
}

// check refuses what cannot be drawn.
func (l *Lines) check() error {
	n := 0
	for _, s := range l.Series {
		for _, p := range s.Points {
			if math.IsNaN(p.X) || math.IsNaN(p.Y) {
				return fmt.Errorf("plot: series %q has a point without a value", s.Name)
			}
			if err := finite("plot: series "+s.Name, p.X, p.Y); err != nil {
				return err
			}
			if l.LogX && p.X <= 0 || l.LogY && p.Y <= 0 {
				return fmt.Errorf("plot: series %q: (%v, %v) is not on a logarithmic axis", s.Name, p.X, p.Y)
			}
			n++
		}
	}
	if n == 0 {
		return errors.New("plot: no points")
	}
	return nil
}

// SVG draws the lines.
func (l *Lines) SVG() ([]byte, error) {
	if err := l.check(); err != nil {
		return nil, err
	}
	p := canvas(l.Title)
	p.X.Label.Text, p.Y.Label.Text = l.X, l.Y
	p.Add(grid(true, true))
	var xs []float64
	for i, s := range l.Series {
		if len(s.Points) == 0 {
			continue
		}
		xy := make(plotter.XYs, len(s.Points))
		for k, at := range s.Points {
			xy[k] = plotter.XY(at)
			xs = append(xs, at.X)
		}
		slices.SortStableFunc(xy, func(a, b plotter.XY) int { return cmp.Compare(a.X, b.X) })
		line, points, err := plotter.NewLinePoints(xy)
		if err != nil {
			return nil, fmt.Errorf("plot: series %q: %w", s.Name, err)
		}
		line.Color, line.Width = colour(i), 1.6
		points.Color, points.Radius, points.Shape = colour(i), 2.4, shape(i)
		p.Add(line, points)
		p.Legend.Add(s.Name, line, points)
	}
	for i, m := range l.Marks {
		line := &mark{at: m.At, dash: i}
		p.Add(line)
		p.Legend.Add(m.Name, line)
	}
	if l.LogX {
		p.X.Scale = plot.LogScale{}
		p.X.Tick.Marker = atValues(xs)
	}
	if l.LogY {
		p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
		p.Y.Min, p.Y.Max = p.Y.Min/1.2, p.Y.Max*1.2
	} else {
		p.Y.Min, p.Y.Max = 0, p.Y.Max*1.05
	}
	lines := len(l.Series) + len(l.Marks)
	return finish(p, lines, 24+legend(lines)+3.6*vg.Inch)
}

// atValues puts a tick at each measured value of a logarithmic axis, since these are few.
func atValues(xs []float64) plot.ConstantTicks {
	slices.Sort(xs)
	var ticks plot.ConstantTicks
	for _, x := range slices.Compact(xs) {
		ticks = append(ticks, plot.Tick{Value: x, Label: strconv.FormatFloat(x, 'g', -1, 64)})
	}
	return ticks
}

// shape returns the shape of the points of series i.
func shape(i int) draw.GlyphDrawer {
	shapes := []draw.GlyphDrawer{draw.CircleGlyph{}, draw.BoxGlyph{}, draw.PyramidGlyph{}, draw.RingGlyph{}, draw.SquareGlyph{}, draw.TriangleGlyph{}}
	return shapes[i%len(shapes)]
}

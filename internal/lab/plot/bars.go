// SPDX-License-Identifier: Apache-2.0

package plot

import (
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

// BarSeries has a bar in each row of [Bars].
type BarSeries struct {
	Name   string
	Values []float64 // for each row; NaN: no bar
	// Low and High bound each value, and are drawn as a whisker. Both nil: there is none.
	Low, High []float64
}

// Bars are horizontal bars in rows, a bar of each series in a row. The first row is at the top.
type Bars struct {
	Title  string
	Unit   string // the label of the axis
	Rows   []string
	Series []BarSeries
	Marks  []Mark
}

const (
	barWidth = vg.Length(11) // of one bar
	rowGap   = vg.Length(9)  // between rows
)

// check refuses what cannot be drawn.
func (b *Bars) check() error {
	if len(b.Rows) == 0 || len(b.Series) == 0 {
		return errors.New("plot: no bars")
	}
	for _, s := range b.Series {
		if len(s.Values) != len(b.Rows) {
			return fmt.Errorf("plot: series %q has %d values for %d rows", s.Name, len(s.Values), len(b.Rows))
		}
		if len(s.Low) != len(s.High) || len(s.Low) != 0 && len(s.Low) != len(b.Rows) {
			return fmt.Errorf("plot: series %q has %d lower and %d upper bounds for %d rows", s.Name, len(s.Low), len(s.High), len(b.Rows))
		}
		for _, v := range [][]float64{s.Values, s.Low, s.High} {
			if err := finite("plot: series "+s.Name, v...); err != nil {
				return err
			}
			if slices.ContainsFunc(v, func(x float64) bool { return x < 0 }) {
				return fmt.Errorf("plot: series %q has a value below 0", s.Name)
			}
		}
	}
	return nil
}

// SVG draws the bars.
func (b *Bars) SVG() ([]byte, error) {
	if err := b.check(); err != nil {
		return nil, err
	}
	n, rows := len(b.Series), len(b.Rows)
	p := canvas(b.Title)
	p.X.Label.Text = b.Unit
	p.Add(grid(true, false))
	for i, s := range b.Series {
		// Rows count upwards on the axis, and so do the bars of a row.
		at := barWidth * vg.Length(float64(n-1)/2-float64(i))
		bar := &bars{series: s, offset: at, colour: i}
		p.Add(bar)
		p.Legend.Add(s.Name, bar)
	}
	for i, m := range b.Marks {
		l := &mark{at: m.At, vertical: true, dash: i}
		p.Add(l)
		p.Legend.Add(m.Name, l)
	}
	names := make([]plot.Tick, rows)
	for i, name := range b.Rows {
		names[i] = plot.Tick{Value: float64(rows - 1 - i), Label: name}
	}
	p.Y.Tick.Marker = plot.ConstantTicks(names)
	p.Y.Tick.Length = 0
	p.Y.Padding = 14 // viewers may have a wider font
	p.Y.LineStyle.Width = 0
	p.Y.Tick.Label.XAlign = draw.XRight
	p.Y.Min, p.Y.Max = -0.5, float64(rows)-0.5
	p.X.Min = 0
	p.X.Max *= 1.09 // room for the figures at the ends of the bars
	row := barWidth*vg.Length(n) + rowGap
	lines := n + len(b.Marks)
	return finish(p, lines, 24+legend(lines)+row*vg.Length(rows)+50)
}

// bars draws one series, and each value at the end of its bar.
type bars struct {
	series BarSeries
	offset vg.Length
	colour int
}

func (b *bars) Plot(c draw.Canvas, p *plot.Plot) {
	x, y := p.Transforms(&c)
	rows := len(b.series.Values)
	text := sans(8)
	text.YAlign = draw.YCenter
	for i, v := range b.series.Values {
		if math.IsNaN(v) {
			continue
		}
		mid := y(float64(rows-1-i)) + b.offset
		end := x(v)
		c.FillPolygon(colour(b.colour), rectangle(x(0), end, mid-barWidth/2+0.75, mid+barWidth/2-0.75))
		if len(b.series.Low) > 0 && !math.IsNaN(b.series.Low[i]) && !math.IsNaN(b.series.High[i]) {
			line := draw.LineStyle{Color: ink, Width: 0.8}
			low, high := x(b.series.Low[i]), x(b.series.High[i])
			c.StrokeLine2(line, low, mid, high, mid)
			c.StrokeLine2(line, low, mid-2, low, mid+2)
			c.StrokeLine2(line, high, mid-2, high, mid+2)
			end = max(end, high)
		}
		c.FillText(text, vg.Point{X: end + 4, Y: mid}, number(v))
	}
}

func (b *bars) DataRange() (xmin, xmax, ymin, ymax float64) {
	for _, values := range [][]float64{b.series.Values, b.series.High} {
		for _, v := range values {
			if !math.IsNaN(v) {
				xmax = max(xmax, v)
			}
		}
	}
	return 0, xmax, 0, float64(len(b.series.Values) - 1)
}

func (b *bars) Thumbnail(c *draw.Canvas) {
	c.FillPolygon(colour(b.colour), rectangle(c.Min.X, c.Max.X, c.Min.Y+1, c.Max.Y-1))
}

// mark draws a line across the plot.
type mark struct {
	at       float64
	vertical bool
	dash     int
}

func (m *mark) style() draw.LineStyle {
	dashes := [][]vg.Length{{5, 3}, {2, 2}, {8, 3, 2, 3}}
	return draw.LineStyle{Color: alarm, Width: 1, Dashes: dashes[m.dash%len(dashes)]}
}

func (m *mark) Plot(c draw.Canvas, p *plot.Plot) {
	x, y := p.Transforms(&c)
	if m.vertical {
		c.StrokeLine2(m.style(), x(m.at), c.Min.Y, x(m.at), c.Max.Y)
		return
	}
	c.StrokeLine2(m.style(), c.Min.X, y(m.at), c.Max.X, y(m.at))
}

func (m *mark) DataRange() (xmin, xmax, ymin, ymax float64) {
	none, all := math.Inf(1), math.Inf(-1)
	if m.vertical {
		return m.at, m.at, none, all
	}
	return none, all, m.at, m.at
}

func (m *mark) Thumbnail(c *draw.Canvas) {
	mid := (c.Min.Y + c.Max.Y) / 2
	c.StrokeLine2(m.style(), c.Min.X, mid, c.Max.X, mid)
}

var (
	_ plot.Plotter     = (*bars)(nil)
	_ plot.DataRanger  = (*bars)(nil)
	_ plot.Thumbnailer = (*bars)(nil)
	_ plot.Plotter     = (*mark)(nil)
	_ plot.DataRanger  = (*mark)(nil)
	_ plot.Thumbnailer = (*mark)(nil)
	_ plot.Thumbnailer = (*plotter.Line)(nil)
)

// rectangle returns the corners of a rectangle.
func rectangle(x0, x1, y0, y1 vg.Length) []vg.Point {
	return []vg.Point{{X: x0, Y: y0}, {X: x0, Y: y1}, {X: x1, Y: y1}, {X: x1, Y: y0}}
}

// number returns a value with three digits.
func number(v float64) string {
	switch a := math.Abs(v); {
	case a >= 100 || v == math.Trunc(v):
		return strconv.FormatFloat(v, 'f', 0, 64)
	case a >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case a >= 0.1:
		return strconv.FormatFloat(v, 'f', 2, 64)
	}
	return strconv.FormatFloat(v, 'g', 2, 64)
}

// SPDX-License-Identifier: Apache-2.0

package plot

import (
	"bytes"
	"fmt"
	"image/color"
	"math"
	"os"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// palette has a colour for each series, in this order.
var palette = []color.RGBA{
	{0x9a, 0xa5, 0xb1, 0xff}, // grey: what others do
	{0x1f, 0x5f, 0xa8, 0xff}, // blue
	{0xe0, 0x8a, 0x1e, 0xff}, // orange
	{0x2f, 0x8f, 0x5b, 0xff}, // green
	{0x8e, 0x3b, 0x6e, 0xff}, // purple
	{0x5a, 0x3e, 0x2b, 0xff}, // brown
	{0x63, 0xb3, 0xd1, 0xff}, // light blue
	{0xc2, 0x3b, 0x3b, 0xff}, // red
}

var (
	ink   = color.RGBA{0x22, 0x22, 0x22, 0xff}
	faint = color.RGBA{0xdd, 0xdd, 0xdd, 0xff}
	alarm = color.RGBA{0xc2, 0x3b, 0x3b, 0xff}
)

// width is the width of all plots.
const width = 9 * vg.Inch

// Mark is a line across a plot at a value of its axis, with a name: a bar to meet, a limit.
type Mark struct {
	Name string
	At   float64
}

// colour returns the colour of series i.
func colour(i int) color.RGBA { return palette[i%len(palette)] }

// sans returns the style of text of a size.
func sans(size vg.Length) draw.TextStyle {
	p := plot.New()
	s := p.Title.TextStyle
	s.Font = font.Font{Typeface: "Liberation", Variant: "Sans", Size: size}
	s.Color = ink
	s.XAlign = draw.XLeft
	return s
}

// canvas returns an empty plot in the style of all plots.
func canvas(title string) *plot.Plot {
	p := plot.New()
	p.Title.Text = title
	text := sans(10)
	setFont := func(s *draw.TextStyle, size vg.Length) {
		s.Font, s.Color = text.Font, ink
		s.Font.Size = size
	}
	setFont(&p.Title.TextStyle, 13)
	p.Title.Padding = 8
	for _, a := range []*plot.Axis{&p.X, &p.Y} {
		setFont(&a.Label.TextStyle, 10)
		setFont(&a.Tick.Label, 9)
		a.LineStyle.Color, a.Tick.LineStyle.Color = ink, ink
		a.Padding = 2
		a.Tick.Marker = ticks{}
	}
	setFont(&p.Legend.TextStyle, 9)
	p.Legend.Padding = 3
	p.Legend.Top = true
	return p
}

// legend is the height of the room above a plot that takes a legend of n lines.
func legend(n int) vg.Length { return vg.Length(n)*13 + 6 }

// finish draws the plot with its legend above the data, so that it hides none of them.
func finish(p *plot.Plot, lines int, height vg.Length) ([]byte, error) {
	c := vgsvg.New(width, height)
	all := draw.New(c)
	all.SetColor(color.White)
	all.Fill(all.Rectangle.Path())
	inner := draw.Crop(all, 8, -16, 6, -6)
	l := p.Legend
	p.Legend = plot.NewLegend()
	p.Legend.TextStyle = l.TextStyle
	title := p.Title
	p.Title.Text = ""
	if lines > 0 {
		l.Left, l.Top = true, true
		l.YOffs = -24
		l.Draw(inner)
	}
	at := vg.Point{X: inner.Min.X, Y: inner.Max.Y}
	style := title.TextStyle
	style.XAlign, style.YAlign = draw.XLeft, draw.YTop
	inner.FillText(style, at, title.Text)
	p.Draw(draw.Crop(inner, 0, 0, 0, -24-legend(lines)))

	var b bytes.Buffer
	if _, err := c.WriteTo(&b); err != nil {
		return nil, fmt.Errorf("draw %q: %w", title.Text, err)
	}
	// The names of the font elsewhere: it has the same widths as Arial.
	return bytes.ReplaceAll(b.Bytes(), []byte("font-family:Liberation Sans;"),
		[]byte("font-family:Liberation Sans,Arial,Helvetica,sans-serif;")), nil
}

// Write writes a plot to a file, if it is not the same already.
func Write(path string, svg []byte) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, svg) {
		return nil
	}
	return os.WriteFile(path, svg, 0o644)
}

// finite reports whether all values can be drawn, and names the first one that cannot.
func finite(where string, values ...float64) error {
	for i, v := range values {
		if math.IsInf(v, 0) {
			return fmt.Errorf("%s: value %d is infinite", where, i)
		}
	}
	return nil
}

// ticks puts a tick at round values, some six of them.
type ticks struct{}

func (ticks) Ticks(low, high float64) (all []plot.Tick) {
	if low >= high {
		return []plot.Tick{{Value: low, Label: number(low)}}
	}
	step := math.Pow(10, math.Floor(math.Log10((high-low)/6)))
	for _, factor := range []float64{1, 2, 5, 10} {
		if (high-low)/(step*factor) <= 8 {
			step *= factor
			break
		}
	}
	digits := max(0, int(-math.Floor(math.Log10(step))))
	for n := math.Ceil(low / step); n*step <= high; n++ {
		all = append(all, plot.Tick{Value: n * step, Label: strconv.FormatFloat(n*step, 'f', digits, 64)})
	}
	return all
}

// grid returns faint lines behind the data.
func grid(vertical, horizontal bool) *plotter.Grid {
	g := plotter.NewGrid()
	g.Vertical, g.Horizontal = draw.LineStyle{}, draw.LineStyle{}
	line := draw.LineStyle{Color: faint, Width: 0.5}
	if vertical {
		g.Vertical = line
	}
	if horizontal {
		g.Horizontal = line
	}
	return g
}

// SPDX-License-Identifier: Apache-2.0

package plot

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func someBars() *Bars {
	return &Bars{
		Title: "Time for a packet", Unit: "ns",
		Rows: []string{"64 B <to host>", "64 KiB & more"},
		Series: []BarSeries{
			{Name: "write(2)", Values: []float64{300, 1500}, Low: []float64{290, 1490}, High: []float64{310, math.NaN()}},
			{Name: "netbackd", Values: []float64{260, math.NaN()}},
		},
		Marks: []Mark{{Name: "limit", At: 1800}},
	}
}

func someLines() *Lines {
	return &Lines{
		Title: "Cost of many", X: "vifs", Y: "ns", LogX: true,
		Series: []LineSeries{
			{Name: "busy", Points: []Point{{1000, 40}, {1, 30}, {10, 31.5}}},
			{Name: "nothing"},
			{Name: "idle", Points: []Point{{1, 3}, {1000, 4}}},
		},
		Marks: []Mark{{Name: "bar", At: 50}},
	}
}

type drawing interface{ SVG() ([]byte, error) }

// TestSameInputGivesTheSameBytes: a plot is drawn twice alike, is XML, and shows all names.
func TestSameInputGivesTheSameBytes(t *testing.T) {
	logY := someLines()
	logY.LogY = true
	for _, c := range []struct {
		name string
		new  func() drawing
		want []string
	}{
		{"bars", func() drawing { return someBars() }, []string{"Time for a packet", ">ns<", "64 B &lt;to host&gt;", "64 KiB &amp; more", "write(2)", "netbackd", "limit", ">300<", ">1500<", ">260<"}},
		{"lines", func() drawing { return someLines() }, []string{"Cost of many", "vifs", "busy", "idle", "bar", ">1<", ">10<", ">1000<"}},
		{"two logarithmic axes", func() drawing { return logY }, []string{"busy", ">1000<"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, err := c.new().SVG()
			if err != nil {
				t.Fatal(err)
			}
			b, err := c.new().SVG()
			if err != nil || !bytes.Equal(a, b) {
				t.Errorf("two drawings differ: %v", err)
			}
			d := xml.NewDecoder(bytes.NewReader(a))
			for {
				if _, err := d.Token(); err != nil {
					if !errors.Is(err, io.EOF) {
						t.Error(err)
					}
					break
				}
			}
			for _, w := range append(c.want, "font-family:Liberation Sans,Arial") {
				if !strings.Contains(string(a), w) {
					t.Errorf("no %q in the drawing", w)
				}
			}
			if strings.Contains(string(a), "NaN") || strings.Contains(string(a), "Inf") {
				t.Error("a coordinate is not a number")
			}
		})
	}
}

func TestFiguresBecomeOtherBytes(t *testing.T) {
	b := someBars()
	was, err := b.SVG()
	if err != nil {
		t.Fatal(err)
	}
	b.Series[1].Values[0] = 250
	if is, err := b.SVG(); err != nil || bytes.Equal(was, is) {
		t.Errorf("another figure, the same drawing: %v", err)
	}
}

func TestWhatCannotBeDrawn(t *testing.T) {
	bars := func(change func(*Bars)) drawing { b := someBars(); change(b); return b }
	lines := func(change func(*Lines)) drawing { l := someLines(); change(l); return l }
	for name, d := range map[string]drawing{
		"no rows":             bars(func(b *Bars) { b.Rows = nil }),
		"no series":           bars(func(b *Bars) { b.Series = nil }),
		"too few values":      bars(func(b *Bars) { b.Series[0].Values = b.Series[0].Values[:1] }),
		"one bound":           bars(func(b *Bars) { b.Series[0].Low = nil }),
		"too few bounds":      bars(func(b *Bars) { s := &b.Series[0]; s.Low, s.High = s.Low[:1], s.High[:1] }),
		"infinite bar":        bars(func(b *Bars) { b.Series[0].Values[0] = math.Inf(1) }),
		"bar below 0":         bars(func(b *Bars) { b.Series[0].Values[0] = -1 }),
		"no points":           lines(func(l *Lines) { l.Series = l.Series[1:2] }),
		"point without value": lines(func(l *Lines) { l.Series[0].Points[0].Y = math.NaN() }),
		"infinite point":      lines(func(l *Lines) { l.Series[0].Points[0].X = math.Inf(1) }),
		"logarithm of 0":      lines(func(l *Lines) { l.Series[0].Points[0].X = 0 }),
		"logarithm of 0 in Y": lines(func(l *Lines) { l.LogY, l.Series[0].Points[0].Y = true, 0 }),
	} {
		if _, err := d.SVG(); err == nil {
			t.Errorf("%s: was drawn", name)
		}
	}
}

// TestEdges: bars of zero length and a single point can be drawn.
func TestEdges(t *testing.T) {
	for name, d := range map[string]drawing{
		"zero":     &Bars{Title: "t", Rows: []string{"a"}, Series: []BarSeries{{Name: "s", Values: []float64{0}}}},
		"no value": &Bars{Title: "t", Rows: []string{"a"}, Series: []BarSeries{{Name: "s", Values: []float64{math.NaN()}}}},
		"point":    &Lines{LogX: true, LogY: true, Series: []LineSeries{{Name: "s", Points: []Point{{4, 4}}}}},
	} {
		svg, err := d.SVG()
		if err != nil || bytes.Contains(svg, []byte("NaN")) {
			t.Errorf("%s: %v\n%s", name, err, svg)
		}
	}
}

func TestWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.svg")
	if err := Write(path, []byte("x")); err != nil {
		t.Fatal(err)
	}
	long := time.Now().Add(-time.Hour).Truncate(time.Second)
	if err := os.Chtimes(path, long, long); err != nil {
		t.Fatal(err)
	}
	modified := func() time.Time {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.ModTime()
	}
	if err := Write(path, []byte("x")); err != nil || !modified().Equal(long) {
		t.Errorf("the same content was written again: %v", err)
	}
	if err := Write(path, []byte("y")); err != nil || modified().Equal(long) {
		t.Errorf("other content was not written: %v", err)
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{1234.4: "1234", 45.67: "45.7", 1.236: "1.24", 0.98: "0.98", 0.0123: "0.012", 3: "3"} {
		if got := number(v); got != want {
			t.Errorf("%v: %q instead of %q", v, got, want)
		}
	}
}

package recovery

import (
	"bytes"
	"encoding/json"
	"fmt"
	"html"
	"math"
)

// Series is a named curve. T and V of a sample are seconds; a V that is not a number
// is a gap.
type Series struct {
	Name    string   `json:"name"`
	Samples []Sample `json:"samples"`
}

// Sample is a value at a time.
type Sample struct {
	T, V float64
}

// MarshalJSON writes a gap as null.
func (s Sample) MarshalJSON() ([]byte, error) {
	v := &s.V
	if !finite(s.V) {
		v = nil
	}
	return json.Marshal(struct {
		T float64  `json:"t"`
		V *float64 `json:"v"`
	}{s.T, v})
}

// UnmarshalJSON reads what MarshalJSON writes.
func (s *Sample) UnmarshalJSON(b []byte) error {
	var in struct {
		T float64  `json:"t"`
		V *float64 `json:"v"`
	}
	if err := json.Unmarshal(b, &in); err != nil {
		return err
	}
	*s = Sample{in.T, math.NaN()}
	if in.V != nil {
		s.V = *in.V
	}
	return nil
}

// Marker is a moment worth a line in a plot.
type Marker struct {
	T    float64 `json:"t"`
	Text string  `json:"text"`
}

// PlotOptions say what stands around the curves; the zero value works.
type PlotOptions struct {
	Title   string
	Markers []Marker
	Target  float64 // an objective, drawn as a horizontal line; 0: none
	Width   int     // default 860
	Height  int     // default 280
}

const (
	plotLeft, plotRight, plotTop, plotBottom = 56, 16, 34, 40
	plotColumns                              = 800 // samples that a curve keeps: the largest of each column
)

var plotColors = []string{"#0b62a4", "#c0392b", "#2e8b57", "#8e44ad", "#b8860b"}

// PlotSVG draws curves of seconds over seconds as one self-contained SVG element.
// Long series are thinned to the largest value of each column, so that no peak of an
// RPO is lost. Text is escaped. It is pure, and the same input gives the same bytes.
func PlotSVG(series []Series, o PlotOptions) []byte {
	if o.Width == 0 {
		o.Width = 860
	}
	if o.Height == 0 {
		o.Height = 280
	}
	f := frameOf(series, o)
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img" font-family="sans-serif" font-size="11">`+"\n", o.Width, o.Height, o.Width, o.Height)
	fmt.Fprintf(&b, `<title>%s</title><rect width="%d" height="%d" fill="#fff"/>`+"\n", html.EscapeString(o.Title), o.Width, o.Height)
	fmt.Fprintf(&b, `<text x="%d" y="18" font-size="13" font-weight="bold">%s</text>`+"\n", plotLeft, html.EscapeString(o.Title))
	f.axes(&b)
	if o.Target > 0 {
		fmt.Fprintf(&b, `<line x1="%d" x2="%.1f" y1="%.1f" y2="%.1f" stroke="#888" stroke-dasharray="6 3"/>`+"\n", plotLeft, f.right, f.y(o.Target), f.y(o.Target))
	}
	for _, m := range o.Markers {
		x := f.x(m.T)
		fmt.Fprintf(&b, `<line x1="%.1f" x2="%.1f" y1="%d" y2="%.1f" stroke="#555" stroke-dasharray="2 3"/>`, x, x, plotTop, f.bottom)
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" fill="#555">%s</text>`+"\n", x+3, plotTop+10, html.EscapeString(m.Text))
	}
	for i, s := range series {
		color := plotColors[i%len(plotColors)]
		fmt.Fprintf(&b, `<path d="%s" fill="none" stroke="%s" stroke-width="1.5"/>`, f.path(s.Samples), color)
		fmt.Fprintf(&b, `<text x="%.1f" y="18" text-anchor="end" fill="%s">%s</text>`+"\n", f.right-float64(110*(len(series)-1-i)), color, html.EscapeString(s.Name))
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

// plotFrame maps values to pixels.
type plotFrame struct {
	fromT, toT, toV float64
	right, bottom   float64
}

func frameOf(series []Series, o PlotOptions) plotFrame {
	f := plotFrame{fromT: math.Inf(1), toT: math.Inf(-1), toV: o.Target, right: float64(o.Width - plotRight), bottom: float64(o.Height - plotBottom)}
	at := func(t float64) { f.fromT, f.toT = min(f.fromT, t), max(f.toT, t) }
	for _, s := range series {
		for _, p := range s.Samples {
			if finite(p.T) && finite(p.V) {
				at(p.T)
				f.toV = max(f.toV, p.V)
			}
		}
	}
	for _, m := range o.Markers {
		at(m.T)
	}
	if f.fromT > f.toT {
		f.fromT, f.toT = 0, 1
	}
	if f.fromT == f.toT {
		f.toT++
	}
	if f.toV <= 0 {
		f.toV = 1
	}
	step := niceStep(f.toV / 4)
	f.toV = math.Ceil(f.toV/step) * step
	return f
}

func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }

func (f plotFrame) x(t float64) float64 {
	return plotLeft + (t-f.fromT)/(f.toT-f.fromT)*(f.right-plotLeft)
}

func (f plotFrame) y(v float64) float64 {
	return f.bottom - v/f.toV*(f.bottom-plotTop)
}

// niceStep is 1, 2 or 5 times a power of ten, not below v.
func niceStep(v float64) float64 {
	unit := math.Pow(10, math.Floor(math.Log10(v)))
	for _, k := range []float64{1, 2, 5} {
		if k*unit >= v*0.999999 {
			return k * unit
		}
	}
	return 10 * unit
}

func (f plotFrame) axes(b *bytes.Buffer) {
	step := niceStep(f.toV / 4)
	for v := 0.0; v <= f.toV*1.000001; v += step {
		fmt.Fprintf(b, `<line x1="%d" x2="%.1f" y1="%.1f" y2="%.1f" stroke="#e4e4e4"/>`, plotLeft, f.right, f.y(v), f.y(v))
		fmt.Fprintf(b, `<text x="%d" y="%.1f" text-anchor="end">%.4g s</text>`+"\n", plotLeft-5, f.y(v)+4, v)
	}
	step = niceStep((f.toT - f.fromT) / 8)
	for k := math.Ceil(f.fromT / step); k*step <= f.toT; k++ {
		fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="middle">%.4g s</text>`+"\n", f.x(k*step), f.bottom+16, k*step)
	}
	fmt.Fprintf(b, `<line x1="%d" x2="%.1f" y1="%.1f" y2="%.1f" stroke="#333"/>`+"\n", plotLeft, f.right, f.bottom, f.bottom)
}

// path is a curve's drawing commands; after a gap the pen is put down anew.
func (f plotFrame) path(samples []Sample) string {
	var b bytes.Buffer
	down := false
	for _, p := range thin(samples, plotColumns) {
		if !finite(p.V) || !finite(p.T) {
			down = false
			continue
		}
		verb := "L"
		if !down {
			verb = "M"
		}
		fmt.Fprintf(&b, "%s%.1f %.1f", verb, f.x(p.T), f.y(p.V))
		down = true
	}
	return b.String()
}

// thin keeps at most n samples, the largest of each stretch; a gap stays one.
func thin(samples []Sample, n int) []Sample {
	if len(samples) <= n {
		return samples
	}
	out := make([]Sample, 0, n)
	for i := range n {
		from, to := i*len(samples)/n, (i+1)*len(samples)/n
		most := samples[from]
		for _, p := range samples[from:to] {
			if !finite(p.V) {
				most = p
				break
			}
			if p.V > most.V {
				most = p
			}
		}
		out = append(out, most)
	}
	return out
}

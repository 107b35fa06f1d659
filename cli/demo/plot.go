package demo

import (
	"bytes"
	"fmt"
	"math"
	"time"
)

// plotSVG draws the RPO over time: calm measured under the normal load, behind while
// the link was meant to be too slow. The vertical axis is logarithmic, for a few
// milliseconds and several seconds are both of interest.
func plotSVG(calm, behind []Sample) []byte {
	const width, height, left, right, top, bottom = 760, 260, 64, 12, 14, 34
	var b bytes.Buffer
	put := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	put(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" role="img" aria-label="RPO over time" style="color-scheme:light dark">`, width, height)
	put(`<style>text{font:11px system-ui,sans-serif;fill:#7a8797}.grid{stroke:#7a879744}.calm{fill:none;stroke:#2f74d0;stroke-width:1.5}.behind{fill:none;stroke:#d08a1f;stroke-width:1.5}</style>`)
	offset := time.Duration(0)
	if n := len(calm); n > 0 {
		offset = calm[n-1].At
	}
	span := offset
	if n := len(behind); n > 0 {
		span += behind[n-1].At
	}
	span = max(span, time.Second)
	x := func(t time.Duration) float64 {
		return left + float64(width-left-right)*float64(t)/float64(span)
	}
	const low, high = -3.0, 1.5 // 1 ms to about 30 s
	y := func(d time.Duration) float64 {
		v := math.Log10(math.Max(d.Seconds(), 0.001))
		return top + (height-top-bottom)*(1-(math.Min(v, high)-low)/(high-low))
	}
	for _, d := range []time.Duration{time.Millisecond, 10 * time.Millisecond, 100 * time.Millisecond, time.Second, 10 * time.Second} {
		put(`<line class="grid" x1="%d" x2="%d" y1="%.1f" y2="%.1f"/><text x="%d" y="%.1f" text-anchor="end">%v</text>`, left, width-right, y(d), y(d), left-8, y(d)+4, d)
	}
	step := (span / 8).Round(time.Second)
	for t := time.Duration(0); t <= span; t += max(step, time.Second) {
		put(`<text x="%.1f" y="%d" text-anchor="middle">%d s</text>`, x(t), height-bottom+16, int(t.Seconds()))
	}
	line := func(class string, from time.Duration, samples []Sample) {
		if len(samples) == 0 {
			return
		}
		fmt.Fprintf(&b, `<polyline class="%s" points="`, class)
		for _, s := range samples {
			fmt.Fprintf(&b, "%.1f,%.1f ", x(from+s.At), y(s.RPO))
		}
		put(`"/>`)
	}
	line("calm", 0, calm)
	line("behind", offset, behind)
	put(`<text x="%d" y="%d" style="fill:#2f74d0">normal load</text><text x="%d" y="%d" style="fill:#d08a1f">faster than the link</text>`, left+8, height-4, left+90, height-4)
	put(`</svg>`)
	return b.Bytes()
}

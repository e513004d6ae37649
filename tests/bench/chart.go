package main

import (
	"encoding/xml"
	"fmt"
	"math"
	"strings"
)

// Measures of the chart, in pixels.
const (
	chartLabel = 470 // room for the words on the left
	chartBars  = 420
	chartLine  = 22
	chartTop   = 46
)

// chart draws the ratios of the aims as bars, from the smallest round to the
// largest a thin line, and the aim a mark. The scale is logarithmic: half as fast
// lies as far to the left of 1 as twice as fast to its right.
func (rep *report) chart() string {
	var list []aim
	for _, a := range rep.Aims {
		if a.Against != "" && a.Ratio > 0 {
			list = append(list, a)
		}
	}
	if len(list) == 0 {
		return ""
	}
	low, high := 0.5, 2.0
	for _, a := range list {
		low, high = min(low, a.Ratio, a.AtLeast), max(high, a.Ratio, a.AtLeast)
	}
	low, high = low/1.1, high*1.1
	x := func(v float64) float64 {
		v = math.Log(min(max(v, low), high)/low) / math.Log(high/low)
		return chartLabel + v*chartBars
	}
	var b strings.Builder
	height := chartTop + chartLine*len(list) + 16
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", chartLabel+chartBars+70, height)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="white"/>`+"\n")
	fmt.Fprintf(&b, `<text x="8" y="18" font-weight="bold">%s</text>`+"\n", escaped("dmfuse beside its peers: ratio of speed, median of rounds in one run (right of 1 is faster)"))
	fmt.Fprintf(&b, `<text x="8" y="34" fill="#555">%s</text>`+"\n", escaped(rep.Machine.short()))
	fmt.Fprintf(&b, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#888"/>`+"\n", x(1), chartTop-4, x(1), height-12)
	for i, a := range list {
		y := chartTop + chartLine*i
		from, to, colour := min(x(1), x(a.Ratio)), max(x(1), x(a.Ratio)), "#2a7"
		if !a.Met {
			colour = "#c63"
		}
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", chartLabel-8, y+14, escaped(a.Row+": "+a.Subject+" / "+a.Against))
		fmt.Fprintf(&b, `<rect x="%.1f" y="%d" width="%.1f" height="12" fill="%s"/>`+"\n", from, y+4, max(to-from, 1), colour)
		fmt.Fprintf(&b, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#333"/>`+"\n", x(a.Low), y+10, x(a.High), y+10)
		fmt.Fprintf(&b, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#000" stroke-width="2"/>`+"\n", x(a.AtLeast), y+1, x(a.AtLeast), y+19)
		fmt.Fprintf(&b, `<text x="%d" y="%d">%.2f</text>`+"\n", chartLabel+chartBars+12, y+14, a.Ratio)
	}
	fmt.Fprintf(&b, "</svg>\n")
	return b.String()
}

func escaped(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a Builder takes everything
	return b.String()
}

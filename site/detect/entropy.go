package detect

import "math"

// Class is what a sample looks like.
type Class uint8

// Classes of samples.
const (
	Unknown Class = iota
	Zeros         // or one byte repeated: nothing is lost with it
	Legible       // text, code, pages of a database
	Noise         // compressed or encrypted
)

// SampleBytes is how much of a write is looked at.
const SampleBytes = 4096

// noiseBits is the entropy from which on a sample counts as noise. Random bytes have
// 7.95 bits a byte in 4096 and 7.6 in 512, compressed ones little less; programs and
// pages of databases have 3 to 6.8.
const noiseBits = 7.2

// Classify looks at up to SampleBytes of p.
func Classify(p []byte) Class {
	if len(p) == 0 {
		return Unknown
	}
	p = p[:min(len(p), SampleBytes)]
	var counts [256]uint16
	for _, b := range p {
		counts[b]++
	}
	if int(counts[p[0]]) == len(p) {
		return Zeros
	}
	n, bits := float64(len(p)), 0.0
	for _, c := range counts {
		if c > 0 {
			bits += float64(c) * (math.Log2(n) - log2[c])
		}
	}
	if bits/n >= noiseBits {
		return Noise
	}
	return Legible
}

// log2 is the logarithms of the counts of a sample.
var log2 = func() (t [SampleBytes + 1]float64) {
	for i := 1; i < len(t); i++ {
		t[i] = math.Log2(float64(i))
	}
	return t
}()

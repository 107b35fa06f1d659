package detect

const (
	maxPlaces  = 1 << 12
	placeBytes = 1 << 20   // of a place, before there were too many
	newBytes   = 128 << 20 // written since a place was first rewritten, until it is a usual one
)

// places know where a volume is rewritten: a database goes over the same ones all day,
// an encryption over those that nobody has written to for long.
type places struct {
	first   map[int64]int64 // of a place, what had been written when it was first rewritten
	size    int64           // bytes of a place
	written int64
}

// take reports whether s rewrites a place that is not usually rewritten.
func (p *places) take(s Sample) bool {
	p.written += s.StandsFor
	if !s.rewrites() {
		return false
	}
	if p.first == nil {
		p.first, p.size = map[int64]int64{}, placeBytes
	}
	first, ok := p.first[s.Extent.Offset/p.size]
	if !ok {
		first = p.written
		p.first[s.Extent.Offset/p.size] = first
	}
	if len(p.first) > maxPlaces { // twice as large: a place is as old as its older half
		larger := map[int64]int64{}
		for i, w := range p.first {
			if v, ok := larger[i/2]; !ok || w < v {
				larger[i/2] = w
			}
		}
		p.first, p.size = larger, 2*p.size
	}
	return p.written-first < newBytes
}

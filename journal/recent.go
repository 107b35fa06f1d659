package journal

// recent is the chain values of the newest frame ends, in order: enough to check
// what a later frame's header says of them, for that lags by the pipeline's depth.
type recent struct {
	ends []Cursor
}

const maxRecent = 256

func recentFrom(c Cursor) recent { return recent{[]Cursor{c}} }

func (r *recent) push(c Cursor) {
	if len(r.ends) >= maxRecent {
		r.ends = append(make([]Cursor, 0, maxRecent), r.ends[maxRecent/2:]...)
	}
	r.ends = append(r.ends, c)
}

// contradicts reports that h names another chain value than was computed here for
// the frame that ends at its ChainSeq.
func (r *recent) contradicts(h frameHeader) bool {
	for i := len(r.ends) - 1; i >= 0 && r.ends[i].Seq >= h.ChainSeq; i-- {
		if r.ends[i].Seq == h.ChainSeq {
			return r.ends[i].Chain != h.Chain
		}
	}
	return false
}

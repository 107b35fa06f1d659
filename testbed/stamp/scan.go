package stamp

import (
	"errors"
	"fmt"
	"io"
)

// scanBlocks is how many slots one read of Scan covers.
const scanBlocks = 64

// Report is what lies on a volume.
type Report struct {
	Volume  uint32
	Max     uint64 // highest number found, 0 if none
	Last    Stamp  // the stamp of that number
	Count   uint64 // whole stamps in their place
	Torn    uint64 // blocks that are neither zeros nor a whole stamp
	Foreign uint64 // whole stamps of another volume, or in a slot that is not theirs
	numbers []uint64
}

// Scan reads the first slots slots of r, which is volume's image.
func Scan(r io.ReaderAt, volume uint32, slots uint64) (Report, error) {
	rep := Report{Volume: volume, numbers: make([]uint64, slots)}
	buf := make([]byte, scanBlocks*Size)
	for first := uint64(0); first < slots; first += scanBlocks {
		n := min(scanBlocks, slots-first)
		p := buf[:n*Size]
		if _, err := r.ReadAt(p, int64(first)*Size); err != nil {
			return rep, fmt.Errorf("read slots %d to %d of volume %d: %w", first, first+n-1, volume, err)
		}
		for i := range n {
			rep.add(first+i, p[i*Size:(i+1)*Size])
		}
	}
	return rep, nil
}

func (r *Report) add(slot uint64, block []byte) {
	s, err := Decode(block)
	switch {
	case errors.Is(err, ErrEmpty):
	case err != nil:
		r.Torn++
	case s.Volume != r.Volume || s.Number == 0 || s.Number%uint64(len(r.numbers)) != slot:
		r.Foreign++
	default:
		r.Count++
		r.numbers[slot] = s.Number
		if s.Number > r.Max {
			r.Max, r.Last = s.Number, s
		}
	}
}

// Missing counts the stamps that must be there if all up to upto were written:
// for each slot, its highest number not above upto. A later stamp in the slot
// stands for it.
func (r Report) Missing(upto uint64) uint64 {
	slots := uint64(len(r.numbers))
	var missing uint64
	for k := upto; k > 0 && upto-k < slots; k-- {
		if r.numbers[k%slots] < k {
			missing++
		}
	}
	return missing
}

// Whole reports whether the volume holds every stamp up to upto, no block is torn
// or foreign, and the numbers found have no hole: what any point of an
// uninterrupted load must look like.
func (r Report) Whole(upto uint64) bool {
	return r.Torn == 0 && r.Foreign == 0 && r.Missing(upto) == 0 && r.Missing(r.Max) == 0
}

// String is the line that a guest prints, without the missing ones of a range.
func (r Report) String() string {
	return fmt.Sprintf("volume=%d max=%d count=%d torn=%d foreign=%d holes=%d",
		r.Volume, r.Max, r.Count, r.Torn, r.Foreign, r.Missing(r.Max))
}

package recovery

import "github.com/novacron/afterimage/cbt"

// cellState is where a cell of a scratch disk is to be read from.
type cellState uint8

const (
	cellBelow   cellState = iota // the image below
	cellWritten                  // the scratch file
	cellZero                     // nowhere: it reads as zeros, the file has a hole there
)

// A chunk holds the states of 1 GiB of a disk, two bits a cell: 64 KiB, made when
// the first of its cells changes. A disk of 1 TiB that was written everywhere costs
// 64 MiB.
const (
	chunkCells = 1 << 18
	chunkBytes = chunkCells / 4
)

// cellMap is the state of every cell of a disk. The caller orders the calls.
type cellMap struct {
	chunks []*[chunkBytes]uint8
}

func newCellMap(size int64) cellMap {
	cells := (size + cbt.CellBytes - 1) / cbt.CellBytes
	return cellMap{make([]*[chunkBytes]uint8, (cells+chunkCells-1)/chunkCells)}
}

func (m cellMap) get(cell int64) cellState {
	c := m.chunks[cell/chunkCells]
	if c == nil {
		return cellBelow
	}
	i := cell % chunkCells
	return cellState(c[i/4] >> (i % 4 * 2) & 3)
}

// set gives the cells from first to before end a state.
func (m cellMap) set(first, end int64, s cellState) {
	for cell := first; cell < end; {
		c := &m.chunks[cell/chunkCells]
		if *c == nil {
			*c = new([chunkBytes]uint8)
		}
		for stop := min(end, (cell/chunkCells+1)*chunkCells); cell < stop; {
			i := cell % chunkCells
			if i%4 == 0 && stop-cell >= 4 {
				(*c)[i/4] = uint8(s) * 0b01010101
				cell += 4
				continue
			}
			shift := i % 4 * 2
			(*c)[i/4] = (*c)[i/4]&^(3<<shift) | uint8(s)<<shift
			cell++
		}
	}
}

// run is how far the state of first goes on before end.
func (m cellMap) run(first, end int64) (s cellState, next int64) {
	s = m.get(first)
	for next = first + 1; next < end; {
		if next%chunkCells == 0 && m.chunks[next/chunkCells] == nil {
			if s != cellBelow {
				return s, next
			}
			next = min(end, next+chunkCells)
			continue
		}
		if m.get(next) != s {
			return s, next
		}
		next++
	}
	return s, next
}

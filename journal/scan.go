package journal

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/zeebo/blake3"
)

// damagedBytes is what is wrong with a frame whose header and records are right.
const damagedBytes = "a payload differs from its checksums, or bytes beside it are set"

// scanBytes is how much of a frame is in memory at once.
const scanBytes = 256 << 10

// cellCheck is one cell's place in its frame, and what it must sum to.
type cellCheck struct {
	at, end int64
	crc     uint32
	rec     int
}

// cellsIn lists the cells of a frame's payloads in file order.
func cellsIn(recs []*record) ([]cellCheck, error) {
	var out []cellCheck
	var floor int64
	for i, r := range recs {
		if !r.kind.hasPayload() {
			continue
		}
		if r.payload < floor {
			return nil, badFrame("payloads overlap at %d", r.payload)
		}
		for c, crc := range r.cells {
			from, to := r.storedCell(c)
			out = append(out, cellCheck{r.payload + from, r.payload + to, crc, i})
		}
		floor = r.payload + int64(r.stored)
	}
	return out, nil
}

// frameScan reads the rest of a frame, whose meta has been read and checked, in
// pieces of scanBytes: it verifies each cell, computes the chain value and hands
// the pieces to each, with their offset in the frame. bad is the first damaged
// record, -1 if there is none; a damaged one does not end the scan. Bytes between
// the payloads and behind them must be zero, so that no byte goes unchecked.
func frameScan(h frameHeader, recs []*record, meta []byte, before Chain, rest io.Reader, skipCells bool, each func(p []byte, at int64) error) (chain Chain, bad int, err error) {
	bad = -1
	cells, err := cellsIn(recs)
	if err != nil {
		return chain, bad, err
	}
	hash := blake3.New()
	_, _ = hash.Write(before[:]) // a hash takes everything
	_, _ = hash.Write(meta)
	if err := each(meta, 0); err != nil {
		return chain, bad, err
	}
	buf := make([]byte, min(scanBytes, h.Bytes-int64(len(meta))))
	var sum uint32
	for at := int64(len(meta)); at < h.Bytes; {
		p := buf[:min(int64(len(buf)), h.Bytes-at)]
		if _, err := io.ReadFull(rest, p); err != nil {
			return chain, bad, fmt.Errorf("read frame: %w", noEOF(err))
		}
		_, _ = hash.Write(p)
		end := at + int64(len(p))
		if bad < 0 && !skipCells && !zeroOutside(p, at, cells) {
			bad = 0
		}
		for len(cells) > 0 && cells[0].at < end {
			c := cells[0]
			from, to := max(c.at, at), min(c.end, end)
			if from == c.at {
				sum = 0
			}
			sum = crc32.Update(sum, castagnoli, p[from-at:to-at])
			if to < c.end {
				break
			}
			if sum != c.crc && bad < 0 && !skipCells {
				bad = c.rec
			}
			cells = cells[1:]
		}
		if err := each(p, at); err != nil {
			return chain, bad, err
		}
		at = end
	}
	hash.Sum(chain[:0])
	return chain, bad, nil
}

// zeroOutside reports that p, which lies at at in its frame, is zero wherever no
// cell lies.
func zeroOutside(p []byte, at int64, cells []cellCheck) bool {
	end, free := at+int64(len(p)), at
	for _, c := range cells {
		if c.at >= end {
			break
		}
		if c.at > free && !allZero(p[free-at:c.at-at]) {
			return false
		}
		free = max(free, c.end)
	}
	return free >= end || allZero(p[free-at:])
}

var zeros [pageBytes]byte

func allZero(p []byte) bool {
	for len(p) > len(zeros) {
		if !bytes.Equal(p[:len(zeros)], zeros[:]) {
			return false
		}
		p = p[len(zeros):]
	}
	return bytes.Equal(p, zeros[:len(p)])
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// sectionOf reads a segment from off on.
type sectionOf struct {
	segs *segments
	n    uint64
	off  int64
}

func (s *sectionOf) Read(p []byte) (int, error) {
	f, err := s.segs.acquire(s.n)
	if err != nil {
		return 0, err
	}
	defer s.segs.release(f)
	n, err := f.ReadAt(p, s.off)
	s.off += int64(n)
	if n > 0 {
		err = nil
	}
	return n, err
}

// pointers is recs as the write path holds them.
func pointers(recs []record) []*record {
	out := make([]*record, len(recs))
	for i := range recs {
		out[i] = &recs[i]
	}
	return out
}

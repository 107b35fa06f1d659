package journal

import (
	"fmt"
	"strings"
)

// fileID names a file that holds payloads: a segment of the stream or a run of
// folded history. It is what the index says of a version's file. The number of a
// run is never given twice; that of a segment neither, though its bytes may lie in
// a file that had another number before.
type fileID uint64

func segmentID(n uint64) fileID { return fileID(n << 1) }
func runID(n uint64) fileID     { return fileID(n<<1 | 1) }

func (f fileID) isRun() bool    { return f&1 != 0 }
func (f fileID) number() uint64 { return uint64(f >> 1) }

// name is the file's, without its directory.
func (f fileID) name() string {
	if f.isRun() {
		return runName(f.number())
	}
	return segmentName(f.number())
}

const runSuffix = ".run"

func runName(n uint64) string { return fmt.Sprintf("%016d%s", n, runSuffix) }

func parseRunName(name string) (uint64, bool) {
	base, ok := strings.CutSuffix(name, runSuffix)
	if !ok {
		return 0, false
	}
	return parseSegmentName(base + segmentSuffix)
}

// readAt fills p from a file. A file that ends early is io.ErrUnexpectedEOF.
func (j *Journal) readAt(f fileID, p []byte, off int64) error {
	if f.isRun() {
		return j.runs.readAt(f.number(), p, off)
	}
	return j.segs.readAt(f.number(), p, off)
}

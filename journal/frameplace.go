package journal

import "fmt"

// FramePlace is where a journal has the bytes of a frame that it appended. It stays
// good until the frame is folded or taken back; the zero value is nowhere.
type FramePlace struct {
	segment uint64
	offset  int64
}

// NewestFrame is the place of the newest frame. Whoever appends frames learns by it
// where the last one went.
func (j *Journal) NewestFrame() FramePlace {
	j.fileMu.Lock()
	defer j.fileMu.Unlock()
	return j.newest
}

// ReadFrame fills p with stored bytes of a frame, from off in it. They are not
// verified: a place that is not good any more may give other bytes, or an error.
func (j *Journal) ReadFrame(at FramePlace, p []byte, off int64) error {
	if at.segment == 0 || off < 0 {
		return fmt.Errorf("read frame at %d: %w", off, ErrReclaimed)
	}
	if err := j.segs.readAt(at.segment, p, at.offset+off); err != nil {
		return fmt.Errorf("read frame in %s: %w", segmentName(at.segment), err)
	}
	return nil
}

package cbt

// Mode is how a volume's changes reach the sink at a moment. Package mode holds
// the rules by which one follows another.
type Mode string

// Modes of a volume.
const (
	ModeNone     Mode = "none"      // nothing follows it
	ModePerWrite Mode = "per-write" // every write arrives
	ModeDelta    Mode = "delta"     // every write arrives; what bitmaps name is being read
	ModeFull     Mode = "full"      // no bitmap could be trusted: all is being read and compared
	ModeCycles   Mode = "bitmap"    // bitmaps collect; each closed cycle is a point
	ModeReleased Mode = "released"  // left alone on request
)

// Effect says what a mode means for points, for people.
func (m Mode) Effect() string {
	switch m {
	case ModePerWrite:
		return "every write is a point"
	case ModeDelta:
		return "no points until the delta has been read"
	case ModeFull:
		return "no points until the whole disk has been read and compared"
	case ModeCycles:
		return "each closed cycle is a point, nothing between two of them"
	case ModeReleased:
		return "no points until it is resumed"
	}
	return "no points"
}

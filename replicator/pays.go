package replicator

import (
	"fmt"
	"time"
)

// Packing is when frames are packed on their way to a peer.
type Packing uint8

// Modes. PackAuto packs where that costs nobody time: see economy.
const (
	PackAuto Packing = iota
	PackOff
	PackAlways
)

// ParsePacking reads auto, also where nothing is said, off or always.
func ParsePacking(s string) (Packing, error) {
	switch s {
	case "", "auto":
		return PackAuto, nil
	case "off":
		return PackOff, nil
	case "always":
		return PackAlways, nil
	}
	return PackAuto, fmt.Errorf("pack %q: want auto, off or always", s)
}

const (
	// packRest: packing takes at most one part in 1+packRest of the time.
	packRest = 3
	// fastLink is a link on which the processor has enough to do with sending, 500 Mbit/s:
	// without any link between them both ends of one machine took 10 ns a byte.
	fastLink = 16 * time.Nanosecond
	// slowLink is one on which looking for every block in a table, which costs both ends
	// a nanosecond a byte even where it finds nothing, is as good as free: 250 Mbit/s.
	slowLink = 32 * time.Nanosecond
	// economyWindow is how much is remembered, and half of it forgotten then.
	economyWindow = 200 * time.Millisecond
)

// economy decides for each frame of one stream whether to pack it. The bytes of a frame
// that is sent as it lies cost a copy; packing them costs processor time, which pays
//
//   - where a byte takes the link longer than fastLink, or
//   - where the stream waits for frames half of the time or more: then nobody waits for
//     the processor, and the link, which others share, carries less;
//
// and only so long as it takes at most a quarter of the stream's time. Pure: whoever
// uses it reads the clock.
type economy struct {
	mode Packing

	link    time.Duration // writing, with what limits made it wait
	bytes   int64         // written in that time
	idle    time.Duration // waiting for frames
	packing time.Duration
}

// pays reports whether to pack the next frame.
func (e *economy) pays() bool {
	switch e.mode {
	case PackOff:
		return false
	case PackAlways:
		return true
	}
	busy := e.link + e.packing
	if e.packing*packRest > e.link+e.idle {
		return false
	}
	return e.idle >= busy || e.slower(fastLink)
}

// looks reports whether to look for blocks that the replica holds in a frame that is packed.
func (e *economy) looks() bool {
	return e.mode == PackAlways || e.idle >= e.link+e.packing || e.slower(slowLink)
}

func (e *economy) slower(perByte time.Duration) bool {
	return e.link > time.Duration(e.bytes)*perByte
}

// wrote, waited and packed tell how the time went.
func (e *economy) wrote(n int64, d time.Duration) {
	e.bytes, e.link = e.bytes+n, e.link+d
	e.age()
}

func (e *economy) waited(d time.Duration) {
	e.idle += min(d, economyWindow) // a long silence says no more than a short one
	e.age()
}

func (e *economy) packed(d time.Duration) {
	e.packing += d
	e.age()
}

func (e *economy) age() {
	if e.link+e.idle+e.packing > economyWindow {
		e.link, e.bytes, e.idle, e.packing = e.link/2, e.bytes/2, e.idle/2, e.packing/2
	}
}

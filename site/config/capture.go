package config

import (
	"fmt"
	"slices"
	"time"
)

// Capture is how a machine's writes come into the journal.
type Capture struct {
	Mode  CaptureMode `yaml:"mode"`
	Every Duration    `yaml:"every,omitempty"` // bitmap: between two points; default 1s
}

// CaptureMode is a way of capture.
type CaptureMode string

// Modes of capture.
const (
	// CapturePerWrite sends every write on while the guest waits: each is a point.
	CapturePerWrite CaptureMode = "per-write"
	// CaptureBitmap lets nothing wait: bitmaps collect what changes, and each closed
	// cycle is a point.
	CaptureBitmap CaptureMode = "bitmap"
)

// UnmarshalText accepts the values.
func (m *CaptureMode) UnmarshalText(text []byte) error {
	switch v := CaptureMode(text); v {
	case CapturePerWrite, CaptureBitmap:
		*m = v
		return nil
	}
	return fmt.Errorf("capture mode %q is not understood: want %s or %s", text, CapturePerWrite, CaptureBitmap)
}

// Bounds of the time between two cycles.
const (
	DefaultCycle  = Duration(time.Second)
	shortestCycle = Duration(100 * time.Millisecond)
	longestCycle  = Duration(24 * time.Hour)
)

func (c *Capture) complete() {
	if c.Mode == CaptureBitmap && c.Every == 0 {
		c.Every = DefaultCycle
	}
}

// Cycle is the time between two points of a group in bitmap capture; 0: it is
// captured per write.
func (g Group) Cycle() time.Duration {
	if g.Capture == nil || g.Capture.Mode != CaptureBitmap {
		return 0
	}
	return time.Duration(g.Capture.Every)
}

func (s *shape) capture(path string, g Group) {
	c := g.Capture
	taps := g.Taps()
	shut := slices.ContainsFunc(taps, func(t Tap) bool { return t.Libvirt != nil && t.Libvirt.Passthrough == PassthroughForbidden })
	switch {
	case c.Mode == "":
		s.absent(path+".mode", fmt.Sprintf("%s or %s", CapturePerWrite, CaptureBitmap))
	case len(taps) == 0:
		s.wrong(path, fmt.Sprintf("group %q has no machine to capture", g.Name), "remove capture:; disks that this site serves are captured per write")
	case c.Mode == CapturePerWrite && c.Every != 0:
		s.wrong(path+".every", "every write is a point already", "remove every:, or set mode: bitmap")
	case c.Mode == CaptureBitmap && (c.Every < shortestCycle || c.Every > longestCycle):
		s.wrong(path+".every", fmt.Sprintf("a cycle of %s is not possible", time.Duration(c.Every)), fmt.Sprintf("between %s and %s", time.Duration(shortestCycle), time.Duration(longestCycle)))
	case c.Mode == CaptureBitmap && shut:
		s.wrong(path+".mode", "bitmap cycles need the monitor, which passthrough: forbidden closes", "allow the passthrough, or set mode: per-write")
	}
}

package control

import "time"

// Suspicion is a stretch of history in which a volume was written as if it were being
// encrypted from within. It is a hint: nothing was blocked and nothing deleted.
type Suspicion struct {
	Volume string    `json:"volume"`
	Since  time.Time `json:"since"` // of the first writes that were out of the ordinary
	Until  time.Time `json:"until,omitzero"`
	// Clean is the last point before them, and Pin keeps it; absent where there is none.
	Clean  *Point  `json:"clean,omitempty"`
	Pin    string  `json:"pin,omitempty"`
	Turned int64   `json:"turned_bytes"` // of legible content that noise was written over, by samples
	Ratio  float64 `json:"ratio"`        // of what was written
	Usual  float64 `json:"usual_ratio"`  // of this volume
	// Extents are where, by the samples: 64 at most, in order. Widened says that there
	// were more, and that the nearest of them became one.
	Extents []Extent `json:"extents,omitempty"`
	Widened bool     `json:"extents_widened,omitempty"`
}

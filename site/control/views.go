package control

import "time"

// ServeRequest opens a view.
type ServeRequest struct {
	Group string `json:"group"`
	At    string `json:"at"`
	// Listen is a unix socket's path, or HOST:PORT on loopback; empty: a socket
	// that the site names.
	Listen  string `json:"listen,omitempty"`
	Scratch bool   `json:"scratch,omitempty"` // writable; what is written is forgotten with the view
	Lease   bool   `json:"lease,omitempty"`   // the view ends with the caller
}

// View is a point that is being served.
type View struct {
	ID      string    `json:"id"`
	Group   string    `json:"group"`
	At      string    `json:"at"`
	Point   Point     `json:"point"`
	Scratch bool      `json:"scratch"`
	Listen  string    `json:"listen"`
	Since   time.Time `json:"since"`
	Exports []Export  `json:"exports"`
}

// Export is one volume of a view.
type Export struct {
	Volume string `json:"volume"`
	Size   int64  `json:"size_bytes"`
	URI    string `json:"uri"`
}

// RestoreRequest writes volumes of a point to files.
type RestoreRequest struct {
	Group  string `json:"group"`
	At     string `json:"at"`
	Volume string `json:"volume,omitempty"` // empty: all of the group
	// To is the target file when Volume is given or the group has one volume,
	// else a directory that gets VOLUME.raw files.
	To        string `json:"to"`
	Format    string `json:"format"` // raw, sparse, qcow2
	Overwrite bool   `json:"overwrite,omitempty"`
}

// Formats of restored files.
const (
	FormatRaw    = "raw"    // every byte allocated
	FormatSparse = "sparse" // raw with holes for zeros
	FormatQCOW2  = "qcow2"  // through qemu-img
)

// Restored tells what a restore wrote.
type Restored struct {
	Group   string         `json:"group"`
	At      string         `json:"at"`
	Point   Point          `json:"point"`
	Files   []RestoredFile `json:"files"`
	Seconds float64        `json:"seconds"`
}

// RestoredFile is one volume's file. It was read back and compared.
type RestoredFile struct {
	Volume   string `json:"volume"`
	Path     string `json:"path"`
	Format   string `json:"format"`
	Bytes    int64  `json:"bytes"`      // of the volume
	Data     int64  `json:"data_bytes"` // of it not zero
	SHA256   string `json:"sha256"`     // of the volume's content
	Verified bool   `json:"verified"`
}

// Progress of a verb that takes long.
type Progress struct {
	Step  string `json:"step"`
	Done  int64  `json:"bytes_done"`
	Total int64  `json:"bytes_total"`
	Unit  string `json:"unit,omitempty"` // of Done and Total where they are no bytes: ms, steps
	// Remaining is an estimate; absent while unknown.
	Remaining *float64 `json:"seconds_remaining,omitempty"`
}

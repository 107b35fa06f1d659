package control

import (
	"context"
	"time"
)

// VerifyRequest asks for a scrub of a group's journal.
type VerifyRequest struct {
	Group          string `json:"group"`
	Repair         bool   `json:"repair,omitempty"`           // what is damaged, with a peer's frames
	From           string `json:"from,omitempty"`             // the peer; empty: all, one after the other
	BytesPerSecond int64  `json:"bytes_per_second,omitempty"` // read at most; 0: as fast as the disk
}

// Verified is what a scrub found, and what a repair did about it.
type Verified struct {
	Group   string          `json:"group"`
	Time    time.Time       `json:"time"`
	Seconds float64         `json:"seconds"`
	Bytes   int64           `json:"bytes"`
	Found   []Damage        `json:"found"`
	Repairs []Repair        `json:"repairs,omitempty"`
	Left    []Damage        `json:"left"`    // found and not mended
	Invalid []InvalidPoints `json:"invalid"` // what of the current history that spoils
}

// Damage is bytes of a file that are not as they were written.
type Damage struct {
	Volume string `json:"volume,omitempty"` // its name, where one volume is meant
	Epoch  string `json:"epoch,omitempty"`
	First  uint64 `json:"first,omitempty"` // records
	Last   uint64 `json:"last,omitempty"`
	File   string `json:"file"`
	Offset int64  `json:"offset"`
	What   string `json:"what"`
	Mended bool   `json:"mended,omitempty"` // from what verifies here
}

// Repair is what one peer gave.
type Repair struct {
	Peer   string `json:"peer"`
	Files  int    `json:"files"`
	Frames int    `json:"frames"`
	Bytes  int64  `json:"bytes"`
	Error  string `json:"error,omitempty"`
}

// InvalidPoints are points whose image is made of damaged bytes.
type InvalidPoints struct {
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
	Why   string `json:"why"`
}

// RecoverRequest asks to open a journal of which durable records are lost.
type RecoverRequest struct {
	Group  string `json:"group"`
	DryRun bool   `json:"dry_run,omitempty"`
}

// Recovered is what an acceptance of a loss did, or would.
type Recovered struct {
	Group  string   `json:"group"`
	DryRun bool     `json:"dry_run,omitempty"`
	Why    string   `json:"why,omitempty"` // it does not open; empty: it opens
	Head   uint64   `json:"head"`          // the last record that is left
	Kept   []string `json:"kept"`          // files of cut bytes, or as they were
	// SiteLog says that it is the site log of which entries are lost, and no record;
	// Older is which of its values may be of an earlier time.
	SiteLog bool     `json:"site_log,omitempty"`
	Older   []string `json:"older,omitempty"`
}

// Verify implements API.
func (c *Client) Verify(ctx context.Context, q VerifyRequest, progress func(Progress)) (r Verified, err error) {
	return r, c.follow(ctx, "/v1/verify", q, each(progress), &r)
}

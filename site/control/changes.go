package control

import (
	"context"
	"net/http"
)

// ChangesRequest asks what changed between two points.
type ChangesRequest struct {
	Group string `json:"group"`
	From  string `json:"from"` // as --at; or name:PIN of a diff pin
	To    string `json:"to"`
	// Volume is the one that is asked about; empty: all of the group.
	Volume string `json:"volume,omitempty"`
}

// Changes are the extents that may differ between two points. None that differs is
// missing; within thinned history some may be named that do not.
type Changes struct {
	Group   string         `json:"group"`
	From    Point          `json:"from"`
	To      Point          `json:"to"`
	Bytes   int64          `json:"bytes"`
	Thinned bool           `json:"thinned,omitempty"` // one of the points, or what is between, was thinned: more may be named than differs
	Volumes []VolumeChange `json:"volumes"`
}

// VolumeChange is one volume's part.
type VolumeChange struct {
	Volume  string   `json:"volume"`
	Size    int64    `json:"size_bytes"`
	Bytes   int64    `json:"bytes"`
	Extents []Extent `json:"extents"`
}

// Extent is a range of a volume, in bytes.
type Extent struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

// Changes implements API.
func (c *Client) Changes(ctx context.Context, q ChangesRequest) (r Changes, err error) {
	return r, c.call(ctx, http.MethodPost, "/v1/changes", q, &r)
}

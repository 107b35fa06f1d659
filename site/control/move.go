package control

import (
	"context"
	"net/http"
)

// Moves is the part of API about where a promoted group's disks lie.
type Moves interface {
	// MoveDisks brings disks that live in the journal alone, since a failover, into
	// images in a directory, while their machine runs.
	MoveDisks(ctx context.Context, q MoveRequest, progress func(Progress)) (Moved, error)
}

// MoveRequest says which disks go where.
type MoveRequest struct {
	Group string `json:"group"`
	To    string `json:"to"` // a directory, absolute; may be empty if all disks have devices
	// Devices are block devices, absolute, that disks go onto instead, by volume name.
	Devices map[string]string `json:"devices,omitempty"`
	// Pivot hands the disks to the machine afterwards: its QEMU has the images open
	// itself, and is tapped.
	Pivot bool `json:"pivot,omitempty"`
}

// Moved tells where they lie.
type Moved struct {
	Group   string        `json:"group"`
	Seconds float64       `json:"seconds"`
	Volumes []MovedVolume `json:"volumes"`
	// Unprotected is why the machine, which has its disks, is not protected yet.
	Unprotected string `json:"unprotected,omitempty"`
}

// MovedVolume is one disk.
type MovedVolume struct {
	Volume string  `json:"volume"`
	Image  string  `json:"image"`
	Bytes  int64   `json:"bytes"`
	Pause  float64 `json:"pause_seconds"` // that its writes waited at the end
	Before bool    `json:"before"`        // it lay there already
	Local  *Local  `json:"local,omitempty"`
}

func (s *Server) moves(m *http.ServeMux) {
	m.HandleFunc("POST /v1/move", s.long(asked(func(ctx context.Context, q MoveRequest) (any, error) {
		return s.api.MoveDisks(ctx, q, func(p Progress) { tell(ctx, p) })
	})))
}

// MoveDisks implements API.
func (c *Client) MoveDisks(ctx context.Context, q MoveRequest, progress func(Progress)) (r Moved, err error) {
	return r, c.follow(ctx, "/v1/move", q, each(progress), &r)
}

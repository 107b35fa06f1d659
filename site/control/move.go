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
	// HomeDisks tells which disks a captured domain would come home to, and takes a
	// person's word that others than it ran with are its own now.
	HomeDisks(ctx context.Context, q HomeRequest) (Home, error)
}

// HomeRequest asks where a group comes home to.
type HomeRequest struct {
	Group string `json:"group"`
	// Disks are the domain's from now on, and may be overwritten when it comes home: the
	// path that its definition names, by volume name. Empty: nothing is changed.
	Disks    map[string]string `json:"disks,omitempty"`
	DryRun   bool              `json:"dry_run,omitempty"` // judge Disks, and remember nothing
	Operator string            `json:"operator,omitempty"`
}

// Home tells which disks are written to when the group is handed to this site.
type Home struct {
	Group  string     `json:"group"`
	Domain string     `json:"domain"`
	Disks  []HomeDisk `json:"disks"`
}

// HomeDisk is one of them.
type HomeDisk struct {
	Volume string `json:"volume"`
	// Ran is what the domain ran from when it was captured here last, or what somebody has
	// said since that it is; empty: that is not known. Named is what its definition names.
	Ran         string `json:"ran,omitempty"`
	RanFormat   string `json:"ran_format,omitempty"`
	Named       string `json:"named"`
	NamedFormat string `json:"named_format"`
	// Refused: a way home is, for Named is not known to be the domain's.
	Refused bool `json:"refused"`
	Said    bool `json:"said"` // by this request
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
	s.route(m, "POST /v1/home", asked(func(ctx context.Context, q HomeRequest) (any, error) { return s.api.HomeDisks(ctx, q) }))
}

// MoveDisks implements API.
func (c *Client) MoveDisks(ctx context.Context, q MoveRequest, progress func(Progress)) (r Moved, err error) {
	return r, c.follow(ctx, "/v1/move", q, each(progress), &r)
}

// HomeDisks implements API.
func (c *Client) HomeDisks(ctx context.Context, q HomeRequest) (h Home, err error) {
	return h, c.call(ctx, http.MethodPost, "/v1/home", q, &h)
}

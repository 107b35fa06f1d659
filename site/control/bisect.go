package control

import (
	"context"
	"net/http"
	"time"
)

// BisectRequest begins or goes on with the search for the first bad point of a group,
// which its caller checks: one at a time. A search of the same bounds and check that
// was begun is gone on with.
type BisectRequest struct {
	Group  string `json:"group"`
	Good   string `json:"good"`
	Bad    string `json:"bad"`
	Check  string `json:"check"`            // for people, and to tell searches apart
	Volume string `json:"volume,omitempty"` // likewise
	// Restart forgets what was tried.
	Restart bool `json:"restart,omitempty"`
	// Tried is what the check said of the point that was to be tried.
	Tried *BisectTry `json:"tried,omitempty"`
}

// BisectTry is one point and what the check said of it.
type BisectTry struct {
	Point   Point   `json:"point"`
	Verdict string  `json:"verdict"` // good, bad, skip
	Exit    int     `json:"exit"`
	Seconds float64 `json:"seconds"`
}

// Bisection is where a search stands.
type Bisection struct {
	Group    string      `json:"group"`
	Good     Point       `json:"good"`
	Bad      Point       `json:"bad"`
	Check    string      `json:"check"`
	Volume   string      `json:"volume,omitempty"`
	Since    time.Time   `json:"since"`
	Resumed  bool        `json:"resumed,omitempty"` // some were tried before
	Tries    []BisectTry `json:"tries"`
	LastGood Point       `json:"last_good"`
	FirstBad Point       `json:"first_bad"`
	Next     *Point      `json:"next,omitempty"` // to be tried
	Between  uint64      `json:"points_between"` // that may be tried still
	Left     int         `json:"tries_left"`     // at most
	// Exact: the record of FirstBad did it. Else Why says what lies between the two.
	Exact bool   `json:"exact"`
	Why   string `json:"why,omitempty"`
}

// Bisect implements API.
func (c *Client) Bisect(ctx context.Context, q BisectRequest) (b Bisection, err error) {
	return b, c.call(ctx, http.MethodPost, "/v1/bisect", q, &b)
}

package control

import (
	"context"
	"net/http"
	"time"
)

// PauseRequest leaves the machine of a group alone for a while. It may be asked
// again to change how long.
type PauseRequest struct {
	Group   string  `json:"group"`
	Seconds float64 `json:"seconds"`
	Reason  string  `json:"reason"`
}

// ResumeRequest ends a pause early.
type ResumeRequest struct {
	Group string `json:"group"`
}

// Paused is a time without protection that somebody asked for.
type Paused struct {
	Since  time.Time `json:"since"`
	Until  time.Time `json:"until"` // then it resumes by itself
	Reason string    `json:"reason"`
}

// Pause implements API.
func (c *Client) Pause(ctx context.Context, q PauseRequest) (p Paused, err error) {
	return p, c.call(ctx, http.MethodPost, "/v1/pause", q, &p)
}

// Resume implements API.
func (c *Client) Resume(ctx context.Context, q ResumeRequest) (p Paused, err error) {
	return p, c.call(ctx, http.MethodPost, "/v1/resume", q, &p)
}

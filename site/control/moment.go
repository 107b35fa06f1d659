package control

import (
	"context"
	"net/http"
)

// Moments is the part of API about finding a moment and going back to it.
type Moments interface {
	// PlanRewind says what a rewind would do and give up; Rewind rolls the group back
	// in place, and returns when its disks are served again.
	PlanRewind(ctx context.Context, q RewindRequest) (RewindPlan, error)
	Rewind(ctx context.Context, q RewindRequest, progress func(Progress)) (Rewound, error)
	// Changes lists where volumes differ between two points.
	Changes(ctx context.Context, q ChangesRequest) (Changes, error)
	// Bisect begins or goes on with the search for the first bad point, and says which
	// is to be tried next.
	Bisect(ctx context.Context, q BisectRequest) (Bisection, error)
}

// moments routes what Moments is asked.
func (s *Server) moments(m *http.ServeMux) {
	s.route(m, "POST /v1/rewind/plan", asked(func(ctx context.Context, q RewindRequest) (any, error) { return s.api.PlanRewind(ctx, q) }))
	m.HandleFunc("POST /v1/rewind", s.long(asked(func(ctx context.Context, q RewindRequest) (any, error) {
		return s.api.Rewind(ctx, q, func(p Progress) { tell(ctx, p) })
	})))
	s.route(m, "POST /v1/changes", asked(func(ctx context.Context, q ChangesRequest) (any, error) { return s.api.Changes(ctx, q) }))
	s.route(m, "POST /v1/bisect", asked(func(ctx context.Context, q BisectRequest) (any, error) { return s.api.Bisect(ctx, q) }))
}

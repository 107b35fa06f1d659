package site

import (
	"context"
	"time"

	"github.com/novacron/afterimage/site/control"
)

// scheduleMarks sets an application mark every so often, if the configuration asks for
// that. One that cannot be set is logged, and the next has its turn; the time that one
// takes is the next one's, so that a guest is never asked twice at once.
func (l *life) scheduleMarks(ctx context.Context) {
	if l.cfg.Quiesce == nil || l.cfg.Quiesce.Every <= 0 {
		return
	}
	tick := time.NewTicker(time.Duration(l.cfg.Quiesce.Every))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		// To the millisecond: two of them never share a name.
		name := "app-" + l.site.o.Now().UTC().Format("20060102T150405.000Z")
		_, err := l.site.Mark(ctx, control.MarkRequest{Group: l.cfg.Ref(), Name: name, App: true, Note: "scheduled"})
		if err != nil && ctx.Err() == nil {
			l.site.o.Log.Warn("no application mark", "group", l.cfg.Ref(), "name", name, "err", err)
		}
	}
}

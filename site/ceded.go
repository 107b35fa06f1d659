package site

import (
	"fmt"

	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/control"
)

// A site that has ceded a group runs nothing until the taker has said what became of it:
// it may reign already, unheard. When it answers again all goes on by itself. If it never
// will, a person has to say so, by a forced failover; nothing else ends it.

// awayError is a handover that was ceded to a peer that has not answered since. It goes on.
type awayError struct {
	to     string
	why    error // of the last question; may be nil
	advice string
}

func (e *awayError) Error() string {
	text := fmt.Sprintf("the group was ceded to %s, which has not answered since", e.to)
	if e.why != nil {
		text += ": " + e.why.Error()
	}
	return text
}

func (e *awayError) Unwrap() error { return e.why }

func (l *life) cededText(h *recovery.Handover) string {
	return fmt.Sprintf("the group is ceded to %s since %s and nobody here may write until %s says whether it took it", h.To, h.Since.Format(timeLayout), h.To)
}

func (l *life) cededAdvice(h *recovery.Handover) string {
	return fmt.Sprintf("When %s is back it takes over, or this site goes on, by itself. Only if %s is lost for good: afterimage failover unplanned %s --at latest --force, here; then %s must never run the group again.",
		h.To, h.To, l.cfg.Ref(), h.To)
}

// cededNotices tell at the ceding site that nobody may run the group.
func (l *life) cededNotices() []control.Notice {
	r := l.roleNow()
	if r.Stage() != recovery.StageCeded {
		return nil
	}
	return []control.Notice{{Level: control.Alarm, Text: l.cededText(r.Handover), Hint: l.cededAdvice(r.Handover)}}
}

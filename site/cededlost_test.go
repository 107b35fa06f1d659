package site

import (
	"context"
	"strings"
	"testing"

	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// The taker is lost for good after the group was ceded to it: whoever asked is told, and
// so is everybody who looks, that only a forced failover ends it; and that does.
func TestACededGroupWhoseTakerIsLostSaysWhatEndsIt(t *testing.T) {
	t.Parallel()
	w, ctx := newWorld(t), context.Background()
	a, b := levelPair(w)
	a.stop()
	b.stop()
	j := w.offline(a.cfg)
	r, _, err := recovery.RecallReign(j)
	if err == nil {
		r, err = r.Drain(recovery.Handover{To: "b", Operator: "tester", Since: a.o.Now()})
	}
	if err == nil {
		r, err = r.Cede(j.Head().Durable, 1, a.o.Now())
	}
	mustRemember(t, j, r, err)
	j.close()
	a = w.run(a.cfg)
	const how = "failover unplanned default/web --at latest --force"
	await(t, "the status says what ends it", func() bool {
		for _, n := range a.groupLine("web").Notices {
			if n.Level == control.Alarm && strings.Contains(n.Text, "ceded to b") && strings.Contains(n.Hint, how) {
				return true
			}
		}
		return false
	})
	_, err = a.PlanHandover(ctx, control.HandoverRequest{Group: "web"})
	if !fault.Is(err, fault.HandoverTrouble) || !strings.Contains(err.Error(), "ceded to b") || !strings.Contains(fault.Of(err).Advice(), how) {
		t.Errorf("a handover of what was ceded: %v", err)
	}
	if _, err := a.Failover(ctx, control.FailoverRequest{Group: "web", At: "latest"}, quietly); !fault.Is(err, fault.NotFenced) {
		t.Errorf("without force: %v", err)
	}
	failOver(t, a, control.FailoverRequest{})
	a.awaitRole("web", recovery.Uncommitted, control.StateSynced)
	a.reads("web/root", 0x11, 0, 4096)
	decide(t, a, control.VerbCommit, "")
	a.write("web/root", 0x12, 0, 512)
	if n := a.groupLine("web").Notices; strings.Contains(textOfNotices(n), "ceded") {
		t.Errorf("it is still said: %+v", n)
	}
}

func textOfNotices(ns []control.Notice) string {
	var b strings.Builder
	for _, n := range ns {
		b.WriteString(n.Text + "\n")
	}
	return b.String()
}

// A taker that has ceded's word and no answer yet is told of to who waits, with the way out.
func TestAHandoverThatIsNotAnsweredTellsWhoWaits(t *testing.T) {
	err := &awayError{to: "b", why: errAway, advice: "wait"}
	if text := err.Error(); !strings.Contains(text, "ceded to b, which has not answered") || !strings.Contains(text, errAway.Error()) {
		t.Error(text)
	}
}

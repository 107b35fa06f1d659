package site

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/site/fault"
)

// An --at beyond history or inside a gap is refused, and the points next to it are
// offered, on both sides where there are any.
func TestNearestPointsAreOffered(t *testing.T) {
	ctx := t.Context()
	var mu sync.Mutex
	start := time.Now().Add(-24 * time.Hour).Truncate(time.Second)
	now := start
	step := func(d time.Duration) { mu.Lock(); now = now.Add(d); mu.Unlock() }
	j, err := journal.Open(t.TempDir(), journal.Options{Create: &journal.Identity{Tenant: cbt.NewID(), Group: cbt.NewID(), Stream: cbt.NewID()},
		Now: func() time.Time { mu.Lock(); defer mu.Unlock(); return now }})
	if err != nil {
		t.Fatal(err)
	}
	run, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- j.Run(run) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := j.Close(); err != nil {
			t.Error(err)
		}
	}()
	w, err := awaited{j}.BeginEpoch(ctx, "a", journal.Position{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	v := cbt.Volume{ID: cbt.VolumeID(cbt.NewID()), Name: "root", Size: 1 << 20}
	if err := w.AddVolume(ctx, v); err != nil {
		t.Fatal(err)
	}
	record := func(ev cbt.Event) journal.Seq {
		t.Helper()
		step(time.Minute)
		p, err := w.Record(ctx, ev)
		if err == nil {
			err = p.Wait(ctx)
		}
		if err != nil {
			t.Fatal(err)
		}
		return j.Head().Seq
	}
	write := cbt.Event{Kind: cbt.EventWrite, Volume: v.ID, Data: make([]byte, 4096), Extent: cbt.Extent{Length: 4096}}
	record(cbt.Event{Kind: cbt.EventSynced, Volume: v.ID})
	before := record(write)
	gap := record(cbt.Event{Kind: cbt.EventGap, Volume: v.ID, Cause: cbt.CauseStall})
	inside := record(write)
	after := record(cbt.Event{Kind: cbt.EventSynced, Volume: v.ID})
	last := record(write)
	when := func(minutes int) string { return start.Add(time.Duration(minutes) * time.Minute).Format(time.RFC3339) }
	both := []string{fmt.Sprintf("before it #1.%d of", before), fmt.Sprintf("after it #1.%d of", after)}
	for at, want := range map[string][]string{
		fmt.Sprintf("#%d", gap):    both,
		fmt.Sprintf("#%d", inside): both,
		when(3):                    both,
		when(4):                    both,
		"#1":                       {"after it #1."},
		when(-60):                  {"after it #1."},
		"-52w":                     {"after it #1."},
		"#999":                     {fmt.Sprintf("before it #1.%d of", last)},
		"#7.999":                   {fmt.Sprintf("before it #1.%d of", last)},
		when(60):                   {fmt.Sprintf("before it #1.%d of", last)}, // in the future
	} {
		_, err := resolve(ctx, j, at)
		f := fault.Of(err)
		if f == nil || f.Code != fault.PointUnknown || f.Exit() != fault.ExitNotFound {
			t.Errorf("%s: %v", at, err)
			continue
		}
		for _, text := range want {
			if !strings.Contains(f.Advice(), text) {
				t.Errorf("%s: %q is not in: %s", at, text, f.Advice())
			}
		}
		if len(want) == 1 && strings.Contains(f.Advice(), "before it") && strings.Contains(f.Advice(), "after it") {
			t.Errorf("%s: more is offered than there is: %s", at, f.Advice())
		}
	}
	step(time.Hour)
	if p, err := resolve(ctx, j, when(60)); err != nil || p.Seq != last { // later than all of it: the newest
		t.Errorf("%v, %v", p, err)
	}
}

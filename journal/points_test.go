package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/novacron/afterimage/cbt"
)

func TestSpansOf(t *testing.T) {
	a, b := cbt.VolumeID{1}, cbt.VolumeID{2}
	one := Lineage{{epochID('a'), 1, 1, 50}}
	two := Lineage{{epochID('a'), 1, 1, 20}, {epochID('b'), 2, 21, 50}}
	at := func(s Seq, k Kind, v cbt.VolumeID) turn {
		i, _ := two.Owner(s)
		return turn{seq: s, kind: k, in: i, volume: v}
	}
	gap := func(s Seq, v cbt.VolumeID) turn {
		x := at(s, KindGap, v)
		x.gap.Cause = cbt.CauseStall
		return x
	}
	joins := func(s Seq, v cbt.VolumeID) turn {
		x := at(s, KindVolume, v)
		x.joins = true
		return x
	}
	left := func(s Seq, v cbt.VolumeID) turn {
		x := at(s, KindVolume, v)
		x.left = true
		return x
	}
	for _, c := range []struct {
		name  string
		l     Lineage
		turns []turn
		want  []string // first-last, volumes, how it ends
	}{
		{"nothing", nil, nil, nil},
		{"never synced", one, []turn{at(1, KindEpoch, a), at(2, KindVolume, a)}, nil},
		{"one volume", one, []turn{at(2, KindVolume, a), at(5, KindSynced, a)}, []string{"5-50 1 open"}},
		{"a group waits for its last volume", one, []turn{at(2, KindVolume, a), at(3, KindVolume, b), at(5, KindSynced, a), at(9, KindSynced, b)}, []string{"9-50 2 open"}},
		{"a gap ends it", one, []turn{at(2, KindVolume, a), at(5, KindSynced, a), gap(9, a)}, []string{"5-8 1 stall"}},
		{"a gap at once leaves nothing", one, []turn{at(2, KindVolume, a), at(5, KindSynced, a), gap(5, a)}, nil},
		{"and it opens again", one, []turn{at(2, KindVolume, a), at(5, KindSynced, a), gap(9, a), at(12, KindSynced, a)}, []string{"5-8 1 stall", "12-50 1 open"}},
		{"one volume's gap is the group's", one, []turn{at(2, KindVolume, a), at(3, KindVolume, b), at(5, KindSynced, a), at(6, KindSynced, b), gap(9, a), at(12, KindSynced, a)}, []string{"6-8 2 stall", "12-50 2 open"}},
		{"a joining disk opens no gap", one, []turn{at(2, KindVolume, a), at(5, KindSynced, a), at(7, KindVolume, b), gap(8, b), at(12, KindSynced, b)}, []string{"5-11 1 ", "12-50 2 open"}},
		{"nobody waits for one that joins in a gap", one, []turn{at(2, KindVolume, a), joins(3, b), at(5, KindSynced, a), gap(9, a), at(12, KindSynced, a), at(20, KindSynced, b)}, []string{"5-8 1 stall", "12-19 1 ", "20-50 2 open"}},
		{"it is a member once it was synced", two, []turn{at(2, KindVolume, a), at(5, KindSynced, a), joins(7, b), at(9, KindSynced, b), at(21, KindEpoch, a), at(25, KindSynced, a), at(30, KindSynced, b)}, []string{"5-8 1 ", "9-20 2 opening", "30-50 2 open"}},
		{"a leaving disk opens no gap", one, []turn{at(2, KindVolume, a), at(3, KindVolume, b), at(5, KindSynced, a), at(6, KindSynced, b), left(9, b), gap(10, b)}, []string{"6-8 2 ", "9-50 1 open"}},
		{"one that leaves in a gap is not waited for", one, []turn{at(2, KindVolume, a), at(3, KindVolume, b), at(5, KindSynced, a), at(6, KindSynced, b), gap(9, b), left(12, b)}, []string{"6-8 2 stall", "12-50 1 open"}},
		{"nor is one that was never synced", one, []turn{at(2, KindVolume, a), at(3, KindVolume, b), at(5, KindSynced, a), left(8, b)}, []string{"8-50 1 open"}},
		{"one that leaves before it was synced changes nothing", one, []turn{at(2, KindVolume, a), at(5, KindSynced, a), joins(7, b), left(9, b)}, []string{"5-50 1 open"}},
		{"the last one that leaves ends it", one, []turn{at(2, KindVolume, a), at(5, KindSynced, a), left(9, a)}, []string{"5-8 1 "}},
		{"and one that comes back is waited for by nobody", two, []turn{at(2, KindVolume, a), at(3, KindVolume, b), at(5, KindSynced, a), at(6, KindSynced, b), left(9, b), joins(11, b), at(21, KindEpoch, a), at(25, KindSynced, a), at(30, KindSynced, b)}, []string{"6-8 2 ", "9-20 1 opening", "25-29 1 ", "30-50 2 open"}},
		{"an opening ends it", two, []turn{at(2, KindVolume, a), at(5, KindSynced, a), at(21, KindEpoch, a)}, []string{"5-20 1 opening"}},
		{"and it needs all volumes again", two, []turn{at(2, KindVolume, a), at(3, KindVolume, b), at(5, KindSynced, a), at(6, KindSynced, b), at(21, KindEpoch, a), at(25, KindSynced, a), at(30, KindSynced, b)}, []string{"6-20 2 opening", "30-50 2 open"}},
		{"synced twice", one, []turn{at(2, KindVolume, a), at(5, KindSynced, a), at(9, KindSynced, a)}, []string{"5-8 1 ", "9-50 1 open"}},
		{"a gap of a volume that is not synced", one, []turn{at(2, KindVolume, a), gap(4, a), at(5, KindSynced, a)}, []string{"5-50 1 open"}},
	} {
		var got []string
		for _, s := range spansOf(c.l, c.turns, nil, false) {
			end := string(s.Ended)
			if s.Open {
				end = "open"
			}
			got = append(got, fmt.Sprintf("%d-%d %d %s", s.First.Seq, s.Last.Seq, len(s.Volumes), end))
		}
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// clock is a wall clock that tests move, back as well.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.now }
func (c *clock) step(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// Times are labels that never go back: equal ones name the newest record, a gap
// has none, and a clock that steps back opens no hole.
func TestResolve(t *testing.T) {
	c := &clock{now: fixedTime}
	o := Options{FS: vfs.NewMem(), Create: newIdentity(), Now: c.Now}
	j := start(t, "j", o)
	v := volume("a", 64<<10)
	w := beginWith(t, j.Journal, v)
	put1 := func() Seq { return put(t, w, v, 0, bytes.Repeat([]byte{1}, 512)) }
	at := func(d time.Duration) string { return fixedTime.Add(d).UTC().Format(time.RFC3339Nano) }
	expect := func(text string, want Seq) {
		t.Helper()
		p, err := resolve(t, j.Journal, text)
		if err != nil || p.Seq != want {
			t.Errorf("%s is record %d, want %d: %v", text, p.Seq, want, err)
		}
	}
	none := func(text string, before Seq) {
		t.Helper()
		_, err := resolve(t, j.Journal, text)
		var no *NoPointError
		if !errors.As(err, &no) || no.At != text || no.Why == "" {
			t.Errorf("%s: %v, want no point and why", text, err)
		} else if (no.Before == nil) != (before == 0) || no.Before != nil && no.Before.Seq != before {
			t.Errorf("%s: before it %v, want %d", text, no.Before, before)
		}
	}
	c.step(time.Second)
	put1()
	same := put1() // at the same time
	c.step(time.Second)
	m, err := w.Mark(soon(t), Mark{Name: "before-attack", App: true})
	if err != nil {
		t.Fatal(err)
	}
	c.step(-time.Hour) // stepped back: labels stand still
	back := put1()
	c.step(time.Hour + time.Second)
	last := put1()
	expect(at(time.Second), same)
	expect(at(1500*time.Millisecond), same)
	expect(at(2*time.Second), back)
	expect(at(3*time.Second), last)
	expect("latest", last)
	expect(at(30*time.Second), last) // another machine's clock may be ahead
	none(at(time.Hour), last)
	expect("-0s", last)
	expect("-1s", back)
	expect("latest-app", m.Seq)
	expect("name:before-attack", m.Seq)
	expect("before:before-attack", m.Seq-1)
	expect(fmt.Sprintf("#%d", same), same)
	expect(fmt.Sprintf("#1.%d", same), same)
	none("#999", 0)
	none("#7.1", 0)
	none("name:nothing", 0)
	none(at(-time.Hour), 0)
	none("#1", 0)

	c.step(time.Second)
	gap := mustRecord(t, w, cbt.Event{Kind: cbt.EventGap, Volume: v.ID, Cause: cbt.CauseStall, Detail: "500ms"})
	inGap := put1()
	if _, err := w.Mark(soon(t), Mark{Name: "in the gap"}); !errors.Is(err, ErrNoPoint) {
		t.Errorf("a mark in a gap: %v", err)
	}
	c.step(time.Second)
	mustRecord(t, w, cbt.Event{Kind: cbt.EventSynced, Volume: v.ID})
	after := put1()
	none(fmt.Sprintf("#%d", gap), gap-1)
	none(fmt.Sprintf("#%d", inGap), gap-1)
	none(at(4*time.Second), gap-1)
	none("name:in the gap", gap-1)
	expect("before:in the gap", gap-1)
	expect("latest", after)
	spans, err := j.Spans(soon(t))
	if err != nil || len(spans) != 2 || spans[0].Ended != cbt.CauseStall || spans[0].Detail != "500ms" || !spans[1].Open {
		t.Errorf("spans %+v, %v", spans, err)
	}

	// A fork: the old branch stays readable by its epoch's number, the current
	// lineage goes round it.
	w2, err := j.BeginEpoch(soon(t), "b", Position{w.epoch.ID, m.Seq}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Record(soon(t), cbt.Event{Kind: cbt.EventSynced, Volume: v.ID}); !errors.Is(err, ErrFenced) {
		t.Errorf("the old writer: %v", err)
	}
	expect(fmt.Sprintf("#1.%d", after), after)
	expect("latest", m.Seq)
	none(fmt.Sprintf("#%d", m.Seq+1), m.Seq)
	w = w2
	mustRecord(t, w, cbt.Event{Kind: cbt.EventSynced, Volume: v.ID})
	newest := put1()
	expect("latest", newest)
	expect(fmt.Sprintf("#2.%d", newest), newest)
	expect("name:before-attack", m.Seq)
	none("name:in the gap", 0)
	j.close()
	j = start(t, "j", o)
	defer j.close()
	expect("latest", newest)
	expect(fmt.Sprintf("#1.%d", after), after)
}

// A failed or refused BeginEpoch leaves a replica a replica and the head where it was.
func TestBeginEpochThatFails(t *testing.T) {
	j := start(t, "j", Options{FS: vfs.NewMem(), Create: newIdentity()})
	defer j.close()
	if _, err := j.BeginEpoch(soon(t), "a", Position{EpochID{9}, 4}, 0); err == nil {
		t.Fatal("an unknown parent was taken")
	}
	if j.writer != nil {
		t.Fatal("no epoch began, and a writer is in charge")
	}
	v := volume("a", 64<<10)
	w := beginWith(t, j.Journal, v)
	before := j.Head()
	if _, err := j.BeginEpoch(soon(t), "a", Position{w.epoch.ID, 99}, 0); err == nil {
		t.Fatal("a parent beyond the head was taken")
	}
	if _, err := w.Record(soon(t), cbt.Event{Kind: cbt.EventSynced, Volume: v.ID}); !errors.Is(err, ErrFenced) {
		t.Fatalf("earlier writers are fenced before it begins: %v", err)
	}
	if j.Head().Position != before.Position {
		t.Fatal("the head moved")
	}
	if err := j.WaitDurable(soon(t), Position{EpochID{9}, 4}); !errors.Is(err, ErrUnknownParent) {
		t.Fatalf("a record of an unknown epoch is durable: %v", err)
	}
}

// Shrinking and growing a volume brings nothing back; readers at Close are waited
// for or refused.
func TestResizeAndClose(t *testing.T) {
	j := start(t, "j", Options{FS: vfs.NewMem(), Create: newIdentity()})
	v := volume("a", 64<<10)
	w := beginWith(t, j.Journal, v)
	full := Position{w.epoch.ID, put(t, w, v, 0, bytes.Repeat([]byte{1}, 64<<10))}
	for _, size := range []int64{8 << 10, 64 << 10} {
		v.Size = size
		if err := w.AddVolume(soon(t), v); err != nil {
			t.Fatal(err)
		}
	}
	b := make([]byte, v.Size)
	if err := w.ReadHead(soon(t), v.ID, 0, b); err != nil || b[8191] != 1 || b[8192] != 0 || b[65535] != 0 {
		t.Fatalf("after a resize there is %d, %d, %d: %v", b[8191], b[8192], b[65535], err)
	}
	if b, err := readAs(t, j.Journal, full, v); err != nil || b[65535] != 1 {
		t.Fatalf("before it there is %d: %v", b[65535], err)
	}
	view, err := j.View(soon(t), Point{Position: full})
	if err != nil {
		t.Fatal(err)
	}
	st, err := j.Stream(soon(t), j.Head().Position)
	if err != nil {
		t.Fatal(err)
	}
	ended, reading := make(chan error, 1), make(chan error, 1)
	go func() { _, err := st.Next(context.Background()); ended <- err }()
	go func() {
		b := make([]byte, v.Size)
		for {
			if err := view.ReadAt(context.Background(), v.ID, b, 0); err != nil {
				reading <- err
				return
			}
		}
	}()
	j.close()
	if err := <-ended; !errors.Is(err, ErrClosed) {
		t.Errorf("a stream at close: %v", err)
	}
	if err := <-reading; !errors.Is(err, ErrClosed) {
		t.Errorf("a view at close: %v", err)
	}
}

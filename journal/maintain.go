package journal

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// Maintenance is what one call of Maintain is asked to do.
type Maintenance struct {
	Retention
	References []Reference // beside pins and open views, which the journal knows itself
	Now        time.Time   // zero: Options.Now
	// BytesPerSecond bounds what is read and written for it; 0: no bound.
	BytesPerSecond int64
	// FoldBytes is how much history that may be folded must have gathered before it
	// is: the larger, the fewer bytes are written in a journal's life. 0: 1 GiB, or
	// a quarter of the quota where that is less.
	FoldBytes int64
	// Progress, if not nil, is told what is being done and how far it is, in bytes.
	Progress func(stage string, done, total int64)
}

// Maintained is what one call of Maintain did, and how the journal stands after it.
type Maintained struct {
	Folded  int64 // bytes of segments that were rewritten into runs
	Merged  int64 // bytes of runs that were rewritten into others
	Written int64 // bytes of the runs that were made of both
	Freed   int64 // bytes of segments and runs that were given back
	Usage
}

// Usage is what a journal's history takes on disk, and how far back it goes.
type Usage struct {
	Segments     int    `json:"segments"` // files
	Runs         int    `json:"runs"`
	SegmentBytes int64  `json:"segment_bytes"`
	RunBytes     int64  `json:"run_bytes"`
	PoolBytes    int64  `json:"pool_bytes"`       // free files, for segments to come; not in Used
	Used         int64  `json:"used"`             // both; what the quota is compared with
	Quota        int64  `json:"quota,omitempty"`  // 0: none
	Oldest       *Point `json:"oldest,omitempty"` // point; nil when there is none
	// FramesFrom is the first record that can still be streamed as it was written.
	FramesFrom Position `json:"frames_from"`
	// Warning says which of Retention.WarnAt Used has passed; "" for none.
	Warning string `json:"warning,omitempty"`
}

// Usage tells what the history takes on disk, by the quota of Options.
func (j *Journal) Usage() Usage {
	j.mu.Lock()
	defer j.mu.Unlock()
	u := j.usageLocked(j.o.QuotaBytes, nil)
	u.PoolBytes = j.pool.size()
	return u
}

func (j *Journal) usageLocked(quota int64, warnAt []int) Usage {
	u := Usage{SegmentBytes: j.bytes, Used: j.bytes, Quota: quota}
	at := slices.Sorted(slices.Values(warnAt))
	for _, w := range at {
		if quota > 0 && u.Used/100*100 >= quota/100*int64(w) && u.Used > 0 {
			u.Warning = fmt.Sprintf("history takes %d %% of its quota", u.Used*100/quota)
		}
	}
	return u
}

// references is what keeps points and frames now: those of m, the pins, the views.
func (j *Journal) references(m Maintenance) ([]Reference, error) {
	refs := slices.Clone(m.References)
	pins, err := j.Pins()
	if err != nil {
		return nil, err
	}
	for _, p := range pins {
		if !p.Diff {
			refs = append(refs, Reference{Kind: ReferencePin, Name: p.Name, At: p.At})
		}
	}
	return append(refs, j.openViews()...), nil
}

// Maintain thins the history by the ladder: it folds what every reference allows
// into runs, merges runs, and gives back segments and runs that nothing needs. It
// works beside everything else; a second call at the same time is ErrBusy. What it
// was doing when ctx ends, or the process dies, the next call or opening finishes
// or takes back: no point that is kept is ever missing in between.
func (j *Journal) Maintain(ctx context.Context, m Maintenance) (Maintained, error) {
	if err := m.Validate(); err != nil {
		return Maintained{}, fmt.Errorf("maintain journal: %w", err)
	}
	if !j.maintaining.TryLock() {
		return Maintained{}, fmt.Errorf("maintain journal: %w", ErrBusy)
	}
	defer j.maintaining.Unlock()
	if _, err := j.references(m); err != nil {
		return Maintained{}, fmt.Errorf("maintain journal: %w", err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return Maintained{Usage: j.usageLocked(m.QuotaBytes, m.WarnAt)}, ctx.Err()
}

// Points lists the points between two times (zero: no bound), oldest first, and why
// each is kept. Where history is folded these are all there are. Elsewhere every
// record of a Span is a point; of those it lists the first and the last of a span
// and the ones that something else than "every write" keeps or a mark names.
func (j *Journal) Points(ctx context.Context, from, to time.Time) ([]Keep, error) {
	spans, err := j.Spans(ctx)
	if err != nil {
		return nil, fmt.Errorf("list points: %w", err)
	}
	var out []Keep
	for _, s := range spans {
		for _, p := range []Position{s.First, s.Last} {
			pt, err := j.describe(ctx, s, p)
			if err != nil {
				return nil, fmt.Errorf("list points: %w", err)
			}
			if pt.Time.Before(from) || (!to.IsZero() && pt.Time.After(to)) || (len(out) > 0 && out[len(out)-1].Position == p) {
				continue
			}
			out = append(out, Keep{pt, []string{everyWrite}})
		}
	}
	return out, nil
}

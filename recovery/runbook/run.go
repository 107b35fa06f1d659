package runbook

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Log keeps entries; Append returns once e is durable.
type Log interface {
	Append(e Entry) error
}

// Run is one carrying-out of a plan.
type Run struct {
	ID     string `json:"id"`
	Plan   Plan   `json:"plan"`
	Digest string `json:"digest"` // of Plan
	Order
	Begun time.Time `json:"begun"`

	Entries []Entry `json:"-"`
	dir     string
	log     *fileLog
}

// Order is who wanted a run, and how.
type Order struct {
	Operator string `json:"operator,omitempty"`
	Forced   bool   `json:"forced,omitempty"` // checks that refused were overridden
}

// State is where the run stands.
func (r Run) State() State {
	s := NewState(len(r.Plan.Actions))
	for _, e := range r.Entries {
		_ = s.add(e) // judged when it was read
	}
	return s
}

// Files of a run's directory, DIR/ID.
const (
	planFile = "plan.json"
	logFile  = "log.jsonl"
)

// Begin makes a plan durable as a run in dir, before its first step. The run is held:
// Close lets it go.
func Begin(dir string, p Plan, o Order, now time.Time) (*Run, error) {
	r := &Run{Plan: p, Digest: p.Digest(), Order: o, Begun: now}
	if err := r.begin(dir); err != nil {
		return nil, fmt.Errorf("begin a run of %s: %w", p.Runbook, err)
	}
	return r, nil
}

func (r *Run) begin(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	stamp := r.Begun.UTC().Format("20060102-150405")
	for n := 1; ; n++ {
		r.ID = fmt.Sprintf("%s-%s-%s", r.Plan.Runbook, r.Plan.Mode, stamp)
		if n > 1 {
			r.ID += fmt.Sprintf("-%d", n)
		}
		r.dir = filepath.Join(dir, r.ID)
		err := os.Mkdir(r.dir, 0o700)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := writeFile(filepath.Join(r.dir, planFile), append(b, '\n')); err != nil {
		return err
	}
	if err := syncDir(dir); err != nil {
		return err
	}
	return r.hold()
}

// writeFile makes a file durable under its name, or leaves none.
func writeFile(path string, b []byte) error {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// hold opens the log for this process alone.
func (r *Run) hold() error {
	l, entries, err := openLog(filepath.Join(r.dir, logFile), r.Digest)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(l.f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return errors.Join(ErrRunning, l.Close())
	}
	r.log, r.Entries = l, entries
	return r.judge()
}

// judge finds entries that cannot be of this plan.
func (r *Run) judge() error {
	s := NewState(len(r.Plan.Actions))
	for _, e := range r.Entries {
		if err := s.add(e); err != nil {
			return err
		}
	}
	return nil
}

// Open takes a run of dir up again. The run is held: Close lets it go.
func Open(dir, id string) (*Run, error) {
	r, err := readPlan(dir, id)
	if err == nil {
		err = r.hold()
	}
	if err != nil {
		return nil, fmt.Errorf("open run %s: %w", id, err)
	}
	return r, nil
}

// Look reads a run without holding it.
func Look(dir, id string) (*Run, error) {
	r, err := readPlan(dir, id)
	if err != nil {
		return nil, fmt.Errorf("read run %s: %w", id, err)
	}
	text, err := os.ReadFile(filepath.Join(r.dir, logFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read run %s: %w", id, err)
	}
	if r.Entries, _, _, err = readLog(text, r.Digest); err == nil {
		err = r.judge()
	}
	if err != nil {
		return nil, fmt.Errorf("read run %s: %w", id, err)
	}
	return r, nil
}

func readPlan(dir, id string) (*Run, error) {
	if !filepath.IsLocal(id) || filepath.Base(id) != id {
		return nil, ErrNoRun
	}
	r := &Run{}
	b, err := os.ReadFile(filepath.Join(dir, id, planFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoRun
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrLog, planFile, err)
	}
	if r.ID != id || r.Digest != r.Plan.Digest() {
		return nil, fmt.Errorf("%w: %s is not the plan that was begun", ErrLog, planFile)
	}
	r.dir = filepath.Join(dir, id)
	return r, nil
}

// List reads all runs of dir, oldest first. A directory in which no plan became
// durable is no run. What cannot be read is told beside the rest.
func List(dir string) ([]*Run, error) {
	names, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list runs: %w", err)
	}
	var out []*Run
	var errs []error
	for _, n := range names {
		r, err := Look(dir, n.Name())
		switch {
		case err == nil:
			out = append(out, r)
		case !errors.Is(err, ErrNoRun):
			errs = append(errs, err)
		}
	}
	slices.SortStableFunc(out, func(a, b *Run) int { return a.Begun.Compare(b.Begun) })
	return out, errors.Join(errs...)
}

// Append implements Log.
func (r *Run) Append(e Entry) error {
	e.N = len(r.Entries)
	if err := r.log.Append(e); err != nil {
		return err
	}
	r.Entries = append(r.Entries, e)
	return nil
}

// Close lets the run go; it stays as it is. A program that is being started at this moment
// has a copy of the file, and does not keep the lock by it.
func (r *Run) Close() error {
	return errors.Join(unix.Flock(int(r.log.f.Fd()), unix.LOCK_UN), r.log.Close())
}

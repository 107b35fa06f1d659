package site

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// Key implements control.API.
func (s *Site) Key(ctx context.Context, q control.KeyRequest) (control.KeyState, error) {
	g, err := s.group(q.Group)
	if err != nil {
		return control.KeyState{}, err
	}
	l, release, err := s.open(ctx, g)
	if err != nil {
		return control.KeyState{}, err
	}
	defer release()
	return l.keyState(q), nil
}

func (l *life) keyState(q control.KeyRequest) control.KeyState {
	x := l.j.Sealing()
	return control.KeyState{Group: l.cfg.Ref(), DryRun: q.DryRun, Key: x.Key, Keys: x.Keys, DataKeys: x.DataKeys, Unreadable: x.Unreadable}
}

// forKeys is the life of a group whose keys are to be changed.
func (s *Site) forKeys(ctx context.Context, q control.KeyRequest, what string) (*life, func(), error) {
	g, err := s.group(q.Group)
	if err != nil {
		return nil, nil, err
	}
	if !s.running() {
		return nil, nil, fault.New(fault.NeedsDaemon, what, "keys are changed by the daemon")
	}
	return g.await(ctx)
}

// RotateKey implements control.API.
func (s *Site) RotateKey(ctx context.Context, q control.KeyRequest) (control.KeyState, error) {
	what := "rotate the key of " + q.Group
	l, release, err := s.forKeys(ctx, q, what)
	if err != nil {
		return control.KeyState{}, err
	}
	defer release()
	if l.keys == nil {
		return control.KeyState{}, fault.New(fault.KeyMissing, what, "the group names no key: here").Advise("Add the new key to keys:, name it as key: of the group, and restart the daemon.")
	}
	if q.DryRun {
		return l.keyState(q), nil
	}
	r, err := l.j.Rewrap(ctx)
	if err != nil {
		return control.KeyState{}, explain(what, err)
	}
	s.o.Log.Info("key rotated", "group", l.cfg.Ref(), "key", r.Key, "data_keys", r.Keys, "rewrapped", r.Done, "unreadable", r.Left)
	out := l.keyState(q)
	out.Rewrapped, out.Unreadable = r.Done, r.Left
	if r.Left > 0 {
		return out, fault.New(fault.Partly, what, "%d of %d data keys are wrapped by none of the keys here", r.Left, r.Keys).
			Advise("Add the older keys (%s) to keys: and repeat.", strings.Join(out.Keys, ", ")).With(out)
	}
	return out, nil
}

// ShredKey implements control.API.
func (s *Site) ShredKey(ctx context.Context, q control.KeyRequest) (control.KeyState, error) {
	what := "shred the history of " + q.Group
	l, release, err := s.forKeys(ctx, q, what)
	if err != nil {
		return control.KeyState{}, err
	}
	defer release()
	out := l.keyState(q)
	if out.DataKeys == 0 {
		return out, fault.New(fault.KeyMissing, what, "nothing of it is sealed").Advise("Only what is sealed can be shredded: forget the group and remove its directory instead.")
	}
	if also := s.sealedWith(l, out.Keys); len(also) > 0 {
		return out, fault.New(fault.OperationBusy, what, "its keys seal other groups of this site too: %s", strings.Join(also, ", ")).
			Advise("Give those groups another key (key:, then group key rotate), and repeat.")
	}
	out.Bytes, out.Seconds = l.j.Usage().Used, windowOf(ctx, l.j)
	if q.DryRun {
		out.Remaining, _ = s.keysToDestroy(l, out.Keys, false)
		return out, nil
	}
	names, err := l.j.Shred(time.Duration(l.cfg.Lock))
	if err != nil {
		return out, explain(what, err)
	}
	if l.keys != nil {
		for _, n := range names {
			l.keys.Remove(n)
		}
	}
	remaining, failed := s.keysToDestroy(l, names, true)
	out.Remaining = remaining
	for _, n := range names {
		if !slices.ContainsFunc(out.Remaining, func(r string) bool { return strings.HasPrefix(r, n+" (") }) {
			out.Destroyed = append(out.Destroyed, n)
		}
	}
	s.o.Log.Warn("history shredded", "group", l.cfg.Ref(), "destroyed", out.Destroyed, "remaining", out.Remaining, "err", failed)
	if failed != nil {
		return out, fault.Wrap(fault.Partly, what, failed).Advise("The history does not read here any more. Destroy what is named yourself, or repeat the command.").With(out)
	}
	return out, nil
}

// windowOf is how far the points of a journal reach, in seconds.
func windowOf(ctx context.Context, j *journal.Journal) float64 {
	spans, err := j.Spans(ctx)
	if err != nil {
		return 0
	}
	var line control.Group
	window(ctx, &line, j, spans)
	return line.WindowSeconds
}

// keysToDestroy goes through the keys of these names and lists what only others can
// destroy. With do it destroys the rest.
func (s *Site) keysToDestroy(l *life, names []string, do bool) (remaining []string, failed error) {
	keys := s.cfg.KeysOf(l.cfg.Tenant)
	for _, n := range names {
		i := slices.IndexFunc(keys, func(k config.TenantKey) bool { return k.Name == n })
		if i < 0 {
			remaining = append(remaining, n+" (not among keys: here)")
			continue
		}
		done := keys[i].File != ""
		if do {
			var err error
			if done, err = destroyKey(keys[i]); err != nil {
				failed, done = errors.Join(failed, fmt.Errorf("destroy key %s: %w", n, err)), false
			}
		}
		if !done {
			remaining = append(remaining, fmt.Sprintf("%s (%s)", n, keys[i].Source()))
		}
	}
	return remaining, failed
}

// sealedWith lists the other groups of this site that are sealed with one of these
// keys: by their configuration, or by what their history says.
func (s *Site) sealedWith(l *life, names []string) []string {
	var out []string
	for _, g := range s.groups {
		if g == l.group || g.cfg.Tenant != l.cfg.Tenant {
			continue
		}
		uses := slices.Contains(names, g.cfg.Key)
		if o, release, err := g.use(); err == nil {
			for _, k := range o.j.Sealing().Keys {
				uses = uses || slices.Contains(names, k)
			}
			release()
		}
		if uses {
			out = append(out, g.cfg.Ref())
		}
	}
	return out
}

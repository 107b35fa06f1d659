package site

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"time"

	"github.com/novacron/afterimage/cbt/libvirt"
	"github.com/novacron/afterimage/cbt/qemu"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/fault"
)

// freezer stops a guest's file systems from changing. Thaw tells how many were
// still frozen.
type freezer interface {
	Freeze(ctx context.Context) (int, error)
	Thaw(ctx context.Context) (int, error)
}

// domainFreezer reaches a domain's agent through libvirt, whatever the domain is called
// by now.
type domainFreezer struct {
	life *life
	tap  config.Tap
}

func (d domainFreezer) Freeze(ctx context.Context) (int, error) {
	return d.named(ctx, libvirt.Freeze)
}

func (d domainFreezer) Thaw(ctx context.Context) (int, error) {
	return d.named(ctx, libvirt.Thaw)
}

func (d domainFreezer) named(ctx context.Context, do func(ctx context.Context, uri, name string) (int, error)) (n int, err error) {
	err = d.life.named(d.tap, func(name string) (err error) {
		n, err = do(ctx, d.tap.Libvirt.URI, name)
		return err
	})
	return n, err
}

// freezer is how the guests of a group are frozen; nil: they cannot be. Of several
// machines each has to be one that can.
func (l *life) freezer() freezer {
	var all, none freezers
	for _, t := range l.cfg.Taps() {
		switch {
		case t.Libvirt != nil:
			all = append(all, domainFreezer{l, t})
		case t.Quiesce != nil && t.Quiesce.Agent != "":
			all = append(all, qemu.Agent{Socket: t.Quiesce.Agent})
		default:
			none = append(none, unreachable(t.Guest))
		}
	}
	switch {
	case len(all) == 0:
		return nil
	case len(all) == 1 && len(none) == 0:
		return all[0]
	}
	return append(none, all...) // what cannot be done is found before anything is frozen
}

// unreachable is a machine beside others that can be frozen, and cannot.
type unreachable string

func (u unreachable) Freeze(context.Context) (int, error) {
	return 0, fmt.Errorf("machine %s cannot be frozen: agent: names no socket of it", string(u))
}
func (unreachable) Thaw(context.Context) (int, error) { return 0, nil }

// freezers are those of several machines, which stand still together.
type freezers []freezer

// Freeze stops one after the other. Once one stands still, no error says any more that
// nothing does.
func (f freezers) Freeze(ctx context.Context) (int, error) {
	sum := 0
	for i, one := range f {
		n, err := one.Freeze(ctx)
		switch {
		case err == nil && n == 0:
			err = errors.New("the guest agent froze no file system")
			fallthrough
		case err != nil && i > 0:
			return sum, fmt.Errorf("machine %d of %d: %v", i+1, len(f), err)
		case err != nil:
			return sum, err
		}
		sum += n
	}
	return sum, nil
}

// Thaw thaws all; 0 if one of them was not frozen any more.
func (f freezers) Thaw(ctx context.Context) (int, error) {
	sum, early := 0, false
	var errs []error
	for _, one := range f {
		n, err := one.Thaw(ctx)
		errs = append(errs, err)
		sum, early = sum+n, early || n == 0
	}
	if early {
		sum = 0
	}
	return sum, errors.Join(errs...)
}

// frozenKey is where a group's journal remembers that its guest may be frozen,
// so that a daemon that was killed meanwhile thaws it when it comes back.
const frozenKey = "site/frozen"

// thawPatience bounds the attempts to thaw, and each of them.
const (
	thawPatience = 30 * time.Second
	thawAttempt  = 10 * time.Second
	thawPause    = 200 * time.Millisecond
)

// quiescence is one quiet moment of a guest.
type quiescence struct {
	freezer  freezer
	before   func(ctx context.Context) error // hooks, bounded by themselves
	after    func(ctx context.Context) error
	remember func(frozen bool) error
	frozen   time.Duration // longest time from freeze to thaw
}

// errThawedEarly means that the guest was not frozen any more when it was thawed.
var errThawedEarly = errors.New("the guest thawed its file systems by itself, perhaps before the mark")

// around runs mark while the guest is frozen. Whatever happens, then the guest is
// thawed and the after-hook runs; and mark is not waited for beyond the limit.
func (q quiescence) around(ctx context.Context, mark func(ctx context.Context) error) (err error) {
	defer func() { err = errors.Join(err, q.after(context.WithoutCancel(ctx))) }()
	if err := q.before(ctx); err != nil {
		return err
	}
	if err := q.remember(true); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, q.frozen, fmt.Errorf("the guest may be frozen for %s at most", q.frozen))
	defer cancel()
	n, err := q.freezer.Freeze(ctx)
	if err == nil && n == 0 {
		err = errors.New("the guest agent froze no file system")
	}
	if err != nil {
		err = fmt.Errorf("freeze file systems: %w", err)
		if frozeNothing(err) {
			return errors.Join(err, q.remember(false))
		}
		_, thaw := q.thaw(ctx) // it may have been done, or be done yet
		return errors.Join(err, thaw)
	}
	err = mark(ctx)
	still, thaw := q.thaw(ctx)
	switch {
	case thaw != nil:
		return errors.Join(err, thaw)
	case err == nil && still == 0:
		return errThawedEarly
	}
	return err
}

// frozeNothing says of a failed freeze that it certainly left nothing frozen, and will not
// yet: it was refused, or nobody was there to ask.
func frozeNothing(err error) bool {
	var op *net.OpError
	return libvirt.FrozeNothing(err) || errors.Is(err, qemu.ErrAgentRefused) || (errors.As(err, &op) && op.Op == "dial")
}

// thaw tries until the guest is thawed, whatever ctx says, within thawPatience.
func (q quiescence) thaw(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), thawPatience)
	defer cancel()
	for {
		once, end := context.WithTimeout(ctx, thawAttempt)
		n, err := q.freezer.Thaw(once)
		end()
		if err == nil {
			return n, q.remember(false)
		}
		select {
		case <-time.After(thawPause):
		case <-ctx.Done():
			return 0, fmt.Errorf("the guest may still be frozen: thaw file systems: %w", err)
		}
	}
}

// hook runs a program of the configuration; none is no failure. One that hangs is
// killed.
func hook(g config.Group, argv []string, limit time.Duration, mark string) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		if len(argv) == 0 {
			return nil
		}
		ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("it took longer than %s", limit))
		defer cancel()
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
		cmd.Env = append(os.Environ(), "AFTERIMAGE_GROUP="+g.Ref(), "AFTERIMAGE_MARK="+mark)
		cmd.WaitDelay = time.Second
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("run %s: %w", argv[0], errors.Join(err, context.Cause(ctx)))
		}
		return nil
	}
}

// quiet is the group's quiescence; ok is false where nobody can freeze anything:
// then an application mark is what its caller says.
func (l *life) quiet(mark string) (q quiescence, ok bool) {
	f := l.freezer()
	if f == nil && l.cfg.Quiesce == nil {
		return q, false
	}
	var c config.Quiesce
	if l.cfg.Quiesce != nil {
		c = *l.cfg.Quiesce
	} else {
		c.Timeout, c.Frozen = config.DefaultHookTimeout, config.DefaultFrozen
	}
	if f == nil {
		f = unfrozen{}
	}
	return quiescence{
		freezer: f, frozen: time.Duration(c.Frozen),
		before:   hook(l.cfg, c.Before, time.Duration(c.Timeout), mark),
		after:    hook(l.cfg, c.After, time.Duration(c.Timeout), mark),
		remember: func(frozen bool) error { return l.j.Remember(frozenKey, frozen) },
	}, true
}

// unfrozen is a guest of which only the hooks take care.
type unfrozen struct{}

func (unfrozen) Freeze(context.Context) (int, error) { return 1, nil }
func (unfrozen) Thaw(context.Context) (int, error)   { return 1, nil }

// markQuietly sets an application mark while the guest is frozen.
func (l *life) markQuietly(ctx context.Context, what, name string, mark func(ctx context.Context) error) error {
	q, ok := l.quiet(name)
	if !ok {
		return explain(what, mark(ctx))
	}
	if err := q.around(ctx, mark); err != nil {
		return fault.Wrap(fault.QuiesceTrouble, what, err)
	}
	return nil
}

// thawLeft thaws the guest if a life before this one may have left it frozen.
func (l *life) thawLeft(ctx context.Context) {
	var frozen bool
	if ok, err := l.j.Recall(frozenKey, &frozen); err != nil || !ok || !frozen {
		return
	}
	q, ok := l.quiet("")
	if !ok {
		return
	}
	n, err := q.thaw(ctx)
	l.site.o.Log.Warn("an earlier life may have left the guest frozen", "group", l.cfg.Ref(), "thawed", n, "err", err)
}

package site

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"sync"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/recovery/witness"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// A group whose failover is auto runs unattended only under a guard: a lease of the
// witness, and a watchdog that pauses its machines before the lease can be another's.
//
//	primary   takes the lease, keeps it, pauses by the watchdog when it is lost; goes on,
//	          machines and all, when it gets it again and nobody had it meanwhile
//	replica   takes it once it has ended without having been given back, and fails over
//	          (standby.go)
//
// When the witness does not answer, the primary goes on as long as every peer of the group
// says, again and again, that it does not take over for another ttl: a healthy machine is
// not paused for want of the witness alone. When the witness and a peer are both away,
// the primary may be the one that is cut off, and its machines are paused.
//
// A guard outlives lives of the group, and a restart of the daemon that is shorter than
// the lease: it is adopted (guardlease.go).
type guardian struct {
	g     *group
	w     *witness.Etcd
	ttl   time.Duration
	marks []witness.Mark
	born  time.Time

	mu      sync.Mutex // guards all below
	right   *witness.Guard
	keeping context.CancelFunc
	kept    chan struct{}
	kennel  *witness.Kennel // also of a right that was lost: it holds the machines still
	paused  bool            // the machines stand still for want of a right
	resume  bool            // they are to go on
	stale   bool            // they stand still since another reign, and are not continued
	stands  bool            // what runs is paused at every turn: another has the right, or it was lost
	why     string          // there is no right
	until   time.Time       // a peer was promised that nothing is taken over until then
	taking  bool
	// pausedIn is the reign in which they were: in another one what they remember is old.
	pausedIn cbt.ID
	reign    cbt.ID    // in which the right was taken, by its promotion
	heldAt   time.Time // when another had the lease for all that is known; by the site's clock

	keepingMu sync.Mutex // held while what is kept is changed

	// These are run's alone.
	again   time.Time  // the right is asked for
	reached time.Time  // the machines could be signalled
	known   bool       // something is kept
	waking  *wakingDog // a watchdog that has not answered yet
}

// wakingDog is a watchdog that was started, for these marks.
type wakingDog struct {
	kennel *witness.Kennel
	cmd    *exec.Cmd
	marks  []witness.Mark
}

// guardLook is how often a guard looks at what its group is.
const guardLook = 200 * time.Millisecond

// PackCommand is the hidden command of the command line that runs witness.PackDog.
const PackCommand = "pack-dog"

// openGuards makes the guards of the groups that have one.
func (s *Site) openGuards() error {
	if s.cfg.Witness == nil {
		return nil
	}
	w, err := openWitness(s.cfg.Witness)
	if err != nil {
		return explain("open the witness", err)
	}
	s.witness = w
	for _, g := range s.groups {
		if g.cfg.Failover == config.FailoverAuto {
			g.guard = &guardian{g: g, w: w, ttl: time.Duration(s.cfg.Witness.TTL), marks: g.marks(), born: time.Now(), heldAt: s.o.Now(), why: "the group has just been opened"}
		}
	}
	return nil
}

// run keeps the group as it should be until ctx ends. Then the lease is left to the next
// life of the daemon, or to its end, and the watchdog to its time.
func (u *guardian) run(ctx context.Context) {
	defer func() {
		u.mu.Lock()
		stop, kept, kennel := u.keeping, u.kept, u.kennel
		u.mu.Unlock()
		if stop != nil {
			stop()
			<-kept
		}
		if kennel != nil {
			kennel.Leave()
		}
		if u.waking != nil {
			u.waking.kennel.Leave()
		}
	}()
	for ctx.Err() == nil {
		l, release, err := u.g.use()
		if err == nil {
			u.turn(ctx, l, release)
		}
		_ = pauseFor(ctx, guardLook)
	}
}

// turn does what the group's role wants now; free ends the use of the life.
func (u *guardian) turn(ctx context.Context, l *life, free func()) {
	defer free()
	r, held := l.roleNow(), u.holds()
	u.noteMarks(ctx, l)
	switch {
	case r.Role.Captures() && held:
		u.rule(ctx, r)
	case r.Role.Captures():
		u.asPrimary(ctx, l, r)
	case held && !promotes(l): // what was promoted is played by the next life
		u.giveBack(ctx)
	case !held:
		if !u.known && r.Role == recovery.Replica {
			u.known = u.amend(func(*guardKept) {}) == nil
		}
		u.letGo()
		u.standBy(ctx, l, r)
	}
}

// rule keeps a right as it should be.
func (u *guardian) rule(ctx context.Context, r recovery.Reign) {
	u.mu.Lock()
	news, resume := u.reign != r.Promotion, u.resume
	u.mu.Unlock()
	if news && u.amend(func(k *guardKept) { k.Promotion, k.Taking = r.Promotion, "" }) == nil {
		u.mu.Lock()
		u.reign = r.Promotion
		u.mu.Unlock()
	}
	if resume {
		u.goOn()
	}
	u.reach(ctx)
}

// promotes reports whether a promotion stands here durably, or may.
func promotes(l *life) bool {
	r, _, err := recovery.RecallReign(l.j)
	p, begun, failed := recovery.Newest(l.j)
	return err != nil || failed != nil || r.Role.Captures() || begun && p.State == recovery.PromotionBegun
}

// letGo ends the watchdog of a right that was lost, once nothing is left that it holds.
func (u *guardian) letGo() {
	if pids, err := witness.Pack(u.marks); err != nil || len(pids) > 0 {
		return
	}
	u.mu.Lock()
	kennel := u.kennel
	u.kennel, u.paused, u.resume, u.stands, u.stale = nil, false, false, false, false
	u.mu.Unlock()
	if kennel != nil {
		endKennel(kennel)
	}
}

// holds reports whether the right is there; one that was lost is noted.
func (u *guardian) holds() bool {
	if u == nil {
		return false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.right == nil {
		return false
	}
	select {
	case <-u.right.Lost():
		u.right, u.paused, u.resume, u.stands, u.pausedIn = nil, true, false, true, u.reign
		return false
	default:
		return true
	}
}

// asPrimary takes the right for who reigns without it, not at every turn. What must not
// run until then is paused first.
func (u *guardian) asPrimary(ctx context.Context, l *life, r recovery.Reign) {
	u.mu.Lock()
	stands := u.stands
	u.mu.Unlock()
	if stands {
		u.standStill(r.Promotion)
	}
	if time.Now().Before(u.again) {
		return
	}
	err := u.takeAsPrimary(ctx, l, r)
	if err == nil {
		return
	}
	u.again = time.Now().Add(u.ttl / 16)
	u.refuse(err)
	var held *witness.HeldError
	if errors.Is(err, errTakenSince) || errors.As(err, &held) && slices.Contains(u.g.cfg.Peers, held.Holder) {
		u.mu.Lock()
		u.stands = true
		u.mu.Unlock()
		u.standStill(r.Promotion)
	}
}

// takeAsPrimary takes the right again, or for the first time. Machines that were paused
// go on only in the reign in which they were, and only if nobody had the right meanwhile
// and no peer has another history.
func (u *guardian) takeAsPrimary(ctx context.Context, l *life, r recovery.Reign) error {
	was, own := u.recall(), u.site().cfg.Site
	may := func(last string, at int64) error { return was.refuses(own, u.g.cfg.Peers, r.Promotion, last, at) }
	limit, cancel := context.WithTimeout(ctx, u.ttl/2)
	defer cancel()
	last, at, err := u.w.LastAt(limit, u.g.id.Group)
	if err != nil {
		return fmt.Errorf("the witness does not answer: %w", err)
	}
	if err := may(last, at); err != nil {
		return err
	}
	holder, held, err := u.w.Holder(limit, u.g.id.Group)
	switch {
	case err != nil:
		return fmt.Errorf("the witness does not answer: %w", err)
	case held && (holder != own || was.Lease.ID == 0):
		return &witness.HeldError{Group: u.g.id.Group, Holder: holder}
	}
	if c := l.conflict(); c.why != "" {
		return fmt.Errorf("a peer has another history: %s", c.why)
	}
	if err := u.take(ctx, was.Lease, may, r.Promotion); err != nil {
		return err
	}
	u.mu.Lock()
	same := u.paused && u.pausedIn == r.Promotion || !u.paused && was.known && was.Promotion == r.Promotion
	u.stale = u.paused && !same
	u.stands, u.resume, u.paused = false, same, u.paused && same
	u.mu.Unlock()
	if was.Taking != "" {
		_ = u.amend(func(k *guardKept) { k.Taking = "" }) // else another reign is not known as one
	}
	if same {
		u.goOn()
	}
	return nil
}

func (u *guardian) site() *Site { return u.g.site }

func (u *guardian) refuse(err error) {
	u.mu.Lock()
	news := u.why != err.Error()
	u.why = err.Error()
	u.mu.Unlock()
	if news {
		u.site().o.Log.Warn("the group has no right to run unattended", "group", u.g.cfg.Ref(), "err", err)
	}
}

// take wakes a watchdog and takes the lease, in this order: under a lease without a
// watchdog nothing would be paused, and one that is given back because of that has been
// another site's by then.
func (u *guardian) take(ctx context.Context, saved witness.Saved, may func(last string, at int64) error, promotion cbt.ID) error {
	if _, err := witness.Signal(u.marks, 0); err != nil {
		return noWatchdog(err)
	}
	kennel, cmd, err := u.wake(ctx)
	if err != nil {
		return err
	}
	limit, cancel := context.WithTimeout(ctx, u.ttl/2)
	defer cancel()
	w := &sustained{w: u.w, saved: saved, may: may, promised: u.peersPromise}
	pid, old := cmd.Process.Pid, u.recall()
	w.note = func(s witness.Saved) {
		_ = u.amend(func(k *guardKept) { // what is not kept costs the machine a pause, and is said
			k.Lease, k.Dog, k.DogArgs, k.Boot, k.Gave = s, pid, cmd.Args[1:], u.site().o.HostBoot, 0
		})
	}
	right, err := witness.Take(limit, w, u.g.id.Group, u.site().cfg.Site, u.ttl, kennel)
	if err != nil {
		endKennel(kennel)
		return err
	}
	w.noteNow()
	_ = u.amend(func(k *guardKept) { k.Promotion = promotion })
	endDog(old, u.site().o.HostBoot, pid)
	keep, stop := context.WithCancel(ctx)
	kept := make(chan struct{})
	u.mu.Lock()
	before := u.kennel
	u.right, u.kennel, u.keeping, u.kept, u.why, u.reign = right, kennel, stop, kept, "", promotion
	u.mu.Unlock()
	if before != nil {
		endKennel(before)
	}
	go func() {
		defer close(kept)
		if err := right.Keep(keep); err != nil {
			u.refuse(err)
			u.site().o.Log.Error("the right to run the group unattended is lost; the watchdog pauses its machines", "group", u.g.cfg.Ref(), "err", err)
		}
	}()
	u.site().o.Log.Info("the group runs unattended by right of the witness", "group", u.g.cfg.Ref(), "token", right.Token())
	return nil
}

// giveBack gives up a right that is not needed any more, once no machine runs here.
func (u *guardian) giveBack(ctx context.Context) {
	if pids, err := witness.Pack(u.marks); err != nil || len(pids) > 0 {
		u.refuse(errors.Join(err, fmt.Errorf("this site is not primary any more and processes %v run: the lease is kept", pids)))
		return
	}
	u.end(ctx, u.recall().Taking)
}

// end releases the right and says who had it last before.
func (u *guardian) end(ctx context.Context, last string) {
	u.mu.Lock()
	right, kennel, stop, kept := u.right, u.kennel, u.keeping, u.kept
	u.right, u.kennel, u.keeping, u.kept = nil, nil, nil, nil
	u.mu.Unlock()
	if right == nil {
		return
	}
	stop()
	<-kept
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), u.ttl/2)
	defer cancel()
	err := u.amend(func(k *guardKept) { k.Gave = givingBack })
	err = errors.Join(err, u.untake(ctx, last))
	if now, at, asked := u.w.LastAt(ctx, u.g.id.Group); asked == nil && now == last && last == "" { // nobody else writes there before the lease ends
		err = errors.Join(err, u.amend(func(k *guardKept) { k.Gave = at }))
	}
	err = errors.Join(err, right.Release(ctx))
	endKennel(kennel)
	u.site().o.Log.Info("the right of the witness is given back", "group", u.g.cfg.Ref(), "err", err)
}

func noWatchdog(err error) error { return fmt.Errorf("%w: %w", witness.ErrNoWatchdog, err) }

// wake starts a watchdog for the group's machines, and returns once it answers. One that
// is slow to start, as where many do at once, is waited for again at the next call.
func (u *guardian) wake(ctx context.Context) (*witness.Kennel, *exec.Cmd, error) {
	w := u.waking
	u.waking = nil
	if w != nil && !slices.Equal(w.marks, u.marks) {
		endKennel(w.kennel)
		w = nil
	}
	if w == nil {
		kennel, cmd, err := u.startKennel()
		if err != nil {
			return nil, nil, err
		}
		w = &wakingDog{kennel, cmd, u.marks}
	}
	limit, cancel := context.WithTimeout(ctx, u.ttl/2)
	defer cancel()
	switch err := w.kennel.Ready(limit); {
	case errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil:
		u.waking = w
		return nil, nil, noWatchdog(err)
	case err != nil:
		w.kennel.Leave() // it has ended
		return nil, nil, noWatchdog(err)
	}
	return w.kennel, w.cmd, nil
}

func (u *guardian) startKennel() (*witness.Kennel, *exec.Cmd, error) {
	self := u.site().o.Executable
	if self == "" {
		var err error
		if self, err = os.Executable(); err != nil {
			return nil, nil, fmt.Errorf("find own program: %w", err)
		}
	}
	args := []string{PackCommand}
	for _, m := range u.marks {
		args = append(args, "--mark", base64.RawURLEncoding.EncodeToString([]byte(m)))
	}
	cmd := exec.Command(self, args...)
	cmd.Stderr = os.Stderr
	k, err := witness.StartKennel(cmd)
	if err != nil {
		return nil, nil, noWatchdog(err)
	}
	return k, cmd, nil
}

// endKennel ends a watchdog; one that has paused says so first.
func endKennel(k *witness.Kennel) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	for range 2 {
		if k.Disarm(ctx) == nil {
			return
		}
	}
}

// notices tell how the group stands with the witness.
func (u *guardian) notices(captures bool) []control.Notice {
	if u == nil {
		return nil
	}
	holds := u.holds()
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case holds && u.paused:
		return []control.Notice{{Level: control.Alarm, Text: "the machine is paused, and cannot be continued though this site has the right to run it", Hint: "See the log; continue its process by hand (SIGCONT)"}}
	case holds && u.stale:
		return []control.Notice{{Level: control.Alarm, Text: "a machine stands still that ran before another site had the group: what it remembers is old", Hint: "End its process, and do not continue it"}}
	case holds:
		return nil
	case captures && u.paused:
		return []control.Notice{{Level: control.Alarm, Text: "the machine is paused: the right to run it unattended was lost: " + u.why,
			Hint: "It goes on by itself when the witness gives the right again. If another site runs the group, shut it down here; else see that the witness answers"}}
	case captures:
		return []control.Notice{{Level: control.Alarm, Text: "the group runs without a right of the witness: " + u.why, Hint: "No site takes over by itself meanwhile"}}
	case u.why != "":
		return []control.Notice{{Level: control.Warning, Text: "automatic failover: " + u.why}}
	}
	return nil
}

// PackDog is the whole work of a guard's watchdog process. Marks come as base64: nothing on
// its command line is taken for a machine's.
func PackDog(in, out *os.File, marks []string) error {
	var ms []witness.Mark
	for _, m := range marks {
		b, err := base64.RawURLEncoding.DecodeString(m)
		if err != nil {
			return fault.Wrap(fault.Usage, "watch machines", err)
		}
		ms = append(ms, witness.Mark(b))
	}
	return explain("watch machines", witness.PackDog(in, out, ms))
}

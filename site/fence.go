package site

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/recovery/fence"
	"github.com/novacron/afterimage/replicator"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// channelsOf are the configured channels of a group, the gentlest switch first.
func channelsOf(c *config.Fence) []fence.Channel {
	if c == nil {
		return nil
	}
	var out []fence.Channel
	if v := c.Libvirt; v != nil {
		out = append(out, fence.Domain{URI: v.URI, Domain: v.Domain, Timeout: time.Duration(v.Timeout)})
	}
	for _, p := range c.Programs {
		out = append(out, fence.Program{Path: p.Path, Options: p.Options, Secrets: p.Secrets, Plug: p.Plug, Control: p.Control,
			Host: p.Of == config.OfHost, Timeout: time.Duration(p.Timeout)})
	}
	if p := c.Ping; p != nil {
		out = append(out, fence.Ping(p.Address, p.Of == config.OfHost, time.Duration(p.For)))
	}
	return out
}

// fence is the channels to the group's machine at the old site: those configured, a
// statement that was brought, and its sessions, which fall silent with their host.
// Without anything that could say off there is no fence at all.
func (l *life) fence(q control.FailoverRequest) (prover, error) {
	var shared []fence.Channel
	if q.Statement != "" {
		s, err := l.statement(q.Statement)
		if err != nil {
			return nil, err
		}
		shared = append(shared, s)
	}
	if l.cfg.Fence == nil && len(shared) == 0 {
		return fence.Fence{}, nil
	}
	for _, name := range l.cfg.Peers {
		shared = append(shared, fence.Quiet{What: "session with " + name, Host: true, Heard: l.hears(name)})
	}
	return l.fenced(shared), nil
}

// hears asks whether a peer is heard as the group's primary.
func (l *life) hears(peer string) func(context.Context) (bool, error) {
	return func(context.Context) (bool, error) {
		for _, lag := range l.site.lagsOf(l.group) {
			streams := lag.State == replicator.StateStreaming || lag.State == replicator.StateCatchingUp
			if lag.Peer == peer && lag.Direction == replicator.Inbound && streams && lag.Connected && !silent(lag) {
				return true, nil
			}
		}
		return false, nil
	}
}

// statement is what somebody brought, if a peer of the group whose pin is known here
// signed it; one that cannot be believed is refused before anything is planned.
func (l *life) statement(text string) (fence.Statement, error) {
	const what = "read the statement of the old site"
	var failed error
	for _, name := range l.cfg.Peers {
		p, ok := l.site.cfg.Peer(name)
		if !ok {
			continue
		}
		if l.site.pairs != nil {
			p = l.site.pairs.of(p)
		}
		s := fence.Statement{Text: text, Site: name, Identity: l.id, Key: pinned(p.Pin)}
		numbers := epochNumbers(l.j)
		s.Latest, s.Epoch = l.latestOf(name, numbers)
		x, err := s.Standing()
		if err == nil {
			err = l.reignedSince(x)
		}
		if err == nil {
			return s, nil
		}
		if failed == nil || x.Site == name { // that another one has another key says nothing
			failed = err
		}
	}
	if failed == nil {
		return fence.Statement{}, fault.New(fault.NotFenced, what, "the group has no peer here that could have signed one")
	}
	return fence.Statement{}, fault.Wrap(fault.NotFenced, what, failed).Advise("Ask for a new one at the old site, or leave --statement out.")
}

// reignedSince is why a statement says nothing of who reigned last: the history that would
// be gone on with is of another site's later epoch, and its machine is the one to be off.
func (l *life) reignedSince(x fence.Standing) error {
	head := l.j.Head().Epoch
	for _, b := range l.j.Branches() {
		if b.ID == head && b.Number > x.Epoch && b.Site != x.Site && b.Site != l.site.cfg.Site {
			return fmt.Errorf("%w: it is of epoch %d, and the newest history here is that of %s, epoch %d", fence.ErrStatement, x.Epoch, b.Site, b.Number)
		}
	}
	return nil
}

// begunKey is where the site log keeps the number of the newest epoch that anybody said a
// site began.
func begunKey(site string) string { return "begun/" + site }

// noteBegun keeps what a peer knows of the epochs that the group's peers began.
func (l *life) noteBegun(a standing) {
	newest := map[string]uint64{}
	for _, b := range a.Branches {
		if slices.Contains(l.cfg.Peers, b.Site) {
			newest[b.Site] = max(newest[b.Site], b.Number)
		}
	}
	for site, number := range newest {
		if number <= l.begun(site) {
			continue
		}
		if err := l.j.Remember(begunKey(site), number); err != nil {
			l.site.o.Log.Warn("remember which epoch a peer began", "group", l.cfg.Ref(), "peer", site, "epoch", number, "err", err)
		}
	}
}

// begun is the number of the newest epoch that a peer is known to have begun.
func (l *life) begun(peer string) (number uint64) {
	if _, err := l.j.Recall(begunKey(peer), &number); err != nil {
		l.site.o.Log.Warn("recall which epoch a peer began", "group", l.cfg.Ref(), "peer", peer, "err", err)
	}
	for _, b := range l.j.Branches() {
		if b.Site == peer {
			number = max(number, b.Number)
		}
	}
	return number
}

// latestOf is the newest head that was heard of a peer, and the newest epoch that it is
// known to have begun, by whomever.
func (l *life) latestOf(peer string, numbers map[journal.EpochID]uint64) (journal.Position, uint64) {
	var h *recovery.SourceHead
	for _, lag := range l.site.lagsOf(l.group) {
		if lag.Peer == peer {
			h = headOf(lag, numbers)
		}
	}
	if h == nil {
		h = l.recalled(peer)
	}
	if h == nil {
		return journal.Position{}, l.begun(peer)
	}
	return h.Head, max(h.Number, numbers[h.Head.Epoch], l.begun(peer))
}

// pinned tells whether a public key is the one of a pin.
func pinned(pin string) func([]byte) bool {
	return func(key []byte) bool {
		return pin != "" && len(key) == ed25519.PublicKeySize && pinOf(key) == pin
	}
}

// prove is the fence of a failover.
func (l *life) prove(q control.FailoverRequest) func(context.Context) fence.Proof {
	return func(ctx context.Context) fence.Proof {
		f, err := l.fence(q)
		if err != nil {
			return fence.Proof{Result: fence.Unproven, Why: err.Error()}
		}
		p := f.Prove(ctx)
		l.site.o.Log.Warn("old primary fenced", "group", l.cfg.Ref(), "result", p.Result, "why", p.Why, "forced", q.Force)
		return p
	}
}

// unfenced says what a fence came to and what to do about it.
func unfenced(what string, e *recovery.UnprovenError) error {
	f := fault.Wrap(fault.NotFenced, what, e).With(e.Proof)
	switch e.Proof.Result {
	case fence.Refused:
		return f.Advise("The machine was seen to run, or its fence did not obey. Stop it at the old site, and repeat the command. Do not say --force while it runs: both would write.")
	case fence.Unreachable:
		return f.Advise("Nothing that could tell answers, which is not the same as off. Go there or ask somebody; when you know that the machine is off, say --force, and that is recorded.")
	}
	return f.Advise("One channel alone is not believed. Add a second one to fence: (doctor checks them), or see for yourself that the machine is off and say --force, which is recorded.")
}

// fences looks at the channels of a group; nothing is switched.
func (e *examination) fences(ctx context.Context, g config.Group) {
	if g.Fence == nil {
		if len(g.Peers) > 0 && g.Role == config.Replica {
			e.say(FindingWarning, "add fence: to the group", "no fence: a failover to here needs --force, and is recorded as unfenced")
		}
		return
	}
	shared := channelsOf(g.Fence)
	var look interface {
		Look(context.Context) []fence.Observation
	} = fence.Fence{Channels: shared}
	if len(g.Fence.Each) == 0 && len(shared) < 2 {
		e.say(FindingWarning, "name a second channel in fence:", "%s is the only fence: what it says is not believed alone", shared[0].Name())
	}
	for _, p := range g.Fence.Programs {
		e.agent(ctx, p)
	}
	var several fence.Several
	for i := range g.Fence.Each {
		x := &g.Fence.Each[i]
		channels := slices.Concat(channelsOf(x), shared)
		if len(channels) < 2 {
			e.say(FindingWarning, "name a second channel for it in fence:", "%s is the only fence of machine %s: what it says is not believed alone", channels[0].Name(), x.Machine)
		}
		for _, p := range x.Programs {
			e.agent(ctx, p)
		}
		several = append(several, fence.Of{Machine: x.Machine, Fence: fence.Fence{Channels: channels}})
		look = several
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(4*max(1, len(several)))*examineBounded)
	defer cancel()
	for _, o := range look.Look(ctx) {
		switch {
		case o.Liar:
			e.say(FindingProblem, "replace it: it calls plugs off that are not, or do not exist", "fence %s", o)
		case o.Error != "":
			e.say(FindingProblem, "put right what it names; it will be asked when the old site is dead", "fence %s", o)
		case o.State == fence.SeenSilent:
			e.say(FindingWarning, "silence proves nothing unless it answered before: allow ICMP echoes", "fence %s", o)
		case o.Act == fence.ActChallenge:
			e.say(FindingOK, "", "fence %s knows no plug that does not exist", o.Channel)
		default:
			e.say(FindingOK, "", "fence %s", o)
		}
	}
}

// agent looks at a program before it is run.
func (e *examination) agent(ctx context.Context, p config.FenceProgram) {
	st, err := os.Stat(p.Path)
	switch {
	case err != nil:
		e.say(FindingProblem, "install it, or name another path", "fence program: %v", err)
		return
	case !st.Mode().IsRegular() || st.Mode().Perm()&0o111 == 0:
		e.say(FindingProblem, "chmod +x "+p.Path, "fence program %s cannot be executed", p.Path)
		return
	}
	if p.Secrets != "" {
		if st, err := os.Stat(p.Secrets); err != nil {
			e.say(FindingProblem, "write it", "secrets of fence program %s: %v", p.Path, err)
		} else if st.Mode().Perm()&0o077 != 0 {
			e.say(FindingProblem, "chmod 600 "+p.Secrets, "others may read %s", p.Secrets)
		}
	}
	if p.Plug == "" {
		e.say(FindingWarning, "where the device has several plugs, name one in plug:", "fence program %s has no plug: it cannot be asked for one that does not exist", p.Path)
	}
	ctx, cancel := context.WithTimeout(ctx, examineBounded)
	defer cancel()
	actions, err := fence.Program{Path: p.Path, Timeout: time.Duration(p.Timeout)}.Actions(ctx)
	switch {
	case err != nil:
		e.say(FindingWarning, "see the program's own manual", "fence program %s does not tell its actions: %v", p.Path, err)
	case !slices.Contains(actions, "off") || !slices.Contains(actions, "status"):
		e.say(FindingProblem, "use an agent with the actions off and status", "fence program %s can only %s", p.Path, strings.Join(actions, ", "))
	default:
		e.say(FindingOK, "", "fence program %s can switch off and tell the status", p.Path)
	}
}

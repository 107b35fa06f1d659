package site

import (
	"context"
	"crypto/ed25519"
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
func (l *life) fence(q control.FailoverRequest) (fence.Fence, error) {
	f := fence.Fence{Channels: channelsOf(l.cfg.Fence), Now: l.site.o.Now}
	if q.Statement != "" {
		s, err := l.statement(q.Statement)
		if err != nil {
			return f, err
		}
		f.Channels = append(f.Channels, s)
	}
	if len(f.Channels) == 0 {
		return f, nil
	}
	for _, name := range l.cfg.Peers {
		f.Channels = append(f.Channels, fence.Quiet{What: "session with " + name, Host: true, Heard: l.hears(name)})
	}
	return f, nil
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
		if _, err := s.Standing(); err != nil {
			failed = err
			continue
		}
		return s, nil
	}
	if failed == nil {
		return fence.Statement{}, fault.New(fault.NotFenced, what, "the group has no peer here that could have signed one")
	}
	return fence.Statement{}, fault.Wrap(fault.NotFenced, what, failed).Advise("Ask for a new one at the old site, or leave --statement out.")
}

// latestOf is the newest head that was heard of a peer.
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
		return journal.Position{}, 0
	}
	return h.Head, max(h.Number, numbers[h.Head.Epoch])
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
	channels := channelsOf(g.Fence)
	if len(channels) < 2 {
		e.say(FindingWarning, "name a second channel in fence:", "%s is the only fence: what it says is not believed alone", channels[0].Name())
	}
	for _, p := range g.Fence.Programs {
		e.agent(ctx, p)
	}
	ctx, cancel := context.WithTimeout(ctx, 4*examineBounded)
	defer cancel()
	for _, o := range (fence.Fence{Channels: channels}).Look(ctx) {
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

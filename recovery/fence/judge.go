package fence

import (
	"fmt"
	"slices"
	"strings"
)

// account is what one channel came to.
type account struct {
	name          string
	ofHost        bool
	liar, refused bool
	switched      bool // said it was done
	heard         bool // it saw the machine on before
	answered      bool // any act of it had an answer
	latest        State
	old           bool // latest is from before the last reading, which saw nothing
	reason        string
}

// judge makes one Result of what was seen, in its order. It is pure. Off needs two
// channels that saw the machine off after the last switch was thrown, at least one of
// them by more than silence, and none that sees it on. What was read again counts as it
// was read then; a host that is off then vouches for what was seen of its machine before.
func judge(seen []Observation) (Result, string) {
	accounts := accountsOf(seen)
	var offs, silences, ons, liars, refused, mute, old []string
	hostOff := slices.ContainsFunc(accounts, func(a *account) bool { return a.ofHost && !a.liar && !a.old && a.latest == SeenOff })
	for _, a := range accounts {
		switch {
		case a.liar:
			liars = append(liars, fmt.Sprintf("%s: %s", a.name, a.reason))
			continue
		case a.refused:
			refused = append(refused, fmt.Sprintf("%s: %s", a.name, a.reason))
		}
		switch {
		case a.latest == SeenOn && (!a.ofHost || a.switched || hostOff):
			ons = append(ons, a.name)
		case a.old && !hostOff && (a.latest == SeenOff || a.latest == SeenSilent):
			old = append(old, a.name)
		case a.latest == SeenOff:
			offs = append(offs, a.name)
		case a.latest == SeenSilent && a.heard:
			silences = append(silences, a.name)
		}
		if !a.answered {
			mute = append(mute, a.name)
		}
	}
	with := func(s string) string {
		if len(liars) > 0 {
			s += "; not believed: " + strings.Join(liars, "; ")
		}
		if len(old) > 0 {
			s += "; seen off before, and no answer since: " + strings.Join(old, ", ")
		}
		return s
	}
	switch {
	case len(ons) > 0:
		return Refused, with("it is seen to run by " + strings.Join(ons, ", "))
	case len(offs) > 0 && len(offs)+len(silences) > 1:
		return Off, with("it is seen off by " + strings.Join(append(offs, silences...), ", "))
	case len(offs) == 1:
		return Unproven, with(fmt.Sprintf("%s alone says that it is off, and no second channel confirms it", offs[0]))
	case len(refused) > 0:
		return Refused, with(strings.Join(refused, "; "))
	case len(accounts) == 0:
		return Unproven, "no fence is configured"
	case len(mute) == len(accounts):
		return Unreachable, "no answer from " + strings.Join(mute, ", ") + "; that is not the same as off"
	case len(liars) > 0:
		return Unproven, with("no channel that can be believed says that it is off")
	}
	return Unproven, with("no channel says that it is off")
}

func accountsOf(seen []Observation) []*account {
	var out []*account
	byName := map[string]*account{}
	for _, o := range seen {
		a := byName[o.Channel]
		if a == nil {
			a = &account{name: o.Channel, ofHost: o.OfHost}
			byName[o.Channel] = a
			out = append(out, a)
		}
		a.take(o)
	}
	return out
}

func (a *account) take(o Observation) {
	switch o.Act {
	case ActBefore:
		a.heard = a.heard || o.State == SeenOn
		a.answered = a.answered || o.State == SeenOn || o.State == SeenOff
		return
	case ActChallenge:
		a.answered = a.answered || o.Liar
	case ActSwitch:
		a.switched = a.switched || o.Error == ""
		a.answered = a.answered || o.Error == "" || o.Refused
	case ActAgain:
		if a.old = o.State == Unseen; !a.old {
			a.latest = o.State
		}
		a.answered = a.answered || o.State == SeenOn || o.State == SeenOff
	case ActAfter:
		// A host that was switched off since takes its libvirtd with it: what that saw
		// off was off then.
		if o.State != Unseen || a.latest != SeenOff {
			a.latest = o.State
		}
		a.answered = a.answered || o.State == SeenOn || o.State == SeenOff
	}
	if o.Liar || o.Refused {
		a.liar, a.refused, a.reason = a.liar || o.Liar, a.refused || o.Refused, o.Error
	}
}

package fence

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

// plug is a switch of a machine: it obeys or not, and something else sees what it does.
type plug struct {
	name   string
	on     *bool
	stuck  bool
	host   bool
	thrown int
	again  func() // happens when it is thrown
}

func (p *plug) Name() string { return p.name }

func (p *plug) OfHost() bool { return p.host }

func (p *plug) Read(context.Context) (State, string, error) {
	if *p.on {
		return SeenOn, "", nil
	}
	return SeenOff, "", nil
}

func (p *plug) Challenge(context.Context) (string, error) { return "", nil }

func (p *plug) SwitchOff(context.Context) (string, error) {
	p.thrown++
	if p.stuck {
		return "", fmt.Errorf("%w: it is stuck", ErrRefused)
	}
	*p.on = false
	if p.again != nil {
		p.again()
	}
	return "", nil
}

// eye sees a machine and throws nothing.
type eye struct {
	name string
	on   *bool
	deaf bool
}

func (e eye) Name() string { return e.name }

func (e eye) Read(context.Context) (State, string, error) {
	switch {
	case e.deaf:
		return Unseen, "", ErrUnreachable
	case *e.on:
		return SeenOn, "", nil
	}
	return SeenOff, "", nil
}

// Promise 12 for a group of several machines: they are off when every one is proven off,
// none stands for another one, and one that comes back while the next is switched off is seen.
func TestSeveralAreOffTogether(t *testing.T) {
	for name, c := range map[string]struct {
		db, web plug
		deaf    bool // nobody confirms web
		back    bool // db runs again when web was switched off
		want    Result
		why     string
		threw   int // web's plug
	}{
		"both obey":        {want: Off, why: "web: it is seen off", threw: 1},
		"the first stuck":  {db: plug{stuck: true}, want: Refused, why: "db: it is seen to run"},
		"the second stuck": {web: plug{stuck: true}, want: Refused, why: "web: it is seen to run", threw: 1},
		"one unconfirmed":  {deaf: true, want: Unproven, why: "web: web-plug alone", threw: 1},
		"the first back":   {back: true, want: Refused, why: "db: it is seen to run", threw: 1},
	} {
		db, web := true, true
		one, two := c.db, c.web
		one.name, one.on, two.name, two.on = "db-plug", &db, "web-plug", &web
		if c.back {
			two.again = func() { db = true }
		}
		s := Several{{"db", Fence{Channels: []Channel{&one, eye{"db-eye", &db, false}}}}, {"web", Fence{Channels: []Channel{&two, eye{"web-eye", &web, c.deaf}}}}}
		p := s.Prove(t.Context())
		if p.Result != c.want || !strings.Contains(p.Why, c.why) || two.thrown != c.threw {
			t.Errorf("%s: %s: %s; web's plug was thrown %d times", name, p.Result, p.Why, two.thrown)
		}
		for _, o := range p.Seen {
			if !strings.HasPrefix(o.Channel, "db: db-") && !strings.HasPrefix(o.Channel, "web: web-") {
				t.Errorf("%s: whose is %s", name, o)
			}
		}
		if n := s.Names(); len(n) != 4 || n[3] != "web: web-eye" {
			t.Errorf("%s: channels %v", name, n)
		}
	}
	if p := (Several{}).Prove(t.Context()); p.Result != Unproven {
		t.Errorf("of none: %+v", p)
	}
}

// fading is an eye that answers a number of times, and then no more.
type fading struct {
	eye
	left *int
}

func (f fading) Read(ctx context.Context) (State, string, error) {
	if *f.left--; *f.left < 0 {
		return Unseen, "", ErrUnreachable
	}
	return f.eye.Read(ctx)
}

// Promise 12: the proof of several is no older than the reading that ends it. What saw a
// machine off and does not answer when that is read again, is no witness any more, for the
// machine may have been started meanwhile, unless its host is seen off then.
func TestSeveralAreNotProvenByWhatWasSeenBefore(t *testing.T) {
	for name, c := range map[string]struct {
		eyes int  // how often db's eye answers: before, after, again
		back bool // db runs again when web was switched off, and its plug does not see that
		host bool // the plugs are of the host
		want Result
		why  string
	}{
		"it answers":                 {eyes: 3, want: Off},
		"it faded":                   {eyes: 2, want: Unproven, why: "db: db-plug alone says that it is off, and no second channel confirms it; seen off before, and no answer since: db-eye"},
		"it faded, and db is back":   {eyes: 2, back: true, want: Unproven, why: "seen off before, and no answer since: db-eye"},
		"it faded with the host":     {eyes: 2, host: true, want: Off},
		"it answers, and db is back": {eyes: 3, back: true, want: Refused, why: "db: it is seen to run by db-eye"},
	} {
		db, web, plugged := true, true, true
		one, two := plug{name: "db-plug", on: &plugged, host: c.host}, plug{name: "web-plug", on: &web, host: c.host}
		one.again = func() { db = false }
		if c.back {
			two.again = func() { db = true }
		}
		s := Several{{"db", Fence{Channels: []Channel{&one, fading{eye{"db-eye", &db, false}, &c.eyes}}}}, {"web", Fence{Channels: []Channel{&two, eye{"web-eye", &web, false}}}}}
		if p := s.Prove(t.Context()); p.Result != c.want || !strings.Contains(p.Why, c.why) {
			t.Errorf("%s: %s: %s", name, p.Result, p.Why)
		}
	}
}

// Their host's switch proves all of them: what fell silent with the first was heard
// before for the others too.
func TestSeveralOfOneHost(t *testing.T) {
	on := true
	host := &plug{name: "ipmi", on: &on, host: true}
	hears := Quiet{What: "session", Host: true, For: time.Millisecond, Heard: func(context.Context) (bool, error) { return on, nil }}
	f := Fence{Channels: []Channel{host, hears}}
	if p := (Several{{"db", f}, {"web", f}}).Prove(t.Context()); p.Result != Off || !strings.Contains(p.Why, "web: it is seen off by ipmi, session") {
		t.Errorf("%s: %s", p.Result, p.Why)
	}
}

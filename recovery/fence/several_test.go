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

package site

import (
	"fmt"
	"time"

	"github.com/novacron/afterimage/cbt/libvirt"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
)

// departed is how a domain left this host, as libvirt told. It is remembered, for a
// daemon that starts while the domain is away hears nothing of it.
type departed struct {
	How string    `json:"how"` // libvirt's words: migrated away, saved, shut down, crashed, …; "": it is here
	At  time.Time `json:"at"`
}

// migratedAway is what libvirt calls that.
const migratedAway = "migrated away"

// departedKey is where a group's journal remembers it.
func departedKey(t config.Tap) string {
	if t.Guest == "" {
		return "site/departed"
	}
	return "site/departed/" + t.Guest
}

// happened notes what libvirt tells of the domain's leaving and of its coming back.
func (p *plugs) happened(n libvirt.Happening) error {
	var now departed
	switch n.What {
	case libvirt.Stopped:
		now = departed{How: n.Detail, At: p.life.site.o.Now()}
	case libvirt.Started:
	default:
		return nil
	}
	var was departed
	known, err := p.life.j.Recall(departedKey(p.tap), &was)
	if err != nil || !known && now.How == "" {
		return err
	}
	return p.life.j.Remember(departedKey(p.tap), now)
}

// away is why the domain is not here, if libvirt told and it is not back.
func (p *plugs) away() []control.Notice {
	var was departed
	if known, err := p.life.j.Recall(departedKey(p.tap), &was); err != nil || !known || was.How == "" {
		return nil
	}
	n := control.Notice{Level: control.Alarm,
		Text: fmt.Sprintf("not protected: domain %s was %s at %s", p.tap.Libvirt.Domain, was.How, was.At.Format(time.RFC3339)),
		Hint: "when it runs here again it is captured by itself, and what changed meanwhile is read from its disks"}
	if was.How == migratedAway {
		n.Text += "; libvirt does not tell to which host"
		n.Hint = "virsh list at the other hosts finds it; " + n.Hint
	}
	return []control.Notice{n}
}

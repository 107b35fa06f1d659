package fence

import (
	"context"
	"crypto/ed25519"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
)

// agent is a fence agent as a shell script; plugs are files below dir that say on or off.
func agent(t *testing.T, dir, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fence_test")
	text := `#!/bin/sh
action= plug=
while IFS= read -r line; do
	case "$line" in action=*) action=${line#action=};; plug=*) plug=${line#plug=};; secret=*) secret=${line#secret=};; esac
done
echo "$action $plug $secret" >> ` + dir + `/asked
` + body + "\n"
	if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

const honest = `
cd DIR || exit 1
case "$action" in
metadata) echo '<resource-agent name="fence_test"><actions><action name="off"/><action name="status"/></actions></resource-agent>'; exit 0;;
off) [ -f "$plug" ] || exit 1; echo off > "$plug"; exit 0;;
status) [ -f "$plug" ] || exit 1; [ "$(cat "$plug")" = on ] && exit 0; exit 2;;
esac
exit 1`

// power is a device with plugs, seen through a second channel as well.
type power struct {
	dir string
	t   *testing.T
}

func newPower(t *testing.T, plugs ...string) power {
	p := power{t.TempDir(), t}
	for _, name := range plugs {
		p.set(name, "on")
	}
	return p
}

func (p power) set(plug, state string) {
	p.t.Helper()
	if err := os.WriteFile(filepath.Join(p.dir, plug), []byte(state+"\n"), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

func (p power) is(plug string) string {
	b, _ := os.ReadFile(filepath.Join(p.dir, plug))
	return strings.TrimSpace(string(b))
}

func (p power) agent(body string) string {
	return agent(p.t, p.dir, strings.ReplaceAll(body, "DIR", p.dir))
}

// second sees a plug without the program.
func (p power) second(plug string) Channel {
	return seen{"second", func() (State, error) {
		if p.is(plug) == "on" {
			return SeenOn, nil
		}
		return SeenOff, nil
	}}
}

type seen struct {
	name string
	see  func() (State, error)
}

func (s seen) Name() string { return s.name }
func (s seen) Read(context.Context) (State, string, error) {
	state, err := s.see()
	return state, "", err
}

// A fence that says yes to everything, in each of the ways that exit statuses allow, is
// found out before it is believed, and so is one that switches another plug.
func TestLyingPrograms(t *testing.T) {
	const timeout = time.Minute
	for name, c := range map[string]struct {
		body, control string
		second        bool
		want          Result
		liar          bool
	}{
		"honest":                    {honest, "", true, Off, false},
		"honest, with control":      {honest, "control", true, Off, false},
		"honest, no second channel": {honest, "", false, Unproven, false},
		"always 0":                  {`exit 0`, "", true, Refused, true}, // the second channel sees it run
		"always 0, alone":           {`exit 0`, "", false, Unproven, true},
		"status always off":         {`[ "$action" = status ] && exit 2; exit 0`, "", false, Unproven, true},
		"off for known plugs":       {`case "$plug" in none-*) exit 1;; esac; [ "$action" = status ] && exit 2; exit 0`, "control", true, Refused, true},
		"off for its plug alone":    {`[ "$plug" = web ] || { [ "$plug" = control ] && exit 0; exit 1; }; [ "$action" = status ] && exit 2; exit 0`, "control", true, Refused, false},
		"the same, no second":       {`[ "$plug" = web ] || { [ "$plug" = control ] && exit 0; exit 1; }; [ "$action" = status ] && exit 2; exit 0`, "control", false, Unproven, false},
		"switches another plug":     {strings.ReplaceAll(honest, `"$plug"`, `"${plug%web}other"`), "", true, Refused, false},
		"refuses":                   {`[ "$action" = off ] && exit 1; ` + honest, "", false, Refused, false},
		"not there":                 {"", "", false, Unreachable, false},
		"broken":                    {`exit 1`, "", false, Unreachable, false},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPower(t, "web", "control", "other")
			agent := Program{Path: "/nonexistent/fence", Plug: "web", Control: c.control, Timeout: timeout}
			if c.body != "" {
				agent.Path = p.agent(c.body)
			}
			f := Fence{Channels: []Channel{agent}}
			if c.second {
				f.Channels = append(f.Channels, p.second("web"))
			}
			proof := f.Prove(t.Context())
			if proof.Result != c.want || slices.ContainsFunc(proof.Seen, func(o Observation) bool { return o.Liar }) != c.liar {
				t.Errorf("%s: %s\n%v", proof.Result, proof.Why, proof.Seen)
			}
			if proof.Result == Off && p.is("web") != "off" {
				t.Error("proven off, and it is on")
			}
			if c.liar && strings.Contains(p.asked(), "off web") {
				t.Error("a liar was asked to switch off")
			}
		})
	}
}

func (p power) asked() string {
	b, _ := os.ReadFile(filepath.Join(p.dir, "asked"))
	return string(b)
}

// Parameters reach the program on stdin, secrets from their file, and what it says is
// kept; it is told nothing in arguments.
func TestProgramInputAndOutput(t *testing.T) {
	p := newPower(t, "web")
	secrets := filepath.Join(t.TempDir(), "s")
	if err := os.WriteFile(secrets, []byte("secret=hidden\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a := Program{Path: p.agent(`[ $# -eq 0 ] || exit 1; echo "words of the device"; ` + honest), Plug: "web", Secrets: secrets, Timeout: time.Minute}
	said, err := a.SwitchOff(t.Context())
	if err != nil || said != "words of the device" || p.is("web") != "off" {
		t.Errorf("%q, %v", said, err)
	}
	if !strings.Contains(p.asked(), "off web hidden") {
		t.Errorf("asked %q", p.asked())
	}
	a.Path = p.agent(honest)
	if actions, err := a.Actions(t.Context()); err != nil || !slices.Equal(actions, []string{"off", "status"}) {
		t.Errorf("%v, %v", actions, err)
	}
}

// A timeout is a failure, not a success, also where a child holds the output.
func TestProgramTimeout(t *testing.T) {
	p := newPower(t, "web")
	a := Program{Path: p.agent("sleep 1000 & wait"), Plug: "web", Timeout: 100 * time.Millisecond}
	proof := Fence{Channels: []Channel{a}}.Prove(t.Context())
	if proof.Result != Unreachable || p.is("web") != "on" {
		t.Errorf("%s: %s", proof.Result, proof.Why)
	}
}

// The gentle switch is tried first; the next one is thrown only when that did not prove.
func TestNextSwitch(t *testing.T) {
	p := newPower(t, "web", "host")
	gentle := Program{Path: p.agent(`[ "$action" = off ] && exit 1; ` + honest), Plug: "web", Timeout: time.Minute}
	hard := Program{Path: p.agent(`[ "$action" = off ] && echo off > web; ` + honest), Plug: "host", Host: true, Timeout: time.Minute}
	hard.Path = p.agent("cd DIR; [ \"$action$plug\" = offhost ] && echo off > web; " + honest)
	if proof := (Fence{Channels: []Channel{gentle, hard}}).Prove(t.Context()); proof.Result != Off || p.is("host") != "off" {
		t.Errorf("%s: %s", proof.Result, proof.Why)
	}
	p = newPower(t, "web", "host")
	gentle.Path = p.agent(honest)
	hard.Path = p.agent(honest)
	if proof := (Fence{Channels: []Channel{gentle, p.second("web"), hard}}).Prove(t.Context()); proof.Result != Off || p.is("host") != "on" {
		t.Errorf("%s: %s, host %s", proof.Result, proof.Why, p.is("host"))
	}
}

func TestOptions(t *testing.T) {
	for line, ok := range map[string]bool{"ip=192.0.2.1": true, "a=": true, "x": false, "=x": false, "a b=c": false, "a=b\nc=d": false, "action=on": false, "plug=3": false} {
		if err := CheckOption(line); (err == nil) != ok {
			t.Errorf("%q: %v", line, err)
		}
	}
}

type signer struct{ key ed25519.PrivateKey }

func (s signer) Public() ed25519.PublicKey  { return s.key.Public().(ed25519.PublicKey) }
func (s signer) Sign(message []byte) []byte { return ed25519.Sign(s.key, message) }

func newSigner(t *testing.T) signer {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return signer{key}
}

// A statement is believed only as it was signed, by that site's key, about that group,
// and while nothing was heard that was written after it; a changed byte anywhere ends it.
func TestStatement(t *testing.T) {
	by, id, epoch := newSigner(t), journal.Identity{Group: cbt.NewID()}, journal.EpochID{1}
	x := Standing{Site: "a", Group: "default/web", Identity: id, Head: journal.Position{Epoch: epoch, Seq: 90}, Epoch: 3, How: "seen off", Time: time.Now()}
	text, err := x.Sign(by)
	if err != nil {
		t.Fatal(err)
	}
	good := Statement{Text: " " + text + "\n", Site: "a", Key: func(k []byte) bool { return slices.Equal(k, by.Public()) }, Identity: id, Latest: x.Head, Epoch: 3}
	if state, detail, err := good.Read(t.Context()); err != nil || state != SeenOff || !strings.Contains(detail, "#90") {
		t.Fatalf("%s %q %v", state, detail, err)
	}
	for name, change := range map[string]func(*Statement){
		"another key":    func(s *Statement) { s.Key = func([]byte) bool { return false } },
		"no key":         func(s *Statement) { s.Key = nil },
		"another site":   func(s *Statement) { s.Site = "c" },
		"another group":  func(s *Statement) { s.Identity.Group = cbt.NewID() },
		"wrote after it": func(s *Statement) { s.Latest.Seq = 91 },
		"a newer epoch":  func(s *Statement) { s.Epoch = 4 },
		"empty":          func(s *Statement) { s.Text = "" },
		"long":           func(s *Statement) { s.Text += strings.Repeat("A", maxStatement) },
	} {
		bad := good
		change(&bad)
		if state, _, err := bad.Read(t.Context()); !errors.Is(err, ErrStatement) || state != Unseen {
			t.Errorf("%s: %s, %v", name, state, err)
		}
	}
	// A carriage return or a newline inside is no change to the bytes that are decoded,
	// so letters alone are tried.
	for i := range text {
		b := []byte(text)
		b[i] = map[bool]byte{true: 'B', false: 'A'}[b[i] == 'A']
		bad := good
		bad.Text = string(b)
		if x, err := bad.Standing(); err == nil && x != mustStand(t, good) {
			t.Fatalf("byte %d changed, and it is believed: %+v", i, x)
		}
	}
}

func mustStand(t *testing.T, s Statement) Standing {
	x, err := s.Standing()
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func TestQuiet(t *testing.T) {
	heard := true
	q := Quiet{What: "q", Heard: func(context.Context) (bool, error) { return heard, nil }, For: time.Millisecond}
	if s, _, err := q.Read(t.Context()); s != SeenOn || err != nil {
		t.Errorf("%s, %v", s, err)
	}
	heard = false
	if s, _, err := q.Read(t.Context()); s != SeenSilent || err != nil {
		t.Errorf("%s, %v", s, err)
	}
	q.Heard = func(context.Context) (bool, error) { return false, errors.New("no ping here") }
	if s, _, err := q.Read(t.Context()); s != Unseen || !errors.Is(err, ErrUnreachable) {
		t.Errorf("%s, %v", s, err)
	}
}

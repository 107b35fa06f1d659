package fence

import (
	"strings"
	"testing"
)

// after is a reading at the end.
func after(name string, s State) Observation {
	return Observation{Channel: name, Act: ActAfter, State: s}
}

func before(name string, s State) Observation {
	return Observation{Channel: name, Act: ActBefore, State: s}
}

func ofHost(o Observation) Observation { o.OfHost = true; return o }

func liar(name string) Observation {
	return Observation{Channel: name, Act: ActChallenge, Error: "it lies", Liar: true}
}

func threw(name string) Observation { return Observation{Channel: name, Act: ActSwitch} }

// Promise 12: off is what two channels saw and none denies; everything else has another
// name, and no number of silences makes an off.
func TestJudge(t *testing.T) {
	mute := Observation{Channel: "p", Act: ActChallenge, Error: "no route"}
	no := Observation{Channel: "p", Act: ActSwitch, Error: "it did not", Refused: true}
	for name, c := range map[string]struct {
		seen []Observation
		want Result
	}{
		"none configured":          {nil, Unproven},
		"two channels":             {[]Observation{threw("p"), after("p", SeenOff), after("l", SeenOff)}, Off},
		"one channel":              {[]Observation{threw("p"), after("p", SeenOff), after("l", Unseen)}, Unproven},
		"one channel twice":        {[]Observation{threw("p"), after("p", SeenOff), after("p", SeenOff)}, Unproven},
		"contradicted":             {[]Observation{threw("p"), after("p", SeenOff), after("l", SeenOff), after("q", SeenOn)}, Refused},
		"says done, is on":         {[]Observation{threw("p"), after("p", SeenOn)}, Refused},
		"nobody answers":           {[]Observation{before("p", Unseen), mute, after("p", Unseen), after("l", Unseen)}, Unreachable},
		"silence alone":            {[]Observation{before("q", SeenOn), after("q", SeenSilent), before("r", SeenOn), after("r", SeenSilent)}, Unproven},
		"off, then silent":         {[]Observation{before("q", SeenOn), threw("p"), after("p", SeenOff), after("q", SeenSilent)}, Off},
		"off, silent all along":    {[]Observation{before("q", SeenSilent), threw("p"), after("p", SeenOff), after("q", SeenSilent)}, Unproven},
		"done, only silence":       {[]Observation{before("q", SeenOn), threw("p"), after("p", Unseen), after("q", SeenSilent)}, Unproven},
		"a liar and another":       {[]Observation{liar("p"), after("p", SeenOff), after("l", SeenOff)}, Unproven},
		"a liar alone":             {[]Observation{liar("p"), after("p", SeenOff)}, Unproven},
		"a liar and two":           {[]Observation{liar("p"), after("p", SeenOff), after("l", SeenOff), after("s", SeenOff)}, Off},
		"it refused":               {[]Observation{before("p", SeenOn), no, after("p", Unseen)}, Refused},
		"the host runs on":         {[]Observation{threw("l"), after("l", SeenOff), ofHost(after("p", SeenOn)), after("s", SeenOff)}, Off},
		"the host is switched off": {[]Observation{threw("l"), after("l", SeenOff), ofHost(threw("p")), after("l", Unseen), ofHost(after("p", SeenOff))}, Off},
		"off, and the host pings":  {[]Observation{after("l", SeenOff), ofHost(threw("p")), ofHost(after("p", SeenOff)), ofHost(after("q", SeenOn))}, Refused},
		"started again meanwhile":  {[]Observation{after("l", SeenOff), after("p", SeenOff), after("l", SeenOn)}, Refused},
	} {
		got, why := judge(c.seen)
		if got != c.want || why == "" {
			t.Errorf("%s: %s (%s), want %s", name, got, why, c.want)
		}
	}
	if _, why := judge([]Observation{liar("p"), after("p", SeenOff)}); !strings.Contains(why, "it lies") {
		t.Errorf("the liar is not named: %s", why)
	}
}

// Whatever two channels see in whatever order, off is never concluded unless one saw it
// off and none of those that are believed sees it on.
func TestJudgeNeverInventsAnOff(t *testing.T) {
	states := []State{SeenOn, SeenOff, SeenSilent, Unseen}
	n := 0
	for _, a0 := range states {
		for _, b0 := range states {
			for _, a1 := range states {
				for _, b1 := range states {
					for lies := range 4 {
						seen := []Observation{before("a", a0), before("b", b0)}
						if lies&1 != 0 {
							seen = append(seen, liar("a"))
						}
						if lies&2 != 0 {
							seen = append(seen, liar("b"))
						}
						seen = append(seen, after("a", a1), after("b", b1))
						offs := 0
						for _, s := range []State{a1, b1} {
							if s == SeenOff {
								offs++
							}
						}
						heard := a1 == SeenSilent && a0 == SeenOn || b1 == SeenSilent && b0 == SeenOn
						may := lies == 0 && a1 != SeenOn && b1 != SeenOn && (offs == 2 || offs == 1 && heard)
						if r, why := judge(seen); (r == Off) != may {
							t.Errorf("%s→%s, %s→%s, liars %b: %s (%s)", a0, a1, b0, b1, lies, r, why)
						}
						n++
					}
				}
			}
		}
	}
	if n != 1024 {
		t.Errorf("%d cases", n)
	}
}

package replicator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/novacron/afterimage/journal"
)

// Either end asks the other about a group, whoever dialled; a no is told from silence.
func TestSitesConsultEachOther(t *testing.T) {
	p := newPair(t)
	id := p.from.Identity()
	answering := func(name string) func(context.Context, string, journal.Identity, string, []byte) ([]byte, error) {
		return func(_ context.Context, peer string, of journal.Identity, topic string, text []byte) ([]byte, error) {
			switch {
			case of != id:
				return nil, ErrUnknownGroup
			case topic == "no":
				return nil, fmt.Errorf("%w: not now", ErrDeclined)
			case topic == "empty":
				return nil, nil
			}
			return fmt.Appendf(nil, "%s hears %s of %s: %s", name, topic, peer, text), nil
		}
	}
	p.source.o.Consult, p.replica.o.Consult = answering("a"), answering("b")
	p.up()
	p.load(10, 1, 100)
	p.caughtUp()
	long := bytes.Repeat([]byte("x"), 300<<10)
	for _, x := range []struct {
		peer, self string
		r          *Replicator
	}{{"a", "b", p.replica.rep}, {"b", "a", p.source.rep}} {
		got, err := x.r.Consult(t.Context(), x.peer, id, "heads", long)
		if want := fmt.Sprintf("%s hears heads of %s: %s", x.peer, x.self, long); err != nil || string(got) != want {
			t.Errorf("from %s: %.60s…, %v", x.peer, got, err)
		}
		if _, err := x.r.Consult(t.Context(), x.peer, id, "no", nil); !errors.Is(err, ErrDeclined) {
			t.Errorf("from %s, declined: %v", x.peer, err)
		}
		if _, err := x.r.Consult(t.Context(), x.peer, journal.Identity{}, "heads", nil); !errors.Is(err, ErrUnknownGroup) {
			t.Errorf("from %s, of another group: %v", x.peer, err)
		}
		var refused *RefusedError
		if _, err := x.r.Consult(t.Context(), x.peer, id, "empty", nil); !errors.As(err, &refused) || errors.Is(err, ErrDeclined) {
			t.Errorf("from %s, nothing: %v", x.peer, err)
		}
		if _, err := x.r.Consult(t.Context(), x.peer, id, "heads", make([]byte, maxConsultBytes+1)); !errors.Is(err, ErrProtocol) {
			t.Errorf("from %s, too much: %v", x.peer, err)
		}
		if _, err := x.r.Consult(t.Context(), "nobody", id, "heads", nil); !errors.Is(err, ErrNotConnected) {
			t.Errorf("from nobody: %v", err)
		}
	}
}

// The end of a question may come in a packet of its own, behind the answer even: such
// questions do not use up those that may be asked at once.
func TestQuestionsThatEndLateDoNotUseUpTheLimit(t *testing.T) {
	p := newPair(t)
	id := p.from.Identity()
	p.replica.o.Consult = func(context.Context, string, journal.Identity, string, []byte) ([]byte, error) {
		return []byte("yes"), nil
	}
	p.up()
	p.load(10, 1, 100)
	p.caughtUp()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for i := range 5 * maxQuestions {
		l := p.source.rep.linkTo("b")
		s, err := l.conn.Ask(ctx)
		if err != nil {
			t.Fatalf("question %d: %v", i, err)
		}
		if _, err := s.Write(question{most: maxConsultBytes, group: id, about: &consultation{"heads", nil}}.encode()); err != nil {
			t.Fatal(err)
		}
		if a, err := readAnswer(s, maxConsultBytes); err != nil || a.bytes != 3 {
			t.Fatalf("answer %d: %+v, %v", i, a, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := readBounded(s, 3); err != nil {
			t.Fatal(err)
		}
		s.Cancel()
	}
}

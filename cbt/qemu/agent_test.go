package qemu

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt/cbttest"
)

// fakeAgent answers one connection after the other, as qemu-guest-agent does
// behind a channel: what an earlier caller did not read comes first.
func fakeAgent(t *testing.T, stale []string, answers map[string]string) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "qga")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			for _, s := range stale {
				fmt.Fprintln(c, s)
			}
			for lines := bufio.NewScanner(c); lines.Scan(); {
				var in struct {
					Execute   string
					Arguments struct{ ID int64 }
				}
				if json.Unmarshal(lines.Bytes(), &in) != nil {
					break
				}
				if in.Execute == "guest-sync" {
					fmt.Fprintf(c, "{\"return\": %d}\n", in.Arguments.ID)
				} else if a, ok := answers[in.Execute]; ok {
					fmt.Fprintln(c, a)
				}
			}
			c.Close()
		}
	}()
	return socket
}

func TestAgentFreezesAndThaws(t *testing.T) {
	ctx := cbttest.Context(t, patience)
	a := Agent{fakeAgent(t, []string{`{"return": 12}`, `{"error": {"desc": "old"}}`, "noise"}, map[string]string{
		"guest-fsfreeze-freeze": `{"return": 3}`, "guest-fsfreeze-thaw": `{"error": {"class": "GenericError", "desc": "not so"}}`,
	})}
	if n, err := a.Freeze(ctx); err != nil || n != 3 {
		t.Errorf("freeze: %d, %v", n, err)
	}
	if _, err := a.Thaw(ctx); !errors.Is(err, ErrAgent) || !errors.Is(err, ErrAgentRefused) {
		t.Errorf("a refusal: %v", err)
	}
	for _, noise := range []string{"noise", `{"return": "three"}`} {
		garbled := Agent{fakeAgent(t, nil, map[string]string{"guest-fsfreeze-freeze": noise})}
		if _, err := garbled.Freeze(ctx); !errors.Is(err, ErrAgent) || errors.Is(err, ErrAgentRefused) {
			t.Errorf("an agent that answered %s: %v", noise, err)
		}
	}
	silent := Agent{fakeAgent(t, nil, nil)}
	if _, err := silent.Freeze(cbttest.Context(t, 50*time.Millisecond)); !errors.Is(err, ErrAgent) || errors.Is(err, ErrAgentRefused) {
		t.Errorf("a silent agent: %v", err)
	}
	if _, err := (Agent{filepath.Join(t.TempDir(), "none")}).Thaw(ctx); !errors.Is(err, ErrAgent) {
		t.Errorf("no agent: %v", err)
	}
}

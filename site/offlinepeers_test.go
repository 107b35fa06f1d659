package site

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/novacron/afterimage/site/config"
)

// TestWithoutTheDaemonAPairedPeerIsNotCalledUnpaired: its key may have come by a token,
// and only the daemon's file has it.
func TestWithoutTheDaemonAPairedPeerIsNotCalledUnpaired(t *testing.T) {
	dir := t.TempDir()
	s := newSite(&config.Config{Site: "a", Data: dir, Peers: []config.Peer{{Name: "b"}, {Name: "c"}}}, Options{}.withDefaults())
	for _, c := range []struct{ file, b, c string }{
		{`{"paired":{"b":{"pin":"sha256:YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWE"}}}`, "unknown", "unpaired"},
		{`{"paired":`, "unknown", "unknown"},
	} {
		if err := os.WriteFile(filepath.Join(dir, "peers.json"), []byte(c.file), 0o600); err != nil {
			t.Fatal(err)
		}
		st, err := s.Status(t.Context())
		if err != nil || st.Peers[0].State != c.b || st.Peers[1].State != c.c {
			t.Errorf("with %s: %+v, %v", c.file, st.Peers, err)
		}
	}
}

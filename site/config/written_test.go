package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestWrittenTellsWhatChanged(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a.yml")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Remember(file); err == nil {
		t.Error("a file that is not there was read")
	}
	write("site: a\n")
	w, err := Remember(file)
	if err != nil {
		t.Fatal(err)
	}
	if got := w.Changed(); got != "" {
		t.Errorf("nothing was written, and it %s", got)
	}
	write("site: a\ngroups: []\n")
	if got := w.Changed(); got != "has changed since the daemon read it" {
		t.Errorf("after a change it %q", got)
	}
	write("site: a\n")
	if got := w.Changed(); got != "" {
		t.Errorf("the change was taken back, and it %s", got)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if got := w.Changed(); !strings.HasPrefix(got, "cannot be read") {
		t.Errorf("without the file it %q", got)
	}
	if got := (Written{}).Changed(); got != "" {
		t.Errorf("where none was read it %q", got)
	}
}

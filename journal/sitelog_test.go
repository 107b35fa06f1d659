package journal

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Wherever in a page an entry begins, and whichever of its sectors or pages a crash
// keeps, the log opens with what was synced before.
func TestSiteLogTornAnywhere(t *testing.T) {
	for before := range 12 { // bytes of the entry in front of the next page
		fs := vfs.NewMem()
		must(t, fs.MkdirAll("j", 0o700))
		l, err := openSiteLog(fs, "j")
		must(t, err)
		must(t, l.remember("kept", 1))
		empty, _ := encodeSiteEntry(siteEntry{"pad", []byte(`""`), l.n + 1}, l.last)
		must(t, l.remember("pad", strings.Repeat("x", 2*pageBytes-before-int(l.end)-len(empty))))
		at := int(l.end)
		if at != 2*pageBytes-before {
			t.Fatalf("the entry begins at %d, not %d bytes before a page", at, before)
		}
		must(t, l.remember("torn", strings.Repeat("y", 2*pageBytes)))
		b := make([]byte, l.end)
		_, err = l.file.ReadAt(b, 0)
		must(t, err)
		must(t, l.close())
		for _, unit := range []int{sectorBytes, pageBytes} {
			for keep := range 16 { // of the first three, and of the rest
				must(t, opensTorn(tear(b, at, unit, keep), fmt.Sprintf("%d bytes before a page, units of %d, kept %04b", before, unit, keep)))
			}
		}
	}
}

// tear loses what is behind at, unit by unit, but the units named in keep: three bits
// for the first three, one for all others.
func tear(b []byte, at, unit, keep int) []byte {
	out := bytes.Clone(b)
	for i, from := 0, at; from < len(b); i++ {
		to := min((from/unit+1)*unit, len(b))
		if keep>>min(i, 3)&1 == 0 {
			clear(out[from:to])
		}
		from = to
	}
	return out
}

// opensTorn opens a log of these bytes, also cut off at the last that is kept.
func opensTorn(b []byte, what string) error {
	for _, b := range [][]byte{b, bytes.TrimRight(b, "\x00")} {
		fs := vfs.NewMem()
		if err := fs.MkdirAll("j", 0o700); err != nil {
			return err
		}
		f, err := fs.Create("j/"+siteLogName, vfs.WriteCategoryUnspecified)
		if err != nil {
			return err
		}
		if _, err := f.Write(bytes.Clone(b)); err != nil { // a checking build of MemFS spoils what it is given
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
		l, err := openSiteLog(fs, "j")
		if err != nil {
			return fmt.Errorf("%s, %d bytes: %w", what, len(b), err)
		}
		var kept int
		if ok, err := l.recall("kept", &kept); !ok || kept != 1 || err != nil {
			return fmt.Errorf("%s: what was synced before is %d: %w", what, kept, err)
		}
		if err := l.close(); err != nil {
			return err
		}
	}
	return nil
}

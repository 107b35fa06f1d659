package site

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
)

// A disk that grew while its group was paused is a record, its new part is captured, and
// it keeps its size when the daemon comes back to a configuration of the old one. One
// that shrank is refused, loudly; what was recorded of it stays.
func TestDomainDiskIsResized(t *testing.T) {
	t.Parallel()
	w := newDomainWorld(t, config.PassthroughAllowed)
	r := w.start()
	r.awaitState("web", control.StateSynced)
	if out, err := w.tryVirsh("blockresize", "web", "vda", "12288"); err == nil {
		t.Errorf("a tapped disk was resized: %s", out)
	}
	away := func(kib string, then func()) {
		t.Helper()
		if _, err := r.Pause(context.Background(), control.PauseRequest{Group: "web", Seconds: 3600, Reason: "another size"}); err != nil {
			t.Fatal(err)
		}
		w.virsh("blockresize", "web", "vda", kib)
		then()
		if _, err := r.Resume(context.Background(), control.ResumeRequest{Group: "web"}); err != nil {
			t.Fatal(err)
		}
	}
	const grown = 12 << 20
	// What is written before the tap is there again is in no bitmap afterwards.
	away("12288", func() { w.guestWrites(0, 0x77, 9<<20) })
	r.awaitState("web", control.StateSynced)
	w.guestWrites(0, 0x55, 10<<20)
	r.stop()
	r = w.start()
	r.awaitState("web", control.StateSynced)
	w.guestWrites(0, 0x66, 11<<20)
	root, _ := w.restored(r, "latest")
	if len(root) != grown || !filled(root, 0x77, 9<<20) || !filled(root, 0x55, 10<<20) || !filled(root, 0x66, 11<<20) {
		t.Errorf("the newest point has %d bytes, or not what the guest wrote behind the old end", len(root))
	}
	if v := r.detail("web").Volumes[0]; v.Size != grown || v.Resync == nil || v.Resync.Full {
		t.Errorf("after a restart: %+v, %+v", v, v.Resync)
	}
	var sizes []int64
	for _, c := range r.points("web").Changes {
		if c.Volume == "root" {
			sizes = append(sizes, c.Size)
		}
	}
	if len(sizes) != 2 || sizes[0] != 8<<20 || sizes[1] != grown {
		t.Errorf("sizes on record: %v", sizes)
	}

	away("4096", func() {})
	await(t, "the shrunk disk is refused", func() bool {
		g := r.groupLine("web")
		return g.State == control.StateGap && strings.Contains(g.Detail, "has shrunk from 12582912 to 4194304 bytes")
	})
	before := r.points("web").Spans
	if last := before[len(before)-1]; last.Open {
		t.Errorf("points of a shrunk disk: %+v", last)
	}
	if again, _ := w.restored(r, "latest"); len(again) != grown || !filled(again, 0x66, 11<<20) {
		t.Error("what was recorded is gone")
	}
	away("12288", func() {})
	r.awaitState("web", control.StateSynced)
}

// tryVirsh is virsh that may be refused.
func (w *domainWorld) tryVirsh(args ...string) (string, error) {
	return virshOf(w.d, args...)
}

// A definition that is changed while the domain runs is recorded anew, as is what its
// firmware remembers.
func TestDefinitionIsRecordedAnew(t *testing.T) {
	t.Parallel()
	w := newDomainWorld(t, config.PassthroughAllowed)
	w.virsh("destroy", "web")
	code, nvram := w.d.Path("code"), w.d.Path("nvram")
	for _, p := range []string{code, nvram} {
		if err := os.WriteFile(p, make([]byte, 64<<10), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	w.d.Own(t, code, nvram)
	text, err := os.ReadFile(filepath.Join(w.dir, "domain.xml"))
	if err != nil {
		t.Fatal(err)
	}
	text = bytes.Replace(text, []byte("</type></os>"), fmt.Appendf(nil, "</type><loader readonly='yes' type='pflash'>%s</loader><nvram>%s</nvram></os>", code, nvram), 1)
	define := func(title string) {
		t.Helper()
		p := filepath.Join(w.dir, title+".xml")
		of := "<uuid>5a9d3a64-44b7-4c0c-a8b8-0e4c1c4d7b11</uuid><title>" + title + "</title><memory"
		if err := os.WriteFile(p, bytes.Replace(text, []byte("<memory"), []byte(of), 1), 0o600); err != nil {
			t.Fatal(err)
		}
		w.virsh("define", p)
	}
	define("first")
	w.virsh("start", "web")
	r := w.start()
	r.awaitState("web", control.StateSynced)
	changed := func() string {
		var out []string
		for _, c := range r.points("web").Changes {
			if c.Machine != "" {
				out = append(out, c.Machine)
			}
		}
		return strings.Join(out, " ")
	}
	awaitChanges := func(want string) {
		t.Helper()
		await(t, want+" are recorded", func() bool { return changed() == want })
	}
	awaitChanges("web web#nvram")
	define("second")
	awaitChanges("web web#nvram web")
	if err := os.WriteFile(nvram, bytes.Repeat([]byte{7}, 64<<10), 0o644); err != nil {
		t.Fatal(err)
	}
	define("third") // what is looked at now and then is looked at with each event, too
	await(t, "what the firmware remembers is recorded", func() bool {
		l, release, err := r.open(context.Background(), r.groups[0])
		if err != nil {
			t.Fatal(err)
		}
		defer release()
		all, err := l.j.Machines(journal.Point{Position: l.j.Head().Position})
		if err != nil {
			t.Fatal(err)
		}
		vars := all["web#nvram"]
		return strings.Contains(string(all["web"]), "<title>third</title>") && len(vars) == 64<<10 && vars[0] == 7
	})
}

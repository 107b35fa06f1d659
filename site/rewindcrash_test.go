package site

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/scale"
)

// A rewind of two disks dies at each of its moments, there and back: opened again the
// group is where it was, or where it was to go, all of its disks together; image,
// export and journal agree; and it can be rewound again from there.
func TestRewindDiesAtAnyMoment(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	rest := "groups: [{name: web, role: primary, quota: 64MiB, volumes: [{name: root, size: 3MiB, embedded: {image: root.img}}, {name: data, size: 2MiB, embedded: {image: data.img}}]}]\n"
	var left []string // directories of crashes
	taking := false
	o := Options{passed: func(step string) {
		if !taking {
			return
		}
		dir := fmt.Sprintf("%s-%d", w.dir, len(left))
		t.Cleanup(func() { os.RemoveAll(dir) })
		await(t, "a copy of one moment", func() bool { // files of the index may go while they are copied
			os.RemoveAll(dir)
			err := copyFiles(dir, w.dir)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
			return err == nil
		})
		left = append(left, dir)
		t.Logf("%d: %s", len(left)-1, step)
	}}
	a := w.runWith(w.configure("a", rest), o)
	a.awaitState("web", control.StateSynced)
	a.write("web/root", 1, 0, 3<<20)
	a.write("web/data", 2, 0, 2<<20)
	at := fmt.Sprintf("#%d", a.groupLine("web").Seq)
	before := [2][]byte{w.image("root"), w.image("data")}
	a.write("web/root", 3, 1<<19, 2<<20)
	a.write("web/data", 4, 1<<20, 1<<19)
	after := [2][]byte{w.image("root"), w.image("data")}
	taking = true
	undo := a.rewind(at).Undo
	forth := len(left)
	a.rewind(undo)
	taking = false
	a.stop()

	stride, n := 6, 0
	if scale.Sweeps() {
		stride = 1
	}
	kinds := map[bool]int{}
	for i, dir := range left {
		if i%stride != 0 {
			continue
		}
		n++
		from, to := after, before
		if i >= forth {
			from, to = before, after
		}
		x := &world{t, dir}
		s := x.run(x.configure("a", rest))
		s.awaitState("web", control.StateSynced)
		got := [2][]byte{x.image("root"), x.image("data")}
		went := bytes.Equal(got[0], to[0]) && bytes.Equal(got[1], to[1])
		if stayed := bytes.Equal(got[0], from[0]) && bytes.Equal(got[1], from[1]); !went && !stayed {
			t.Fatalf("crash %d: the disks are neither here nor there", i)
		}
		kinds[went]++
		if p, ok, err := recovery.Newest(s.groups[0].life.j); err != nil || ok && p.State == recovery.PromotionBegun {
			t.Errorf("crash %d: %+v, %v is not finished", i, p, err)
		}
		for k, name := range []string{"root", "data"} {
			s.reads("web/"+name, got[k][0], 0, 512)
			p := make([]byte, len(got[k]))
			l, release, err := s.groups[0].use()
			if err == nil {
				err = l.reigning().writer.ReadHead(t.Context(), l.reigning().disks[k].volume.ID, 0, p)
				release()
			}
			if err != nil || !bytes.Equal(p, got[k]) {
				t.Fatalf("crash %d: %s: the journal's head is not the image: %v", i, name, err)
			}
		}
		s.rewind(at)
		if !bytes.Equal(x.image("root"), before[0]) || !bytes.Equal(x.image("data"), before[1]) {
			t.Errorf("crash %d: rewound again it is not at the point", i)
		}
		s.stop()
	}
	if kinds[true] == 0 || kinds[false] == 0 {
		t.Errorf("went %d times, stayed %d times", kinds[true], kinds[false])
	}
	scale.Counted(t, "rewind-crashes", n, 20)
}

// copyFiles copies what a crash leaves: sockets aside.
func copyFiles(to, from string) error {
	return filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		target := filepath.Join(to, strings.TrimPrefix(path, from))
		switch {
		case e.IsDir():
			return os.MkdirAll(target, 0o700)
		case !e.Type().IsRegular():
			return nil
		}
		b, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(target, b, 0o600)
		}
		return err
	})
}

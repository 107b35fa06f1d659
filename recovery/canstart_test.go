package recovery

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/testbed/scale"
)

// Where one of several machines is seen to be unable to start, none is: no guest begins to
// run only to be ended again. What is missing of each is named.
func TestNoneOfSeveralStartsWhereOneIsSeenToBeUnableTo(t *testing.T) {
	scale.Tools(t, "qemu-system-x86_64")
	dir, ctx := shortDir(t), testContext(t)
	x := &exports{t: t, socket: filepath.Join(dir, "nbd"), volume: cbt.Volume{Name: "root", Size: 4096}}
	x.start()
	defer x.end()
	image := filepath.Join(dir, "image")
	must(t, os.WriteFile(image, make([]byte, 4096), 0o600))
	serves := map[string]string{"root": x.uri(), "data": FileURI(image)}
	for name, c := range map[string]struct {
		spoil func(m *Machine, uris map[string]string)
		says  []string
	}{
		"no program":   {func(m *Machine, _ map[string]string) { m.Besides[1].Binary = filepath.Join(dir, "none") }, []string{"start machine web", "no such file"}},
		"not served":   {func(_ *Machine, uris map[string]string) { delete(uris, "data") }, []string{"start machine web", `volume "data" is not served`}},
		"disk is gone": {func(_ *Machine, uris map[string]string) { uris["data"] = FileURI(image + "x") }, []string{"start machine web", "volume data"}},
		"nobody serves": {func(_ *Machine, uris map[string]string) {
			uris["data"] = "nbd+unix:///data?socket=" + filepath.Join(dir, "deaf")
		}, []string{"start machine web", "volume data"}},
		"no such export": {func(_ *Machine, uris map[string]string) {
			uris["data"] = strings.Replace(uris["root"], "/g/root?", "/g/other?", 1)
		}, []string{"start machine web", "volume data"}},
		"another one's directory": {func(m *Machine, _ map[string]string) {
			must(t, os.MkdirAll(m.Besides[1].Dir, 0o700))
			must(t, os.WriteFile(filepath.Join(m.Besides[1].Dir, "machine.json"), []byte(`{"name":"mail","uuid":"u"}`), 0o600))
		}, []string{"start machine web", ErrWrongMachine.Error()}},
		"two of them": {func(m *Machine, uris map[string]string) {
			m.Besides[0].Binary = filepath.Join(dir, "none")
			delete(uris, "data")
		}, []string{"start machine app", "start machine web"}},
	} {
		own := filepath.Join(dir, strings.ReplaceAll(name, " ", "")[:5])
		must(t, os.Mkdir(own, 0o700))
		m := threeMachines(t, own)
		for _, one := range m.Each() { // each tells that it was started
			must(t, os.WriteFile(one.Binary, []byte("#!/bin/sh\ntouch "+one.Binary+".ran\nexec qemu-system-x86_64 \"$@\"\n"), 0o700))
		}
		uses := func(m *Machine, volume string) { m.Disks = append(m.Disks, MachineDisk{volume, "d"}) }
		uses(&m, "root")
		uses(&m.Besides[1].Machine, "data")
		uris := map[string]string{"root": serves["root"], "data": serves["data"]}
		must(t, m.CanStart(ctx, uris))
		asked := false
		m.Starting = func() error { asked = true; return nil }
		c.spoil(&m, uris)
		_, err := m.Ensure(ctx, uris)
		for _, want := range c.says {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v; want %q", name, err, want)
			}
		}
		if asked || errors.Is(err, ErrInVain) {
			t.Errorf("%s: a start was begun, %v: %v", name, asked, err)
		}
		for _, one := range m.Each() {
			if _, err := os.Stat(one.Binary + ".ran"); err == nil {
				t.Errorf("%s: %s was started", name, one.Name)
			}
		}
	}
}

// Who is asked before the first of several starts may refuse, and is asked only where one
// is to be started; that others were ended again is told.
func TestSeveralAskBeforeTheyStart(t *testing.T) {
	scale.Tools(t, "qemu-system-x86_64")
	ctx := testContext(t)
	m := threeMachines(t, shortDir(t))
	t.Cleanup(func() { must(t, m.End(ctx)) })
	asked, refusal := 0, errors.New("not now")
	m.Starting = func() error { asked++; return refusal }
	if _, err := m.Ensure(ctx, nil); !errors.Is(err, refusal) || runs(t, m) != nil {
		t.Fatalf("refused: %v; %v run", err, runs(t, m))
	}
	refusal = nil
	each := m.Each()
	for i, vain := range []bool{false, true, true} {
		works(t, each[i], false)
		if _, err := m.Ensure(ctx, nil); errors.Is(err, ErrInVain) != vain || err == nil {
			t.Errorf("%s does not start: %v", each[i].Name, err)
		}
		works(t, each[i], true)
	}
	for range 2 {
		r, err := m.Ensure(ctx, nil)
		must(t, err)
		must(t, r.Close())
	}
	if asked != 5 || !slices.Equal(runs(t, m), []string{"db", "app", "web"}) {
		t.Errorf("asked %d times, %v run", asked, runs(t, m))
	}
}

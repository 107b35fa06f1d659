package e2e

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/novacron/afterimage/cbt/nbd"
	"github.com/novacron/afterimage/site"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
)

// run runs a command of the site for people, and gives its exit code and all that
// it printed. The exit code of a program that was killed is -1.
func (d *daemon) run(args ...string) (int, string) {
	d.t.Helper()
	ctx, stop := context.WithTimeout(d.t.Context(), patience)
	defer stop()
	cmd := exec.CommandContext(ctx, program, append([]string{"--config", d.config}, args...)...)
	out, err := cmd.CombinedOutput()
	var ended *exec.ExitError
	if err != nil && !errors.As(err, &ended) {
		d.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// log is all that the daemon has written to stderr.
func (d *daemon) log() string {
	d.t.Helper()
	text, err := os.ReadFile(d.path("daemon.log"))
	if err != nil {
		d.t.Fatal(err)
	}
	return string(text)
}

// write is one answered write, in a connection of its own.
func (d *daemon) write(volume string, p []byte, off int64) {
	d.t.Helper()
	c := d.connect(volume)
	defer c.Close()
	if err := c.WriteAt(d.t.Context(), p, off, false); err != nil {
		d.t.Fatal(err)
	}
}

// A wrong key stops the check and the daemon alike, each naming its place; the
// daemon leaves no trace where its data would be.
func TestWrongKeyIsNamedWithItsPlace(t *testing.T) {
	d := newDaemon(t, "a")
	text := single(d, []volume{{"root", 1 << 20}})
	line := strings.Count(text, "\n")
	column := strings.LastIndex(text, "image:") - strings.LastIndex(text[:len(text)-1], "\n")
	text = strings.Replace(text, "image:", "imgae:", 1)
	text = strings.Replace(text, "data: "+d.dir, "data: "+d.path("data"), 1)
	d.configure(text)
	want := regexp.MustCompile(regexp.QuoteMeta(d.config) + `:(\d+):(\d+): AI-E0103: unknown key "imgae"`)
	for _, verb := range [][]string{{"config", "check"}, {"daemon"}} {
		code, said := d.run(verb...)
		got := want.FindStringSubmatch(said)
		if code != 2 || got == nil || got[1] != strconv.Itoa(line) || got[2] != strconv.Itoa(column) {
			t.Errorf("%s ended with %d, want 2 and the place %d:%d\n%s", strings.Join(verb, " "), code, line, column, said)
		}
		if !strings.Contains(said, `did you mean "image"?`) {
			t.Errorf("%s gives no hint\n%s", strings.Join(verb, " "), said)
		}
	}
	if _, err := os.Stat(d.path("data")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a refused daemon made its data directory: %v", err)
	}
	d.configure(strings.Replace(text, "imgae:", "image:", 1))
	if code, said := d.run("config", "check"); code != 0 {
		t.Errorf("with the key put right config check ended with %d\n%s", code, said)
	}
}

// A second daemon on the same data ends at once with its own exit code and names
// the first, which goes on.
func TestSecondDaemonOnTheSameData(t *testing.T) {
	d := newDaemon(t, "a")
	d.configure(single(d, []volume{{"root", 1 << 20}}))
	d.startSynced()
	d.write("root", bytes.Repeat([]byte{1}, 4096), 0)
	other := d.path("other.yml") // other sockets, the same data
	text, err := os.ReadFile(d.config)
	if err != nil {
		t.Fatal(err)
	}
	text = append(text, "control: "+d.path("c2")+"\nnbd: "+d.path("n2")+"\n"...)
	if err := os.WriteFile(other, text, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{d.config, other} {
		d.config = file
		code, said := d.run("daemon")
		if code != 11 || !strings.Contains(said, "AI-E0202") || !strings.Contains(said, "process "+strconv.Itoa(d.cmd.Process.Pid)) {
			t.Errorf("the second daemon ended with %d\n%s", code, said)
		}
	}
	d.write("root", bytes.Repeat([]byte{2}, 4096), 0) // the first one's sockets are as they were
	if st := d.group().State; st != control.StateSynced {
		t.Errorf("the first daemon's group is %s", st)
	}
}

// A peer whose pin is not the one of the configuration gets nothing, whoever
// listens, and is named in the log with the pin that it showed.
func TestUnpinnedPeerGetsNothing(t *testing.T) {
	content := bytes.Repeat([]byte("what nobody else may see"), 4096)[:64<<10]
	for _, wrongAt := range []string{"a", "b"} { // a dials, b listens
		t.Run("WrongAt"+strings.ToUpper(wrongAt), func(t *testing.T) {
			p := newPair(t, []volume{{"root", 1 << 20}}, 1)
			judge, stranger := p.b, p.a
			if wrongAt == "a" {
				judge, stranger = p.a, p.b
			}
			third, err := site.Pin(&config.Config{Key: judge.path("third.key")})
			if err != nil {
				t.Fatal(err)
			}
			right, err := os.ReadFile(judge.config)
			if err != nil {
				t.Fatal(err)
			}
			judge.configure(strings.Replace(string(right), stranger.pin(), third, 1))
			p.b.start()
			p.a.startSynced()
			p.a.write("root", content, 0)
			shown := regexp.MustCompile(`level=(WARN|ERROR) .*` + regexp.QuoteMeta(stranger.pin()))
			judge.until("the pin that was shown is in the log twice", func(context.Context) bool {
				return len(shown.FindAllString(judge.log(), 2)) == 2
			})
			if g := p.b.group(); g.Seq != 0 || len(g.Branches) != 0 || g.State != control.StateWaiting {
				t.Errorf("the replica is %s, has #%d, and %d branches", g.State, g.Seq, len(g.Branches))
			}
			p.b.stop()
			holdsNothing(t, p.b, content[:24])
			judge.stopIfRunning()
			judge.configure(string(right))
			p.b.start()
			if wrongAt == "a" {
				p.a.startSynced()
			}
			p.awaitArrival() // it was the pin, and nothing else
		})
	}
}

func (d *daemon) stopIfRunning() {
	d.t.Helper()
	if d.running() {
		d.stop()
	}
}

// holdsNothing searches all files of d for a piece of what a volume holds, and its
// journal for segments.
func holdsNothing(t *testing.T, d *daemon, piece []byte) {
	t.Helper()
	err := filepath.WalkDir(d.path("groups"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		if filepath.Base(filepath.Dir(path)) == "segments" {
			t.Errorf("%s is there", path)
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, piece) {
			t.Errorf("%s holds content", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A byte of a sealed segment flips under a running daemon. Points that need it are
// refused, naming volume and seq; all others stay readable.
func TestFlippedByteUnderARunningSite(t *testing.T) {
	d := newDaemon(t, "a")
	d.configure(single(d, []volume{{"boot", 1 << 20}, {"root", 16 << 20}}))
	d.startSynced()
	d.write("root", bytes.Repeat([]byte{1}, 256<<10), 0)
	before := d.group()
	precious := make([]byte, 64<<10) // of bytes that no packing hides
	_, _ = mathrand.NewChaCha8([32]byte{7}).Read(precious)
	d.write("root", precious, 128<<10)
	hit := d.group()
	root := d.connect("root")
	for i := range 20 { // the segment is sealed behind 64 MiB
		if err := root.WriteAt(t.Context(), bytes.Repeat([]byte{byte(i + 2)}, 4<<20), int64(4+i%2*4)<<20, false); err != nil {
			t.Fatal(err)
		}
	}
	after := d.group()
	flipIn(t, d, precious[1000:1064])

	named := regexp.MustCompile(`seq ` + strconv.FormatUint(hit.Seq, 10) + `\b`)
	for _, g := range []control.GroupDetail{hit, after} {
		at := pointOf(g)
		code, said := d.run("view", "restore", "g", "--at", at, "--volume", "root", "--to", d.path("bad.raw"))
		if code != 16 || !strings.Contains(said, "AI-E0401") || !strings.Contains(said, "volume root") || !named.MatchString(said) {
			t.Errorf("a restore of %s ended with %d, want 16 and volume root, seq %d\n%s", at, code, hit.Seq, said)
		}
		if _, err := os.Stat(d.path("bad.raw")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a file with damage was left: %v", err)
		}
		if _, _, err := d.view(at); !errors.Is(err, nbd.EIO) {
			t.Errorf("a view of %s reads with %v, want EIO", at, err)
		}
	}
	logged := regexp.MustCompile(`level=(WARN|ERROR) .*damaged record: volume .*` + named.String())
	d.until("the damage is in the log", func(context.Context) bool { return logged.MatchString(d.log()) })

	want := make([]byte, 16<<20)
	copy(want, bytes.Repeat([]byte{1}, 256<<10))
	if got, err := d.restore(pointOf(before)); err != nil || !bytes.Equal(got["root"], want) {
		t.Errorf("the point before the damage: %v, equal %v", err, bytes.Equal(got["root"], want))
	}
	if code, said := d.run("view", "restore", "g", "--at", pointOf(after), "--volume", "boot", "--to", d.path("boot.raw")); code != 0 {
		t.Errorf("the other volume of a damaged point: %d\n%s", code, said)
	}
	// What overwrites the damage makes whole points again.
	image, err := os.ReadFile(d.path("root.img"))
	if err != nil {
		t.Fatal(err)
	}
	d.write("root", image[128<<10:192<<10], 128<<10)
	if got, err := d.restore("latest"); err != nil || !bytes.Equal(got["root"], image) {
		t.Errorf("the point behind the damage: %v, equal %v", err, bytes.Equal(got["root"], image))
	}
	if st := d.group().State; st != control.StateSynced {
		t.Errorf("the group is %s", st)
	}
}

func pointOf(g control.GroupDetail) string {
	return "#" + strconv.FormatUint(g.Epoch, 10) + "." + strconv.FormatUint(g.Seq, 10)
}

// flipIn changes a bit of piece in the first segment of d's journal.
func flipIn(t *testing.T, d *daemon, piece []byte) {
	t.Helper()
	segments, err := filepath.Glob(d.path("groups/default/g/segments/*"))
	if err != nil || len(segments) < 2 {
		t.Fatalf("segments %v: %v", segments, err)
	}
	b, err := os.ReadFile(segments[0])
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(b, piece)
	if at < 0 {
		t.Fatalf("%s does not hold the piece", segments[0])
	}
	f, err := os.OpenFile(segments[0], os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{b[at] ^ 0x10}, int64(at)); err != nil {
		t.Fatal(err)
	}
}

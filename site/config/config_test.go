package config

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/novacron/afterimage/site/fault"
)

var update = flag.Bool("update", false, "rewrite golden files")

func samples(t *testing.T, pattern string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("..", "testdata", "samples", pattern))
	if err != nil || len(files) == 0 {
		t.Fatalf("no samples %s: %v", pattern, err)
	}
	return files
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s (-want +got):\n%s", file, d)
	}
}

func TestSamplesParseAndSurviveResolution(t *testing.T) {
	for _, file := range samples(t, "*.yml") {
		c, err := Load(file)
		if err != nil {
			t.Errorf("%s:\n%v", file, err)
			continue
		}
		text, err := c.YAML()
		if err != nil {
			t.Fatal(err)
		}
		again, err := Parse(file, text)
		if err != nil {
			t.Fatalf("%s: what config show prints does not parse:\n%s\n%v", file, text, err)
		}
		if d := cmp.Diff(c, again); d != "" {
			t.Errorf("%s: resolved form differs:\n%s", file, d)
		}
	}
}

func TestInvalidSamplesPointAtTheFault(t *testing.T) {
	for _, file := range samples(t, filepath.Join("invalid", "*.yml")) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		_, err = Parse(filepath.Base(file), text)
		var ps Problems
		if !errors.As(err, &ps) {
			t.Errorf("%s: %v", file, err)
			continue
		}
		golden(t, strings.TrimSuffix(file, ".yml")+".golden", ps.Error())
	}
}

func TestDefaults(t *testing.T) {
	c, err := Parse("/etc/x/afterimage.yml", []byte("site: a\ndata: state\ngroups: [{name: web}]\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{Site: "a", Data: "/etc/x/state", Key: "/etc/x/state/site.key", Control: "/etc/x/state/control.sock", NBD: "/etc/x/state/nbd.sock",
		Groups: []Group{{Name: "web", Tenant: "default", Role: Replica, Sync: SyncProcess, Compress: CompressAuto, StallBudget: Duration(500 * time.Millisecond), History: DefaultHistory(),
			Detect:      &Detect{Mode: DetectOn, After: 8 << 20, Ratio: 25},
			Maintenance: &Maintenance{Every: Duration(time.Minute), Rate: 50 << 20}}}}
	if d := cmp.Diff(want, c); d != "" {
		t.Error(d)
	}
}

func TestDetect(t *testing.T) {
	parse := func(text string) (*Config, error) {
		return Parse("/x/a.yml", []byte("site: a\ndata: d\ngroups: [{name: web, detect: "+text+"}]\n"))
	}
	if c, err := parse("{mode: off, ratio: 40%}"); err != nil || c.Groups[0].Detect.Mode != DetectOff || c.Groups[0].Detect.Ratio != 40 {
		t.Errorf("%+v, %v", c, err)
	}
	for _, text := range []string{"{mode: loud}", "{after: -1}", "{ratio: 101%}"} {
		if _, err := parse(text); err == nil {
			t.Errorf("%s is understood", text)
		}
	}
}

func TestMissingFile(t *testing.T) {
	_, err := Load(filepath.Join(t.TempDir(), "none.yml"))
	if f := fault.Of(err); f.Code != fault.ConfigMissing || f.Exit() != fault.ExitNotFound {
		t.Errorf("%v, exit %d", err, f.Exit())
	}
}

func TestSecretsAreMasked(t *testing.T) {
	c, err := Load("../testdata/samples/two-sites-replica.yml")
	if err != nil {
		t.Fatal(err)
	}
	args := &c.Groups[0].Machine.Args
	*args = append(*args, "secret,id=s0,data=canary1", "-vnc", ":1,password=canary2")
	text, err := c.YAML()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "canary") {
		t.Errorf("a secret is shown:\n%s", text)
	}
	if !strings.Contains(strings.Join(*args, " "), "canary1") {
		t.Error("masking changed the configuration itself")
	}
}

func TestBytes(t *testing.T) {
	for in, want := range map[string]Bytes{"0": 0, "512": 512, "1KiB": 1024, "1.5 GiB": 3 << 29, "2TiB": 2 << 40, "7B": 7} {
		if got, err := ParseBytes(in); err != nil || got != want {
			t.Errorf("ParseBytes(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "GiB", "-1", "1GB", "1.5", "0.3B", "1e3", "9999999TiB", "1..5GiB", "NaNGiB", "InfGiB"} {
		if got, err := ParseBytes(in); err == nil {
			t.Errorf("ParseBytes(%q) = %d", in, got)
		}
	}
	for _, b := range []Bytes{0, 1, 1023, 1024, 1 << 30, 3 << 29} {
		if got, err := ParseBytes(b.String()); err != nil || got != b {
			t.Errorf("%d prints as %s, which is %d, %v", b, b, got, err)
		}
	}
}

func TestSpans(t *testing.T) {
	const day = 24 * time.Hour
	for in, want := range map[string]time.Duration{"0": 0, "500ms": 500 * time.Millisecond, "90s": 90 * time.Second, "1h30m": 90 * time.Minute, "24h": day, "1d12h": 36 * time.Hour,
		"7d": 7 * day, "2w": 14 * day, "1y": 365 * day, "1.5d": 36 * time.Hour} {
		var d Duration
		if err := d.UnmarshalText([]byte(in)); err != nil || time.Duration(d) != want {
			t.Errorf("%q is %s, %v; want %s", in, d, err, want)
		}
		var again Duration
		if err := again.UnmarshalText([]byte(d.String())); err != nil || again != d {
			t.Errorf("%q prints as %q, which is %s, %v", in, d, again, err)
		}
	}
	for d, want := range map[time.Duration]string{day: "24h", 7 * day: "7d", time.Minute: "1m", time.Hour: "1h", 90 * time.Minute: "1h30m", 0: "0s", 36 * time.Hour: "36h", time.Hour + time.Second: "1h0m1s"} {
		if got := Duration(d).String(); got != want {
			t.Errorf("%d prints as %q, want %q", d, got, want)
		}
	}
	for _, in := range []string{"", "7", "d", "-1h", "1h ", "1mo", "1e9s", "99999999y"} {
		var d Duration
		if err := d.UnmarshalText([]byte(in)); err == nil {
			t.Errorf("%q is %s", in, d)
		}
	}
}

// FuzzParse: no text makes the parser panic, and every fault lies in the file.
func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"*.yml", "invalid/*.yml"} {
		files, _ := filepath.Glob(filepath.Join("..", "testdata", "samples", pattern))
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(string(text))
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		_, err := Parse("/x/f.yml", []byte(text))
		var ps Problems
		if err != nil && (!errors.As(err, &ps) || len(ps) == 0) {
			t.Fatalf("not problems: %v", err)
		}
		for _, p := range ps {
			if p.Line < 1 || p.Line > strings.Count(text, "\n")+1 || p.Column < 1 {
				t.Errorf("problem at %d:%d of a text with %d lines: %s", p.Line, p.Column, strings.Count(text, "\n")+1, p.What)
			}
		}
	})
}

package main

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/site/fault"
)

func tree() *cli.App { return newApp(&world{stdout: nil}) }

func TestEveryCommandExplainsItself(t *testing.T) {
	app, n := tree(), 0
	walk(app.Commands, nil, func(path []string, c *cli.Command) {
		n++
		name := strings.Join(path, " ")
		_, examples, ok := strings.Cut(c.Description, "Example:\n")
		if c.Usage == "" || !ok {
			t.Errorf("%s: no usage text or no example", name)
			return
		}
		for _, ex := range strings.Split(strings.TrimSpace(examples), "\n") {
			words := strings.Fields(strings.ReplaceAll(ex, "'", ""))
			if words[0] != "afterimage" {
				t.Errorf("%s: example %q", name, ex)
				continue
			}
			in, err := arrange(app, words[1:])
			if err != nil {
				t.Errorf("%s: example %q: %v", name, ex, err)
			} else if got := strings.Join(in.path, " "); len(c.Subcommands) == 0 && got != name {
				t.Errorf("%s: example %q is of %q", name, ex, got)
			}
		}
		for _, f := range c.Flags {
			if d, ok := f.(cli.DocGenerationFlag); !ok || d.GetUsage() == "" {
				t.Errorf("%s --%s: no usage text", name, f.Names()[0])
			} else if d.TakesValue() != strings.Contains(d.GetUsage(), "`") {
				t.Errorf("%s --%s: a flag with a value names it in back quotes, one without does not: %q", name, f.Names()[0], d.GetUsage())
			}
			for _, bad := range []string{"password", "secret", "token"} {
				if slices.Contains(f.Names(), bad) {
					t.Errorf("%s --%s: secrets are no flags", name, bad)
				}
			}
		}
	})
	if n < 20 {
		t.Errorf("only %d commands", n)
	}
	t.Logf("%d commands", n)
}

// Whether a flag takes a value must depend on its name alone: arrange relies on it.
func TestFlagsMeanTheSameEverywhere(t *testing.T) {
	app := tree()
	takes := map[string]bool{}
	see := func(flags []cli.Flag) {
		for _, f := range flags {
			for _, n := range f.Names() {
				if was, ok := takes[n]; ok && was != takesValue(f) {
					t.Errorf("--%s takes a value in one command and none in another", n)
				}
				takes[n] = takesValue(f)
			}
		}
	}
	see(app.Flags)
	walk(app.Commands, nil, func(_ []string, c *cli.Command) { see(c.Flags) })
	if takes["yes"] || !takes["at"] {
		t.Error("the walk sees no flags")
	}
}

func TestHelpOfEveryCommand(t *testing.T) {
	walk(tree().Commands, nil, func(path []string, c *cli.Command) {
		for _, args := range [][]string{append(slices.Clone(path), "--help"), append([]string{"help"}, path...)} {
			r := stage{api: &fake{}}.run(t, append(args, "--no-color")...)
			if args[0] == "help" {
				continue // --config stands before it in this test
			}
			if !strings.Contains(r.stdout, "   afterimage "+strings.Join(path, " ")+" - ") {
				t.Errorf("%v: the help names the command otherwise:\n%s", args, r.stdout)
			}
			if strings.Contains(r.stdout, "default: false") {
				t.Errorf("%v: the help says what an absent flag means", args)
			}
			if r.exit != 0 || !strings.Contains(r.stdout, "Example:") || !strings.Contains(r.stdout, c.Usage) || r.stderr != "" {
				t.Errorf("%v: exit %d\n%s%s", args, r.exit, r.stdout, r.stderr)
			}
		}
	})
	var out strings.Builder
	w := &world{stdout: &out, stderr: &out, getenv: func(string) string { return "" }}
	if code := run(context.Background(), w, []string{"help", "view", "restore"}); code != 0 || !strings.Contains(out.String(), "afterimage view restore") {
		t.Errorf("help view restore: exit %d\n%s", code, out.String())
	}
}

// Every leaf tells a failure as JSON, and never asks or hangs.
func TestEveryVerbFailsInJSON(t *testing.T) {
	walk(tree().Commands, nil, func(path []string, c *cli.Command) {
		name := strings.Join(path, " ")
		args := append(slices.Clone(path), "-o", "json", "one", "two", "three")
		r := stage{api: &fake{err: errFake}}.run(t, args...)
		if r.exit != fault.ExitUsage || lines(t, name, r.stderr) != 1 || r.stdout != "" {
			t.Errorf("%s with too many arguments: exit %d\n%s%s", name, r.exit, r.stdout, r.stderr)
		}
		r = stage{api: &fake{err: errFake}}.run(t, append(slices.Clone(path), "--nonsense", "--output", "json")...)
		if r.exit != fault.ExitUsage || lines(t, name, r.stderr) != 1 || r.stdout != "" {
			t.Errorf("%s --nonsense: exit %d\n%s%s", name, r.exit, r.stdout, r.stderr)
		}
	})
}

func TestArrange(t *testing.T) {
	app := tree()
	for _, c := range []struct{ in, out string }{
		{"failover unplanned web --yes", "failover unplanned --yes -- web"},
		{"--yes failover --at -5m unplanned web", "failover unplanned --yes --at=-5m -- web"},
		{"failover unplanned --at=#2.7 web -o json", "-o=json failover unplanned --at=#2.7 -- web"},
		{"status -w", "status -w"},
		{"view serve web -- -odd", "view serve -- web -odd"},
		{"point mark web --name --yes", "point mark --name=--yes -- web"},
		{"", ""},
	} {
		got, err := arrange(app, strings.Fields(c.in))
		if err != nil || strings.Join(got.args, " ") != c.out {
			t.Errorf("%q: %q, %v; want %q", c.in, got.args, err, c.out)
		}
	}
	for in, want := range map[string]string{
		"failover unplanned web --yess":       "has no flag --yess",
		"status --yes":                        "afterimage status has no flag --yes",
		"group show -web":                     "has no flag -web",
		"group show -":                        "may not begin with '-'",
		"failover unplanned web --at":         "needs a value",
		"failover unplanned web --yes --yes":  "given twice",
		"group shwo web":                      `no command "afterimage group shwo"`,
		"grup show web":                       `no command "afterimage grup"`,
		"view serve web --at latest --at #7":  "given twice",
		"point mark web --name x --overwrite": "has no flag --overwrite",
	} {
		if _, err := arrange(app, strings.Fields(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", in, err, want)
		}
	}
}

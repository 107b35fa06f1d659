package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/novacron/afterimage/site"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// readmeCommand is an indented line of README.md.
type readmeCommand struct {
	section string
	words   []string
	comment string
}

func (c readmeCommand) String() string { return strings.Join(c.words, " ") }

// readmeCommands are the indented lines of a section.
func readmeCommands(t *testing.T, text, section string) []readmeCommand {
	t.Helper()
	_, rest, ok := strings.Cut(text, "\n## "+section+"\n")
	if !ok {
		t.Fatalf("README.md has no section %q", section)
	}
	body, _, _ := strings.Cut(rest, "\n## ")
	var out []readmeCommand
	for _, l := range strings.Split(body, "\n") {
		if code, ok := strings.CutPrefix(l, "    "); ok && strings.TrimSpace(code) != "" {
			command, comment, _ := strings.Cut(code, " #")
			out = append(out, readmeCommand{section, strings.Fields(command), strings.TrimSpace(comment)})
		}
	}
	if len(out) == 0 {
		t.Fatalf("section %q of README.md has no commands", section)
	}
	return out
}

func readme(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// own is the arguments of a command of ours; ok is false for another program.
func (c readmeCommand) own() (args []string, ok bool) {
	for _, prefix := range [][]string{{"afterimage"}, {"go", "run", "./cli/afterimage"}} {
		if len(c.words) > len(prefix) && slices.Equal(c.words[:len(prefix)], prefix) {
			return c.words[len(prefix):], true
		}
	}
	return nil, false
}

var (
	inlineCommand = regexp.MustCompile("`(?:afterimage )?((?:demo|daemon|config|status|group|peer|point|view|failover|bench|explain) [^`]*)`")
	scriptFlag    = regexp.MustCompile(`(?:^|[ ;(])(-[a-z]+)`)
)

// Every command line that README.md names is one of the program's: noun, verb,
// flags and number of arguments.
func TestReadmeNamesCommandsThatExist(t *testing.T) {
	text, app, n := readme(t), tree(), 0
	parse := func(line string, args []string) {
		n++
		in, err := arrange(app, args)
		switch {
		case err != nil:
			t.Errorf("README.md: %s: %v", line, err)
		case in.command == nil || len(in.command.Subcommands) > 0:
			t.Errorf("README.md: %s: no verb", line)
		}
	}
	for _, section := range []string{"Try it", "In daily use"} {
		for _, c := range readmeCommands(t, text, section) {
			if args, ok := c.own(); ok {
				parse(c.String(), args)
				continue
			}
			if c.String() != "testbed/check" {
				t.Errorf("README.md: nobody here knows the program of %q", c)
				continue
			}
			n++
			script, err := os.ReadFile("../../testbed/check")
			if err != nil {
				t.Error(err)
			}
			for _, f := range scriptFlag.FindAllStringSubmatch(c.comment, -1) {
				if !bytes.Contains(script, []byte("\n"+f[1]+")")) {
					t.Errorf("README.md: testbed/check has no option %s", f[1])
				}
			}
		}
	}
	for _, m := range inlineCommand.FindAllStringSubmatch(text, -1) {
		parse(m[1], strings.Fields(m[1]))
	}
	if _, err := os.Stat("main.go"); err != nil {
		t.Errorf("README.md runs ./cli/afterimage: %v", err)
	}
	if n < 12 {
		t.Errorf("only %d commands found", n)
	}
	t.Logf("%d commands", n)
}

// The configuration that README.md shows means what it says.
func TestReadmeConfigurationIsUnderstood(t *testing.T) {
	_, rest, _ := strings.Cut(readme(t), "\n## How long a moment lasts\n")
	body, _, _ := strings.Cut(rest, "\n## ")
	text := "site: a\ndata: d\n"
	for _, l := range strings.Split(body, "\n") {
		if code, ok := strings.CutPrefix(l, "    "); ok {
			text += code + "\n"
		}
	}
	c, err := config.Parse("/x/README.yml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Groups) != 1 || len(c.Groups[0].History) < 3 || c.Groups[0].Lock == 0 || c.Groups[0].Quota == 0 || len(c.Peers) != 1 || c.Peers[0].Hold.Bytes == 0 {
		t.Errorf("README.md shows %+v", c)
	}
}

// screen is an output that can be waited on.
type screen struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// invocation is a command of README.md as it is run.
type invocation struct {
	args        []string
	out, errs   screen
	cancel      context.CancelFunc
	ended       chan struct{}
	exit        int
	description string
}

// begin runs a command of README.md against the prepared sites.
func begin(c readmeCommand, args ...string) *invocation {
	own, _ := c.own()
	ctx, cancel := context.WithCancel(context.Background())
	i := &invocation{args: append(slices.Clone(own), args...), cancel: cancel, ended: make(chan struct{}), description: c.String()}
	w := &world{stdin: strings.NewReader(""), stdout: &i.out, stderr: &i.errs, getenv: os.Getenv, now: time.Now, zone: time.UTC,
		reach: func(c *config.Config) control.API { return site.Reach(c, site.Options{}) }}
	go func() {
		defer close(i.ended)
		i.exit = run(ctx, w, i.args)
	}()
	return i
}

// wait waits for the end, which must be a success.
func (i *invocation) wait(t *testing.T) {
	t.Helper()
	select {
	case <-i.ended:
	case <-time.After(time.Minute):
		i.cancel()
		<-i.ended
		t.Errorf("README.md: %s: does not end", i.description)
	}
	if i.exit != fault.ExitOK {
		t.Errorf("README.md: %s: exit %d\n%s%s", i.description, i.exit, i.out.String(), i.errs.String())
	}
}

// until waits for a text of its output.
func (i *invocation) until(t *testing.T, text string) {
	t.Helper()
	awaitThat(t, i.description+" prints "+text, func() bool { return strings.Contains(i.out.String()+i.errs.String(), text) })
}

func awaitThat(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(30 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("after 30 s not yet: %s", what)
		}
	}
}

// prepare makes two sites in the working directory: a.yml is the primary of web,
// whose history begins ten minutes ago; b.yml its replica.
func prepare(t *testing.T) {
	t.Helper()
	dir, err := os.MkdirTemp("", "ai") // sockets want short paths
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	t.Chdir(dir)
	load := func(name, text string) *config.Config {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := config.Load(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	port := func() int {
		p, err := unusedPort()
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	pin := func(name string) string {
		p, err := site.Pin(load("plain.yml", "site: "+name+"\ndata: "+name+"\n"))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	atA, atB := port(), port()
	peer := func(name string, port int) string {
		return fmt.Sprintf("peers: [{name: %s, address: \"%s\", pin: %q}]\n", name, net.JoinHostPort("127.0.0.1", fmt.Sprint(port)), pin(name))
	}
	a := load("a.yml", fmt.Sprintf("site: a\ndata: a\nlisten: 127.0.0.1:%d\n%sgroups: [{name: web, role: primary, peers: [b], volumes: [{name: root, size: 1MiB, embedded: {image: root.img}}]}]\n", atA, peer("b", atB)))
	b := load("b.yml", fmt.Sprintf("site: b\ndata: b\nlisten: 127.0.0.1:%d\n%sgroups: [{name: web, peers: [a]}]\n", atB, peer("a", atA)))
	t.Setenv("AFTERIMAGE_CONFIG", filepath.Join(dir, "a.yml"))

	ago := func() time.Time { return time.Now().Add(-10 * time.Minute) }
	end := runSite(t, a, site.Options{Now: ago})
	awaitThat(t, "web is synced", func() bool { return groupState(a) == control.StateSynced })
	end()
	runSite(t, b, site.Options{})
}

// runSite runs a site until the returned function or the test's end.
func runSite(t *testing.T, c *config.Config, o site.Options) (end func()) {
	t.Helper()
	s, err := site.Open(c, o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	end = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("site %s: %v", c.Site, err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("site %s: %v", c.Site, err)
		}
	})
	t.Cleanup(end)
	return end
}

// groupState is the state of web at the site of c, through its control socket.
func groupState(c *config.Config) string {
	g, err := site.Reach(c, site.Options{}).Group(context.Background(), "web")
	if err != nil {
		return ""
	}
	return g.State
}

// The commands of daily use do what README.md says, in its order.
func TestReadmeCommandsOfDailyUseWork(t *testing.T) {
	commands := readmeCommands(t, readme(t), "In daily use")
	prepare(t)
	b, err := config.Load("b.yml")
	if err != nil {
		t.Fatal(err)
	}
	var daemon *invocation
	defer func() {
		if daemon != nil {
			daemon.cancel()
			daemon.wait(t)
		}
	}()
	for _, c := range commands {
		own, ok := c.own()
		if !ok {
			t.Errorf("README.md: %s is no command of ours", c)
			continue
		}
		switch strings.Join(own[:min(2, len(own))], " ") {
		case "daemon -c":
			daemon = begin(c)
			awaitThat(t, "the replica receives", func() bool { return groupState(b) == control.StateReceiving })
			a, err := config.Load("a.yml")
			if err != nil {
				t.Fatal(err)
			}
			awaitThat(t, "web is synced", func() bool { return groupState(a) == control.StateSynced })
		case "view serve":
			i := begin(c)
			i.until(t, "serving until interrupted")
			i.cancel()
			i.wait(t)
		case "failover unplanned": // at the other site
			begin(c, "-c", "b.yml").wait(t)
		case "bench rpo":
			begin(c, "--for", "2s", "--cut", "0s").wait(t)
		case "bench journal":
			begin(c, "--only", "qd1_latency_vs_raw_sealed").wait(t)
		default:
			begin(c).wait(t)
		}
	}
	if st, err := os.Stat("disk.raw"); err != nil || st.Size() != 1<<20 {
		t.Errorf("the restored disk: %v", err)
	}
}

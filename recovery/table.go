package recovery

import (
	"fmt"
	"strings"
	"text/tabwriter"
	"time"
)

// String is the plan for a person.
func (p Plan) String() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	row := func(cells ...string) { fmt.Fprintln(w, strings.Join(cells, "\t")) }
	name := p.Group
	if p.Tenant != "" {
		name = p.Tenant + "/" + name
	}
	row("group", name)
	row("to site", p.Site)
	row("point", fmt.Sprintf("%v  %s  (asked: %s)", p.Point, instant(p.Point.Time), p.At))
	row("new epoch", fmt.Sprint(p.NewEpochNumber))
	if row("fence", string(p.Fence)); len(p.Fencing) > 0 {
		row("to be proven by", strings.Join(p.Fencing, "; "))
	}
	if p.Machine != "" {
		row("machine", p.Machine)
	}
	w.Flush()
	b.WriteString("\nloss\n")
	p.Loss.table(&b)
	if len(p.Peers) > 0 {
		b.WriteString("\npeers\n")
		w = tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		for _, x := range p.Peers {
			state := "not reachable"
			if x.Reachable {
				state = "reachable"
			}
			if x.Primary {
				state += ", primary"
			}
			head := "never heard"
			if !x.Head.IsZero() {
				head = fmt.Sprintf("#%d.%d  %s", x.Number, x.Head.Seq, instant(x.Time))
			}
			row("  "+x.Name, state, head)
		}
		w.Flush()
	}
	b.WriteString("\nsteps\n")
	for i, s := range p.Steps {
		fmt.Fprintf(&b, "  %d. %s: %s\n", i+1, s.Name, s.What)
	}
	for _, s := range p.Warnings {
		fmt.Fprintf(&b, "warning: %s\n", s)
	}
	for _, o := range p.Refused {
		fmt.Fprintf(&b, "refused without force: %s\n", o.Text)
	}
	return trimLines(b.String())
}

// trimLines takes away what padding leaves at the ends of lines.
func trimLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return strings.Join(lines, "\n")
}

func (l Loss) table(b *strings.Builder) {
	w := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	line := func(what, s, writes, bytes string) { fmt.Fprintf(w, "  %s\t%s\t%s\t%s\n", what, s, writes, bytes) }
	line("given up, held here", seconds(l.GivenUp.Seconds), fmt.Sprintf("%d writes", l.GivenUp.Writes), size(l.GivenUp.Bytes))
	for _, v := range l.GivenUp.Volumes {
		line("  volume "+v.Volume, "", fmt.Sprintf("%d writes", v.Writes), size(v.Bytes))
	}
	if l.Known {
		line("never arrived, as last heard", seconds(l.NeverArrived.Seconds), fmt.Sprintf("%d records", l.NeverArrived.Records), size(l.NeverArrived.Bytes))
		line("known together", seconds(l.Seconds), fmt.Sprintf("%d writes", l.Writes), size(l.Bytes))
		line("not heard since", seconds(l.UnheardSeconds), "", "")
	} else {
		line("never arrived", "not known", "", "")
	}
	w.Flush()
}

func instant(t time.Time) string { return t.Format(time.RFC3339Nano) }

func seconds(s float64) string {
	if s < 10 {
		return fmt.Sprintf("%.3f s", s)
	}
	return fmt.Sprintf("%.1f s", s)
}

// count is n of a thing.
func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// size is n bytes in IEC units.
func size(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	v, i := float64(n), 0
	for v >= 1024 && i < len(units)-1 {
		v, i = v/1024, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}

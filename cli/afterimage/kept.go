package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/novacron/afterimage/site/control"
)

// keptTable lists points and why they are kept, oldest first: ranges in which every
// record is one as a line, single points that only a rung of the ladder keeps as a
// line a rung (with all: each), others as a line each.
func (p *printer) keptTable(ps control.Points, all bool) string {
	if len(ps.Kept) == 0 {
		return "no points\n"
	}
	marks := map[string][]string{}
	for _, pt := range ps.Marks {
		for _, m := range pt.Marks {
			marks[seqName(pt)] = append(marks[seqName(pt)], m.Name)
		}
	}
	volumes := false
	for _, s := range ps.Kept {
		volumes = volumes || !slices.Equal(s.Volumes, ps.Kept[0].Volumes)
	}
	head := []string{"POINTS", "FROM", "TO", "AGE", "COUNT", "WHY", "MARKS"}
	if volumes {
		head = append(head, "VOLUMES")
	}
	t := p.newTable(head...)
	t.tint = func(column int, cell string) string {
		if column == 5 && strings.HasPrefix(cell, invalidWord) {
			return p.colored(red, cell)
		}
		return cell
	}
	rows, folded := summarised(ps.Kept, marks, all)
	for _, s := range rows {
		why := strings.Join(s.Reasons, ", ")
		if s.Open {
			why += ", still growing"
		} else if s.Ended != "" {
			why += "; ended: " + s.Ended
		}
		if s.Invalid != "" {
			why = invalidWord + s.Invalid
		}
		name, to := seqName(s.First), "-"
		if s.First.Epoch != s.Last.Epoch || s.First.Seq != s.Last.Seq {
			name, to = name+" .. "+seqName(s.Last), p.when(s.Last.Time)
		}
		cells := []string{name, p.when(s.First.Time), to, age(ps.Time, s.Last.Time), fmt.Sprint(s.Points), why, orDash(strings.Join(marks[seqName(s.First)], ","))}
		if volumes {
			cells = append(cells, orDash(strings.Join(s.Volumes, ",")))
		}
		t.row(cells...)
	}
	out := t.String()
	if folded {
		out += "Points of one rung are one line; --all lists each.\n"
	}
	return out
}

const invalidWord = "INVALID: "

// summarised puts neighbours together that one rung keeps and nothing else does.
func summarised(kept []control.Stretch, marks map[string][]string, all bool) (rows []control.Stretch, folded bool) {
	plain := func(s control.Stretch) bool {
		return s.Points == 1 && s.Invalid == "" && len(s.Reasons) == 1 && strings.HasPrefix(s.Reasons[0], "every ") && marks[seqName(s.First)] == nil
	}
	for _, s := range kept {
		if n := len(rows); !all && n > 0 && plain(s) {
			last := &rows[n-1]
			single := last.Points > 1 || plain(*last)
			if single && last.Reasons[0] == s.Reasons[0] && len(last.Reasons) == 1 && s.Reasons[0] != everyWrite && slices.Equal(last.Volumes, s.Volumes) && last.Invalid == "" {
				last.Last, last.Points, folded = s.Last, last.Points+1, true
				continue
			}
		}
		rows = append(rows, s)
	}
	return rows, folded
}

const everyWrite = "every write"

// age is how long ago t was.
func age(now, t time.Time) string {
	if t.IsZero() || now.IsZero() {
		return "-"
	}
	return seconds(max(0, now.Sub(t).Seconds()))
}

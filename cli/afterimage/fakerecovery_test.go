package main

import (
	"cmp"
	"context"
	"strings"
	"time"

	"github.com/novacron/afterimage/site/control"
)

var measuredRuns = control.Timing{Runs: 5, Seconds: 2.5, Newest: 2.75, Time: at(-86400), Before: ptr(2.0),
	Steps: []control.TimingStep{{Step: "promote", Seconds: 0.125, Before: ptr(0.125)}, {Step: "start", Seconds: 2.25}}}

var plan = control.Plan{Group: "default/web", At: "latest", Point: control.Point{Epoch: 3, Seq: 1200, Time: at(-1)}, Epoch: 4, Fence: "unknown", Machine: "web1", Digest: "d1", Expected: ptr(2.5), Timing: &measuredRuns,
	Loss: control.Loss{Known: true, Seconds: 1.25, Writes: 43, Bytes: 176128, Unheard: 12,
		Volumes: []control.VolumeLoss{{Volume: "root", Writes: 40, Bytes: 163840}}, NeverArrived: control.NeverArrived{Seconds: 0.25, Records: 3, Bytes: 12288}},
	Peers: []control.PlanPeer{{Name: "a", Epoch: 3, Seq: 1203, Time: at(-12)}, {Name: "c", Reachable: true, Epoch: 3, Seq: 1100, Time: at(0)}},
	Steps: []string{"promote: fork epoch 4 at #3.1200, durably", "start: start machine web1 and wait until it runs"}, Warnings: []string{"what a wrote in the last 12 s is not known, and lost"}}

func (f *fake) Pause(_ context.Context, q control.PauseRequest) (control.Paused, error) {
	return control.Paused{Since: noon, Until: noon.Add(time.Duration(q.Seconds * float64(time.Second))), Reason: q.Reason}, f.err
}

func (f *fake) Resume(context.Context, control.ResumeRequest) (control.Paused, error) {
	return control.Paused{Since: at(-60), Until: at(3540), Reason: "move to host2"}, f.err
}

var handover = control.HandoverPlan{Group: "default/web", From: "a", To: "b", Head: control.Point{Epoch: 3, Seq: 1200, Time: at(-1)}, Behind: 12, Pending: 49152,
	Loss: control.Loss{Known: true}, Steps: []string{"drain: no write is taken here any more", "cede: this site gives the role up"}, Expected: ptr(2.5), Digest: "d"}

func (f *fake) PlanHandover(_ context.Context, q control.HandoverRequest) (control.HandoverPlan, error) {
	p := handover
	p.Refused = f.refused
	return p, f.err
}

func (f *fake) Handover(_ context.Context, q control.HandoverRequest, progress func(control.Progress)) (control.HandedOver, error) {
	f.failed = true
	progress(control.Progress{Step: "drain"})
	return control.HandedOver{HandoverPlan: handover, Last: control.Point{Epoch: 3, Seq: 1212, Time: at(0)}, Chain: strings.Repeat("cd", 32), Epoch: 4, PauseSeconds: 0.25, Report: "/r/handover.html"}, f.err
}

func (f *fake) PlanDecision(_ context.Context, q control.DecisionRequest) (control.Decision, error) {
	d := control.Decision{Verb: q.Verb, Group: "default/web", Role: "uncommitted", Epoch: 4, Steps: []string{q.Verb + ": a step"}, Refused: f.refused, Digest: "d"}
	if q.Verb == control.VerbRejoin {
		d.Aside = "web@1"
	}
	switch q.Verb {
	case control.VerbRollback:
		d.Fork, d.Loss = &control.Point{Epoch: 3, Seq: 1200, Time: at(-60)}, &control.Loss{Known: true, Seconds: 60, Writes: 7, Bytes: 28672}
		d.Branch = &control.Branch{Epoch: 4, Site: "b", First: 1201, Last: 1210}
	case control.VerbResolve:
		history := []control.Branch{{Epoch: 3, Site: "a", First: 1, Last: 1200}, {Epoch: 4, Site: "b", First: 1201, Last: 1210}}
		d.Sides = []control.Side{{Site: "a", Role: "primary", Head: "#3.1234", Beyond: 34, History: history[:1]}, {Site: "b", Role: "uncommitted", Kept: true, Head: "#4.1210", Beyond: 10, History: history}}
	}
	return d, f.err
}

func (f *fake) Decide(ctx context.Context, q control.DecisionRequest, progress func(control.Progress)) (control.Decision, error) {
	f.failed = true
	progress(control.Progress{Step: q.Verb})
	d, err := f.PlanDecision(ctx, q)
	if q.Verb == control.VerbStandDown {
		d.Done, d.Role, d.Statement, d.Report = true, "replica", "aioff1-AAAA", "/r/decision.html"
		return d, err
	}
	d.Done, d.Role, d.Following, d.Away, d.Report = true, "primary", []string{"a"}, []string{"c"}, "/r/decision.html"
	return d, err
}

func (f *fake) PlanFailover(_ context.Context, q control.FailoverRequest) (control.Plan, error) {
	p := plan
	p.At, p.Refused = q.At, f.refused
	if q.Tail != "" {
		p.Tail = &control.PlanTail{Peer: q.Tail, Epoch: 3, Seq: 1203, Records: 3, Bytes: 12 << 10, Time: at(-12)}
		p.Peers = []control.PlanPeer{{Name: q.Tail, Reachable: true, Epoch: 3, Seq: 1203, Time: at(-12), Relation: "peer ahead"}}
	}
	if p.Resumes = f.resumes; f.resumes {
		p.Steps, p.Warnings = p.Steps[1:], []string{"the group was promoted here before"}
	}
	return p, f.err
}

var rewindPlan = control.RewindPlan{Group: "default/web", At: "before:attack", Point: control.Point{Epoch: 3, Seq: 1100, Time: at(-600)}, Head: control.Point{Epoch: 3, Seq: 1200}, Epoch: 4,
	Seconds: 600, Writes: 97, Bytes: 512 << 10, Machine: "web1", Undo: "#3.1200", Digest: "r1",
	Volumes: []control.RewindVolume{{Volume: "data"}, {Volume: "root", Differ: 256 << 10, Writes: 97, Bytes: 512 << 10}},
	Steps:   []string{"stop: turn machine web1 off, as a power cut would", "fork: fork epoch 4 at #3.1100, durably; what came after stays as a branch"}, Warnings: []string{"the point lies in an abandoned branch"}}

func (f *fake) PlanRewind(_ context.Context, q control.RewindRequest) (control.RewindPlan, error) {
	p := rewindPlan
	p.At, p.Refused = q.At, f.refused
	return p, f.err
}

func (f *fake) Rewind(_ context.Context, q control.RewindRequest, progress func(control.Progress)) (control.Rewound, error) {
	f.rewind = q
	progress(control.Progress{Step: "fork (0.002 s)"})
	return control.Rewound{RewindPlan: rewindPlan, SecondsTaken: 2.5, Pin: "before-rewind-4", Started: !q.NoMachine}, f.err
}

func (f *fake) MoveDisks(_ context.Context, q control.MoveRequest, progress func(control.Progress)) (control.Moved, error) {
	progress(control.Progress{Step: "copy root", Done: 20 << 30, Total: 20 << 30})
	m := control.Moved{Group: "default/web", Seconds: 61, Volumes: []control.MovedVolume{{Volume: "root", Image: cmp.Or(q.Devices["root"], q.To+"/default-web-root.img"), Bytes: 20 << 30, Pause: 0.004}, {Volume: "data", Image: "/srv/default-web-data.img", Bytes: 3 << 29, Before: true}}}
	if q.Pivot {
		m.Volumes[0].Local = &control.Local{Image: m.Volumes[0].Image, Since: at(-1), Pause: 0.033}
		m.Unprotected = "volume root is attaching"
	}
	return m, f.err
}

func (f *fake) HomeDisks(_ context.Context, q control.HomeRequest) (control.Home, error) {
	h := control.Home{Group: "default/web", Domain: "web", Disks: []control.HomeDisk{
		{Volume: "root", Ran: "/srv/web-root.qcow2", RanFormat: "qcow2", Named: "/srv/new/web-root.qcow2", NamedFormat: "qcow2", Refused: true},
		{Volume: "data", Named: "/dev/vg0/web-data", NamedFormat: "raw", Refused: true},
		{Volume: "logs", Ran: "/srv/web-logs.qcow2", RanFormat: "qcow2", Named: "/srv/web-logs.qcow2", NamedFormat: "qcow2"}}}
	for i, d := range h.Disks {
		if _, ok := q.Disks[d.Volume]; ok {
			h.Disks[i].Said, h.Disks[i].Refused = !q.DryRun, false
		}
	}
	f.home = q
	return h, f.err
}

func (f *fake) Changes(_ context.Context, q control.ChangesRequest) (control.Changes, error) {
	return control.Changes{Group: "default/web", From: control.Point{Epoch: 3, Seq: 1000, Time: at(-600)}, To: control.Point{Epoch: 3, Seq: 1200, Time: at(-1)}, Bytes: 12288, Thinned: q.From == "#17",
		Volumes: []control.VolumeChange{{Volume: "data", Size: 3 << 29, Extents: []control.Extent{}}, {Volume: "root", Size: 20 << 30, Bytes: 12288, Extents: []control.Extent{{Offset: 4096, Length: 4096}, {Offset: 1 << 20, Length: 8192}}}}}, f.err
}

// Bisect is over after two tries.
func (f *fake) Bisect(_ context.Context, q control.BisectRequest) (control.Bisection, error) {
	if q.Tried != nil {
		t := *q.Tried
		t.Seconds = 0.5
		f.tried = append(f.tried, t)
	}
	b := control.Bisection{Group: "default/web", Good: control.Point{Epoch: 3, Seq: 1000, Time: at(-600)}, Bad: control.Point{Epoch: 3, Seq: 1003, Time: at(-1)}, Check: q.Check, Volume: q.Volume,
		Tries: f.tried, Between: 2, Left: 2, Next: &control.Point{Epoch: 3, Seq: 1001, Time: at(-500)}}
	b.LastGood, b.FirstBad = b.Good, b.Bad
	if len(f.tried) == 1 {
		b.Between, b.Left, b.Next.Seq = 1, 1, 1002
	}
	if len(f.tried) == 2 {
		b.Between, b.Left, b.Next, b.Exact, b.Why = 0, 0, nil, f.tried[1].Verdict != "skip", ""
		b.LastGood.Seq, b.FirstBad.Seq = 1001, 1002
		if !b.Exact {
			b.Why = "the check could not tell of 1 points between the two"
		}
	}
	return b, f.err
}

func (f *fake) Failover(_ context.Context, q control.FailoverRequest, progress func(control.Progress)) (control.FailedOver, error) {
	f.failover, f.failed = q, true
	progress(control.Progress{Step: "promote (0.002 s)"})
	p := plan
	p.Resumes = f.resumes
	return control.FailedOver{Plan: p, Unfenced: true, RTOSeconds: 1.5, Started: true, QMP: "/m/qmp.sock", Report: "/r/web.html",
		Exports: []control.Export{{Volume: "root", URI: "nbd+unix:///web/root?socket=%2Frun%2Fnbd.sock"}}}, f.err
}

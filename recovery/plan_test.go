package recovery

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
)

var (
	noon   = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	epochA = journal.EpochID{0xaa, 1}
	volA   = cbt.Volume{ID: cbt.VolumeID{1}, Name: "root", Size: 1 << 30}
	volB   = cbt.Volume{ID: cbt.VolumeID{2}, Name: "data", Size: 1 << 34}
)

// inputs is a failover to a named point, of a source that went silent.
func inputs() Inputs {
	head := journal.Position{Epoch: epochA, Seq: 9000}
	return Inputs{
		Tenant: "default", Group: "web", Site: "b", Identity: journal.Identity{Group: cbt.ID{7}}, At: "name:before-attack",
		Point:   journal.Point{Position: journal.Position{Epoch: epochA, Seq: 8000}, Number: 3, Time: noon.Add(-90 * time.Second), Volumes: []cbt.VolumeID{volA.ID, volB.ID}},
		Head:    journal.Head{Position: head, Number: 3, Time: noon.Add(-42 * time.Second)},
		Lineage: journal.Lineage{{Epoch: epochA, Number: 3, First: 1, Last: 9000}}, HighestEpoch: 3,
		Since: journal.Since{Records: 1000, First: noon.Add(-89 * time.Second), Last: noon.Add(-42 * time.Second), Volumes: []journal.Change{
			{Volume: volA.ID, Writes: 900, Bytes: 900 * 4096}, {Volume: volB.ID, Writes: 90, Bytes: 90 << 20, Fills: 1, FillBytes: 1 << 20},
		}},
		Volumes: []cbt.Volume{volB, volA},
		Peers: []PeerHead{
			{Name: "a", Primary: true, Head: journal.Position{Epoch: epochA, Seq: 9017}, Number: 3, Time: noon.Add(-41 * time.Second)},
			{Name: "c", Reachable: true, Head: journal.Position{Epoch: epochA, Seq: 8999}, Number: 3, Time: noon.Add(-43 * time.Second)},
		},
		Source:  &SourceHead{Peer: "a", Head: journal.Position{Epoch: epochA, Seq: 9017}, Number: 3, Bytes: 70_000, Time: noon.Add(-41 * time.Second), Heard: noon.Add(-40 * time.Second)},
		Machine: "web", Health: true, Now: noon,
	}
}

func TestPlanGolden(t *testing.T) {
	bare := inputs()
	bare.Tenant, bare.Source, bare.Peers, bare.Machine, bare.Health = "", nil, nil, "", false
	bare.Point.Volumes = []cbt.VolumeID{volA.ID}
	bare.Lineage = journal.Lineage{{Epoch: journal.EpochID{0xbb}, Number: 4, First: 1, Last: 9000}}
	fenced := inputs()
	fenced.Fence, fenced.At, fenced.Since, fenced.Source.Head.Seq = FenceProven, "latest", journal.Since{}, 9000
	fenced.Point.Seq, fenced.Point.Time = 9000, fenced.Head.Time
	for name, in := range map[string]Inputs{"plan-silent-source": inputs(), "plan-alone": bare, "plan-fenced-latest": fenced} {
		p := NewPlan(in)
		b, err := json.MarshalIndent(p, "", "  ")
		must(t, err)
		golden(t, name+".golden", []byte(p.String()))
		golden(t, name+".json.golden", append(b, '\n'))
		var back Plan
		must(t, json.Unmarshal(b, &back))
		if back.Digest != p.digest() {
			t.Errorf("%s: JSON does not give the plan back", name)
		}
	}
}

// The loss has both parts, and the known whole is from the point to when the source
// was last heard.
func TestLoss(t *testing.T) {
	l := NewPlan(inputs()).Loss
	if !l.Known || l.GivenUp.Writes != 990 || l.GivenUp.Seconds != 48 || l.GivenUp.Bytes != 900*4096+91<<20 {
		t.Errorf("given up %+v", l.GivenUp)
	}
	if l.NeverArrived != (NeverArrived{Seconds: 1, Records: 17, Bytes: 70_000}) {
		t.Errorf("never arrived %+v", l.NeverArrived)
	}
	if l.Seconds != 49 || l.Writes != 1007 || l.UnheardSeconds != 40 {
		t.Errorf("together %+v", l)
	}
	in := inputs() // an idle group: nothing was written since, so nothing is lost
	in.Since, in.Source.Head.Seq, in.Point.Position, in.Point.Time = journal.Since{}, 9000, in.Head.Position, in.Head.Time
	if l := NewPlan(in).Loss; l.Seconds != 0 || l.Writes != 0 || l.Bytes != 0 {
		t.Errorf("idle: %+v", l)
	}
	in = inputs() // clocks of two sites disagree
	in.Source.Time = in.Point.Time.Add(-time.Hour)
	if l := NewPlan(in).Loss; l.Seconds < l.GivenUp.Seconds || l.NeverArrived.Seconds < 0 {
		t.Errorf("skewed clocks: %+v", l)
	}
}

// Promise 12: without a proven fence only force goes on, whatever else is known; a
// primary that answers and a peer that holds more speak against it too.
func TestObjections(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Inputs)
		want   []string
	}{
		"unknown":    {func(*Inputs) {}, []string{ObjectionUnfenced}},
		"proven":     {func(in *Inputs) { in.Fence = FenceProven }, nil},
		"any word":   {func(in *Inputs) { in.Fence = "unreachable" }, []string{ObjectionUnfenced}},
		"answers":    {func(in *Inputs) { in.Peers[0].Reachable = true }, []string{ObjectionPrimary, ObjectionUnfenced, ObjectionAhead}},
		"peer ahead": {func(in *Inputs) { in.Fence, in.Peers[1].Head.Seq = FenceProven, 9001 }, []string{ObjectionAhead}},
	} {
		in := inputs()
		c.change(&in)
		p := NewPlan(in)
		var codes []string
		for _, o := range p.Refused {
			codes = append(codes, o.Code)
		}
		if !slices.Equal(codes, c.want) {
			t.Errorf("%s: refused for %v, want %v", name, codes, c.want)
		}
		o, err := p.Order("op", false)
		var r *RefusedError
		if (err == nil) != (c.want == nil) || err != nil && (!errors.As(err, &r) || len(r.Reasons) != len(c.want)) {
			t.Errorf("%s: ordered without force: %v", name, err)
		}
		if errors.Is(err, ErrUnfenced) != slices.Contains(c.want, ObjectionUnfenced) {
			t.Errorf("%s: %v", name, err)
		}
		if o, err = p.Order("op", true); err != nil || o.Forced != (c.want != nil) {
			t.Errorf("%s: by force: %+v, %v", name, o, err)
		}
	}
}

func TestNewEpochIsAboveAllKnown(t *testing.T) {
	for i, change := range []func(*Inputs){
		func(in *Inputs) { in.HighestEpoch = 20 }, func(in *Inputs) { in.Peers[0].Number = 20 },
		func(in *Inputs) { in.Source.Number = 20 }, func(in *Inputs) { in.Head.Number = 20 },
	} {
		in := inputs()
		change(&in)
		if n := NewPlan(in).NewEpochNumber; n != 21 {
			t.Errorf("case %d: epoch %d", i, n)
		}
	}
}

func TestDigestNamesWhatWasConfirmed(t *testing.T) {
	was := NewPlan(inputs()).Digest
	in := inputs()
	in.Now = noon.Add(time.Hour)
	if NewPlan(in).Digest != was {
		t.Error("time alone changes it")
	}
	for i, change := range []func(*Inputs){
		func(in *Inputs) { in.Point.Seq++ }, func(in *Inputs) { in.Head.Seq++ }, func(in *Inputs) { in.HighestEpoch++ },
		func(in *Inputs) { in.Machine = "other" }, func(in *Inputs) { in.Peers[0].Reachable = true },
	} {
		in := inputs()
		change(&in)
		if NewPlan(in).Digest == was {
			t.Errorf("change %d does not change it", i)
		}
	}
}

func TestReportGolden(t *testing.T) {
	p := NewPlan(inputs())
	p.Group = `web<script>alert("x")</script>`
	began := noon.Add(time.Second)
	o := Outcome{
		Plan: p, Operator: "anna & <b>", Unfenced: true, Began: began, RTOSeconds: 3.25,
		Epoch:   journal.Epoch{Number: 4, ID: journal.EpochID{0xcc}, Site: "b"},
		Reign:   Reign{Forced: true, Chain: journal.Chain{1, 2, 3}},
		Steps:   []StepTime{{Name: StepPromote, Began: began, Seconds: 0.01, Detail: "epoch 4"}, {Name: StepHealth, Began: began.Add(time.Second), Seconds: 3.2, Detail: `<img src=x>`}},
		Machine: &Running{Name: "web", UUID: "11111111-2222-4333-8444-555555555555", PID: 77},
	}
	r := NewReport(o, noon.Add(time.Minute))
	r.RPO = RPO{Samples: 4, P50: 0.1, P99: 0.9, Max: 1, Target: 0.5}
	r.Curves = []Series{{"RPO <i>", []Sample{{0, 0.1}, {1, 0.9}, {2, nan}, {3, 0.2}}}}
	r.Markers = []Marker{{1.5, "attack & <b>"}}
	r.Checks = []Check{{"every stamp is there", true, ""}, {"loss as told", false, "7 <> 8"}}
	page, err := r.HTML()
	must(t, err)
	data, err := r.JSON()
	must(t, err)
	golden(t, "report.html.golden", page)
	golden(t, "report.json.golden", data)
	for _, raw := range []string{"<script", "<img", "<b>", "<i>", "http://", "https://"} {
		rest := strings.ReplaceAll(string(page), `xmlns="http://www.w3.org/2000/svg"`, "")
		if strings.Contains(rest, raw) {
			t.Errorf("the page holds %s", raw)
		}
	}
	var back Report
	must(t, json.Unmarshal(data, &back))
	again, err := back.HTML()
	must(t, err)
	if !bytes.Equal(again, page) {
		t.Error("the JSON does not hold the whole report")
	}
	o.Failed, o.RTOSeconds = StepStart, 0
	o.Steps[1].Error = "it <ended>"
	page, err = NewReport(o, noon).HTML()
	must(t, err)
	if !bytes.Contains(page, []byte("failed at start")) || !bytes.Contains(page, []byte("it &lt;ended&gt;")) {
		t.Error("a failure is not shown")
	}
}

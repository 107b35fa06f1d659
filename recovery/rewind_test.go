package recovery

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
)

func rewindInputs() RewindInputs {
	in := inputs()
	return RewindInputs{Tenant: in.Tenant, Group: in.Group, Site: in.Site, Identity: in.Identity, Reign: Reign{Role: Primary}, At: in.At, Point: in.Point, Head: in.Head, Lineage: in.Lineage,
		HighestEpoch: 5, Since: in.Since, Volumes: in.Volumes, Changed: map[cbt.VolumeID][]cbt.Extent{volA.ID: {{Offset: 0, Length: 4096}, {Offset: 1 << 20, Length: 8192}}},
		Machine: "web", Undo: "#3.9000", Now: noon}
}

func TestRewindPlanGolden(t *testing.T) {
	hard := rewindInputs()
	hard.Undo, hard.Clients, hard.Machine, hard.Thinned = "", 2, "", true
	hard.Point.Volumes = []cbt.VolumeID{volA.ID}
	hard.Lineage = journal.Lineage{{Epoch: journal.EpochID{0xbb}, Number: 4, First: 1, Last: 9000}}
	own := rewindInputs()
	own.Drives, own.Stays, own.Unfollowed = true, true, "volume a is broken"
	for name, in := range map[string]RewindInputs{"rewind": rewindInputs(), "rewind-refused": hard, "rewind-drives": own} {
		p := NewRewind(in)
		b, err := json.MarshalIndent(p, "", "  ")
		must(t, err)
		golden(t, name+".json.golden", append(b, '\n'))
		later := in
		later.Now, later.Head.Seq = later.Now.Add(1), later.Head.Seq+1
		if NewRewind(later).Digest != p.Digest {
			t.Errorf("%s: what the guest wrote meanwhile is another plan", name)
		}
		later.Point.Seq--
		if NewRewind(later).Digest == p.Digest {
			t.Errorf("%s: another point is the same plan", name)
		}
		o, err := p.Order("op", false)
		var r *RefusedError
		if errors.As(err, &r) != (len(p.Refused) > 0) {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil && (!o.Rewind || o.Forced || o.EpochAtLeast != 6) {
			t.Errorf("%s: %+v", name, o)
		}
	}
}

// A rewind changes nothing about who reigns, and only who reigns may do it.
func TestRewindKeepsTheRole(t *testing.T) {
	r := newReplica(t)
	j := open(t, r.dir, r.id)
	defer j.close(t)
	o := r.order()
	o.Rewind, o.Forced = true, false
	if _, err := Promote(testContext(t), j.Journal, o, noon); !errors.Is(err, ErrNotReigning) {
		t.Fatalf("a replica rewinds: %v", err)
	}
	was := Reign{Role: Primary, Since: noon, Operator: "first"}
	must(t, RememberReign(j, was))
	done, err := Promote(testContext(t), j.Journal, o, noon.Add(1))
	must(t, err)
	if done.Reign.Role != Primary || done.Reign.Unfenced || done.Reign.Forced || !done.Reign.From.IsZero() || done.Reign.ID != done.Writer.Epoch().ID {
		t.Errorf("the role is %+v", done.Reign)
	}
	got := make([]byte, r.vol.Size)
	must(t, done.Writer.ReadHead(testContext(t), r.vol.ID, 0, got))
	if string(got) != string(r.content) {
		t.Error("the head is not the point")
	}
	again, err := Promote(testContext(t), j.Journal, o, noon.Add(2))
	must(t, err)
	if again.Reign.ID == done.Reign.ID || again.Resumed {
		t.Errorf("a second rewind by no plan: %+v", again)
	}
	behind := Reign{Role: Uncommitted, From: again.Promotion.Order.Point, Promotion: again.Promotion.ID}
	behind.From.Seq++
	must(t, RememberReign(j, behind))
	if _, err := Promote(testContext(t), j.Journal, o, noon.Add(3)); !errors.Is(err, ErrBehindFork) {
		t.Errorf("behind the fork of a failover that is not committed: %v", err)
	}
}

package site

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/recovery/fence"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
)

// couldTap are two sites, the second of which taps a machine if it is ever primary by itself.
func couldTap(t *testing.T) (w *seats, ca, cb *config.Config) {
	t.Helper()
	w = newWorld(t).seats("a", "b")
	ca = w.at("a", "- {name: web, role: primary, peers: [b], volumes: [{name: root, size: 1MiB, embedded: {image: root.img}}]}\n")
	cb = w.at("b", "- name: web\n  role: replica\n  peers: [a]\n  qemu: {qmp: '"+filepath.Join(w.dir, "qmp")+"'}\n  volumes: [{name: root, size: 1MiB, qemu: {node: root}}]\n")
	return w, ca, cb
}

// What a site knows of its machine and its peers outlives the history that a rejoin sets
// aside; a start that an interrupted rewind owed does not.
func TestRejoinKeepsWhatIsNotOfTheHistory(t *testing.T) {
	w, _, cb := couldTap(t)
	b := w.run(cb)
	b.awaitState("web", control.StateWaiting)
	l, release := b.lifeOf()
	defer release()
	<-l.settled // it has looked at what is owed
	id := volumeOf(l.cfg, l.cfg.Volumes[0]).ID
	lies := recovery.Drive{Path: "/disks/root.img", Format: "raw"}
	owed := stoppedFor{Machine: "web", Halted: true, Tapped: &tappedMachine{Domain: "d", Autostart: true}}
	for key, v := range map[string]any{driveKey(id): lies, begunKey("a"): uint64(7), stoppedKey: owed} {
		if err := l.j.Remember(key, v); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.beginAgain(t.Context(), journal.Position{}); err != nil {
		t.Fatal(err)
	}
	j, err := journal.Open(l.nextDir(), journal.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	var drive recovery.Drive
	if _, err := j.Recall(driveKey(id), &drive); err != nil || drive != lies {
		t.Errorf("where the disk lies: %+v, %v", drive, err)
	}
	var begun uint64
	if _, err := j.Recall(begunKey("a"), &begun); err != nil || begun != 7 {
		t.Errorf("the epoch that a began: %d, %v", begun, err)
	}
	var was stoppedFor
	if _, err := j.Recall(stoppedKey, &was); err != nil || was.Machine != "" || was.Halted || was.Tapped == nil || !was.Tapped.Autostart || was.Tapped.Domain != "d" {
		t.Errorf("what is owed: %+v, %v", was, err)
	}
}

// A site that never tapped what it could serves the history, and can be stood down from:
// the socket and the processes tell whether the machine that it does not tap is off.
func TestStandDownWhereNothingWasEverTapped(t *testing.T) {
	w, ca, cb := couldTap(t)
	a, b := w.run(ca), w.run(cb)
	a.awaitState("web", control.StateSynced)
	a.write("web/root", 7, 0, 4096)
	awaitLevel(a, b, "web")
	a.stop()
	failOver(t, b, control.FailoverRequest{NoMachine: true})
	b.awaitRole("web", recovery.Uncommitted, control.StateSynced)
	decide(t, b, control.VerbCommit, "")
	text := b.standDown("web")
	x, err := fence.Statement{Text: text, Site: "b", Identity: b.groups[0].id, Key: func([]byte) bool { return true }}.Standing()
	if err != nil || !strings.Contains(x.How, "disk of root open cannot be told") {
		t.Errorf("%+v, %v", x, err)
	}
}

package site

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
	"github.com/novacron/afterimage/testbed/scale"
)

// TestADrillsReportIsProvenByItsFile: it is signed, vouched for by the peer, judged
// offline, and refused by name once something of it was changed.
func TestADrillsReportIsProvenByItsFile(t *testing.T) {
	t.Parallel()
	scale.Tools(t, "qemu-system-x86_64")
	w, ctx := newWorld(t), context.Background()
	ca, cb := w.pair("", machineOfWeb)
	a, b := w.runPair(ca, cb)
	a.awaitState("web", control.StateSynced)
	a.write("web/root", 1, 0, 4096)
	awaitLevel(a, b, "web")
	a.stop() // while it is away nobody vouches
	w.program(`exec qemu-system-x86_64 "$@"`)
	for range 2 {
		if _, err := b.TestFailover(ctx, control.DrillRequest{Group: "web", At: "latest"}, func(control.Progress) {}); err != nil {
			t.Fatal(err)
		}
	}
	reports, err := b.Reports(ctx)
	if err != nil || len(reports) != 2 || !reports[0].Held || reports[0].Anchored || reports[0].Steps["start"] <= 0 {
		t.Fatalf("reports %+v, %v", reports, err)
	}
	export := func() ([]byte, error) {
		f, err := b.ExportReport(ctx, control.ReportRequest{Name: reports[0].Name})
		return f.File, err
	}
	file, err := export()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := VerifyReport(file, "", ""); !fault.Is(err, fault.EvidenceUnanchored) {
		t.Errorf("before anybody vouched: %v", err)
	}
	a = w.run(ca)
	await(t, "the peer has vouched without being asked by anybody", func() bool {
		reports, err := b.Reports(ctx)
		return err == nil && reports[1].Anchored
	})
	head, err := b.LedgerHead(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.VouchLedger(ctx, control.TokenRequest{Token: head.Token}); !fault.Is(err, fault.PeerPin) {
		t.Errorf("its own head: %v", err)
	}
	anchor, err := a.VouchLedger(ctx, control.TokenRequest{Token: head.Token})
	if err != nil || anchor.Entries != 2 || anchor.Site != "b" {
		t.Fatalf("vouch: %+v, %v", anchor, err)
	}
	if _, err := b.KeepAnchor(ctx, control.TokenRequest{Token: head.Token}); !fault.Is(err, fault.Usage) {
		t.Errorf("a head for an anchor: %v", err)
	}
	if _, err := b.KeepAnchor(ctx, control.TokenRequest{Token: anchor.Token}); err != nil {
		t.Fatal(err)
	}
	if file, err = export(); err != nil {
		t.Fatal(err)
	}
	pinB := ca.Peers[0].Pin
	v, err := VerifyReport(file, pinB, cb.Peers[0].Pin)
	if err != nil || !v.PinChecked || !v.ByPinChecked || !v.Report.Anchored || v.Pin != pinB || v.ByPin != cb.Peers[0].Pin || v.By != "a" || v.Report.Name != reports[0].Name {
		t.Errorf("verdict %+v, %v", v, err)
	}
	if _, err := VerifyReport(file, pinB, pinB); !fault.Is(err, fault.EvidenceStranger) {
		t.Errorf("vouched for by another: %v", err)
	}
	if v, err := VerifyReport(file, "", ""); err != nil || v.PinChecked || v.ByPinChecked || v.Report.Anchored {
		t.Errorf("without pins: %+v, %v", v, err)
	}
	if _, err := VerifyReport(file, cb.Peers[0].Pin, ""); !fault.Is(err, fault.EvidenceStranger) {
		t.Errorf("of another site: %v", err)
	}
	path := filepath.Join(b.reportsDir(), reports[0].Name+".json")
	page, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, bytes.Replace(page, []byte("rto_seconds"), []byte("rt0_seconds"), 1), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := export(); !fault.Is(err, fault.EvidenceTampered) {
		t.Errorf("a changed report: %v", err)
	}
	b.stop()
	ledger := filepath.Join(cb.Data, "ledger", "ledger.jsonl")
	text, err := os.ReadFile(ledger)
	if err == nil {
		err = os.WriteFile(ledger, text[:bytes.IndexByte(text, '\n')+1], 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	b = w.run(cb)
	b.awaitState("web", control.StateReceiving) // replication goes on all the same
	if _, err := b.Reports(ctx); !fault.Is(err, fault.EvidenceShortened) {
		t.Errorf("a shortened ledger: %v", err)
	}
	told := false
	for _, n := range b.groupLine("web").Notices {
		told = told || n.Code == string(fault.EvidenceShortened) && strings.Contains(n.Text, "shortened")
	}
	if !told {
		t.Error("the status says nothing of it")
	}
}

// A site whose ledger was begun anew is refused by who has vouched for the one before,
// as shorter or as another one, and its status says so until somebody looks.
func TestAPeerVouchesForNoLedgerThatWasShortened(t *testing.T) {
	t.Parallel()
	scale.Tools(t, "qemu-system-x86_64")
	w, ctx := newWorld(t), context.Background()
	ca, cb := w.pair("", machineOfWeb)
	a, b := w.runPair(ca, cb)
	a.awaitState("web", control.StateSynced)
	a.write("web/root", 1, 0, 4096)
	awaitLevel(a, b, "web")
	w.program(`exec qemu-system-x86_64 "$@"`)
	drill := func() {
		t.Helper()
		if _, err := b.TestFailover(ctx, control.DrillRequest{Group: "web", At: "latest"}, func(control.Progress) {}); err != nil {
			t.Fatal(err)
		}
	}
	drill()
	drill()
	await(t, "the peer has vouched", func() bool { return b.ledger.Anchored() == 2 })
	b.stop()
	if err := os.RemoveAll(filepath.Join(cb.Data, "ledger")); err != nil {
		t.Fatal(err)
	}
	b = w.run(cb)
	b.awaitState("web", control.StateReceiving)
	drill()
	await(t, "the peer's refusal is told", func() bool {
		for _, n := range b.groupLine("web").Notices {
			if n.Level == control.Alarm && n.Code == string(fault.EvidenceShortened) && strings.Contains(n.Text, "a does not vouch for it") {
				return true
			}
		}
		return false
	})
	if b.ledger.Anchored() != 0 {
		t.Error("it is anchored all the same")
	}
}

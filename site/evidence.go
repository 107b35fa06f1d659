package site

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/recovery/evidence"
	"github.com/novacron/afterimage/replicator"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

func (s *Site) reportsDir() string { return filepath.Join(s.cfg.Data, "reports") }

// openLedger reads the ledger. One that is refused does not keep the site from its
// work: nothing is added to it, and every status says so.
func (s *Site) openLedger() {
	signer, err := ledgerKey(s.cfg, s.self())
	if err == nil {
		s.ledger, err = evidence.Open(filepath.Join(s.cfg.Data, "ledger"), s.cfg.Site, signer)
	}
	s.ledgerErr = err
	if s.ledgerErr != nil {
		s.o.Log.Error("the ledger of reports is refused", "err", s.ledgerErr)
	}
}

// ledgerFor is the ledger, or why there is none.
func (s *Site) ledgerFor(what string) (*evidence.Ledger, error) {
	switch {
	case !s.running():
		return nil, fault.New(fault.NeedsDaemon, what, "the ledger is the daemon's")
	case s.ledgerErr != nil:
		return nil, explain(what, s.ledgerErr)
	}
	return s.ledger, nil
}

// report is what is written as evidence.
type report interface {
	HTML() ([]byte, error)
	JSON() ([]byte, error)
}

// writeReport writes a failover's or a drill's report and enters it into the ledger.
func (s *Site) writeReport(r recovery.Report, kind, group, base string) (string, error) {
	e := evidence.Entry{Kind: kind, Group: group, Name: base, Held: r.Outcome.Failed == "", RTOSeconds: r.Outcome.RTOSeconds, Steps: map[string]float64{}}
	for _, c := range r.Checks {
		e.Held = e.Held && c.Held
	}
	for _, t := range r.Outcome.Steps {
		e.Steps[string(t.Name)] = t.Seconds
	}
	return s.enterReport(r, e)
}

// enterReport writes a report's files and enters them into the ledger. A name that is
// taken, by the same failover's earlier attempt, gets a number: the ledger holds the hashes
// of what lies there.
func (s *Site) enterReport(r report, e evidence.Entry) (string, error) {
	if err := os.MkdirAll(s.reportsDir(), 0o700); err != nil {
		return "", err
	}
	page, err := r.HTML()
	if err != nil {
		return "", err
	}
	data, err := r.JSON()
	if err != nil {
		return "", err
	}
	for n, base := 2, e.Name; ; n++ {
		if _, err := os.Lstat(filepath.Join(s.reportsDir(), e.Name+".html")); errors.Is(err, fs.ErrNotExist) {
			break
		} else if err != nil {
			return "", err
		}
		e.Name = fmt.Sprintf("%s-%d", base, n)
	}
	files, err := recovery.WriteReport(s.reportsDir(), e.Name, page, data)
	if err != nil {
		return "", err
	}
	l, err := s.ledgerFor("enter report " + e.Name)
	if err != nil {
		return files[0], err
	}
	e.Page, e.Report = evidence.HashOf(page), evidence.HashOf(data)
	_, err = l.Append(e, s.o.Now())
	if err == nil {
		s.ledgerGrew()
	}
	return files[0], err
}

// Reports implements control.API.
func (s *Site) Reports(context.Context) ([]control.Report, error) {
	l, err := s.ledgerFor("list reports")
	if err != nil {
		return nil, err
	}
	out := []control.Report{}
	anchored := l.Anchored()
	for _, e := range l.Entries() {
		out = append(out, reportOf(e, e.N <= anchored))
	}
	return out, nil
}

func reportOf(e evidence.Entry, anchored bool) control.Report {
	return control.Report{N: e.N, Name: e.Name, Kind: e.Kind, Group: e.Group, Time: e.Time, Held: e.Held, RTO: e.RTOSeconds, Steps: e.Steps, Anchored: anchored}
}

// ExportReport implements control.API.
func (s *Site) ExportReport(_ context.Context, q control.ReportRequest) (control.ReportFile, error) {
	what := "export report " + q.Name
	l, err := s.ledgerFor(what)
	if err != nil {
		return control.ReportFile{}, err
	}
	if !filepath.IsLocal(q.Name) || filepath.Base(q.Name) != q.Name {
		return control.ReportFile{}, explain(what, evidence.ErrNoReport)
	}
	b, err := os.ReadFile(filepath.Join(s.reportsDir(), q.Name+".json"))
	if os.IsNotExist(err) {
		err = evidence.ErrNoReport
	}
	if err == nil {
		b, err = l.Bundle(q.Name, b)
	}
	return control.ReportFile{Name: q.Name, File: b}, explain(what, err)
}

// Words before tokens.
const (
	headToken   = "aihead1-"
	anchorToken = "aianchor1-"
)

func tokenOf(word string, s evidence.Signed) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // our own struct of bytes
	}
	return word + base64.RawURLEncoding.EncodeToString(b)
}

func readToken(what, word, token string) (s evidence.Signed, err error) {
	text, ok := strings.CutPrefix(strings.TrimSpace(token), word)
	if ok {
		var b []byte
		if b, err = base64.RawURLEncoding.DecodeString(text); err == nil {
			err = json.Unmarshal(b, &s)
		}
	}
	if !ok || err != nil {
		return s, fault.New(fault.Usage, what, "what was given is not a token that begins with %s", word).Advise("Copy the whole line.")
	}
	return s, nil
}

// LedgerHead implements control.API.
func (s *Site) LedgerHead(context.Context) (control.Token, error) {
	what := "sign the ledger's head"
	l, err := s.ledgerFor(what)
	if err != nil {
		return control.Token{}, err
	}
	h, err := l.Head(s.o.Now())
	if err != nil {
		return control.Token{}, explain(what, err)
	}
	return control.Token{Token: tokenOf(headToken, h), Site: s.cfg.Site, Entries: uint64(len(l.Entries()))}, nil
}

// VouchLedger implements control.API.
func (s *Site) VouchLedger(_ context.Context, q control.TokenRequest) (control.Token, error) {
	what := "vouch for another site's ledger"
	l, err := s.ledgerFor(what)
	if err != nil {
		return control.Token{}, err
	}
	h, err := readToken(what, headToken, q.Token)
	if err != nil {
		return control.Token{}, err
	}
	if !s.knows(h.Key) {
		return control.Token{}, fault.New(fault.PeerPin, what, "it is signed by %s, which is no peer of this site", pinOf(h.Key))
	}
	a, err := l.Vouch(h, s.o.Now())
	if err != nil {
		return control.Token{}, explain(what, err)
	}
	var head evidence.Head
	if err := json.Unmarshal(h.Body, &head); err != nil {
		return control.Token{}, explain(what, err)
	}
	return control.Token{Token: tokenOf(anchorToken, a), Site: head.Site, Entries: head.N}, nil
}

// KeepAnchor implements control.API.
func (s *Site) KeepAnchor(_ context.Context, q control.TokenRequest) (control.Token, error) {
	what := "keep an anchor"
	l, err := s.ledgerFor(what)
	if err != nil {
		return control.Token{}, err
	}
	a, err := readToken(what, anchorToken, q.Token)
	if err != nil {
		return control.Token{}, err
	}
	if !s.knows(a.Key) {
		return control.Token{}, fault.New(fault.PeerPin, what, "it is signed by %s, which is no peer of this site", pinOf(a.Key))
	}
	anchor, err := l.Keep(a)
	if err != nil {
		return control.Token{}, explain(what, err)
	}
	return control.Token{Token: q.Token, Site: anchor.Site, Entries: l.Anchored()}, nil
}

// knows reports whether key is that of a peer.
func (s *Site) knows(key []byte) bool {
	pin := pinOf(key)
	for _, p := range s.cfg.Peers {
		if samePin(s.pairs.of(p).Pin, pin) || s.pairs.formerly(p.Name, pin) {
			return true
		}
	}
	return false
}

// pinOf is a public key as peers write it.
func pinOf(key []byte) string {
	spki, err := x509.MarshalPKIXPublicKey(ed25519.PublicKey(key))
	if err != nil {
		return "no key"
	}
	return replicator.Pin(sha256.Sum256(spki)).String()
}

// VerifyReport judges a file that ExportReport made, alone and offline. pin, if it is
// given, is that of the site whose ledger it must be, by that of the site that must have
// vouched for it. Without by nobody is known to have.
func VerifyReport(file []byte, pin, by string) (control.ReportVerdict, error) {
	const what = "verify the report"
	v, err := evidence.Verify(file)
	if err != nil {
		return control.ReportVerdict{}, explain(what, err)
	}
	out := control.ReportVerdict{Report: reportOf(v.Entry, by != ""), Site: v.Entry.Site, Pin: pinOf(v.Key), Entries: v.Entries, By: v.Anchor.Site, ByPin: pinOf(v.By), Anchored: v.Anchor.Time,
		PinChecked: pin != "", ByPinChecked: by != ""}
	for _, c := range []struct{ given, seen, role string }{{pin, out.Pin, "signed"}, {by, out.ByPin, "vouched for"}} {
		if c.given == "" {
			continue
		}
		want, err := replicator.ParsePin(c.given)
		if err != nil {
			return control.ReportVerdict{}, fault.Wrap(fault.Usage, what, err)
		}
		if want.String() != c.seen {
			return control.ReportVerdict{}, fault.New(fault.EvidenceStranger, what, "it is %s by %s, not %s", c.role, c.seen, want)
		}
	}
	return out, nil
}

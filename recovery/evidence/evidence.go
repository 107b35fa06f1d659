// Package evidence keeps the reports of drills and failovers so that nobody can change,
// drop or add one unseen: a ledger of signed entries, each with the hash of the one
// before it, whose head another site signs too (an Anchor).
//
// It promises that a report which was changed, an entry that was changed, moved or
// taken out, a ledger that is shorter than it once was, and one that nobody else has
// vouched for are each refused by their own name. It does not promise that what a
// report says was measured right, nor that a site whose key was stolen did not write
// another ledger from its beginning: against that the anchor stands, as far as it goes.
//
// The way of a report:
//
//  1. Ledger.Append (ledger.go) signs an entry with the report's hash and makes it durable;
//  2. Ledger.Head is carried to another site, which keeps and signs it (Vouch), and the
//     Anchor comes back (Ledger.Keep);
//  3. Ledger.Bundle is one file: the report, the ledger up to its end, the anchor;
//  4. Verify (verify.go), pure and offline, judges that file alone.
//
// A Ledger is safe for concurrent use.
package evidence

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"slices"
	"time"
)

// Errors of this package. Each is one way in which evidence is none.
var (
	// ErrTampered: a report is not the one that the ledger has.
	ErrTampered = errors.New("the report was changed")
	// ErrLedger: entries do not follow each other, or one was changed.
	ErrLedger = errors.New("the ledger was changed")
	// ErrShortened: another site has vouched for entries that are not there.
	ErrShortened = errors.New("the ledger was shortened")
	// ErrUnanchored: no other site has vouched for the report's entry.
	ErrUnanchored = errors.New("no other site has vouched for the ledger")
	// ErrSignature: a signature is not that of the key that it names.
	ErrSignature = errors.New("a signature is wrong")
	// ErrStranger: a key is not one of those that were asked for.
	ErrStranger = errors.New("the evidence is signed by another key")
	// ErrNoReport: the ledger has no report of that name.
	ErrNoReport = errors.New("no such report")
	// ErrBundle: the file is no evidence.
	ErrBundle = errors.New("the file is no evidence")
)

// Kinds of entries.
const (
	Drill    = "drill"
	Failover = "failover"
	Run      = "run" // of a runbook; one that only rehearsed is a Drill
	Handover = "handover"
	Decision = "decision" // commit, rollback, reprotect, resolve
)

// Entry is what the ledger says of a report.
type Entry struct {
	N      uint64    `json:"n"`    // from 1
	Prev   string    `json:"prev"` // hash of the entry before, as signed; of the first: empty
	Time   time.Time `json:"time"`
	Site   string    `json:"site"`
	Kind   string    `json:"kind"`
	Group  string    `json:"group"`            // TENANT/NAME; of a run of a runbook: empty
	Groups []string  `json:"groups,omitempty"` // whose machines a run brought up
	Name   string    `json:"name"`             // of the report's files
	Report string    `json:"report_sha256"`
	Page   string    `json:"page_sha256"`
	Held   bool      `json:"held"` // it did what it should
	// RTOSeconds and Steps are what was measured.
	RTOSeconds float64            `json:"rto_seconds"`
	Steps      map[string]float64 `json:"steps,omitempty"`
}

// Of reports whether the entry is about a group.
func (e Entry) Of(group string) bool { return e.Group == group || slices.Contains(e.Groups, group) }

// Signer is a site's key.
type Signer interface {
	Public() ed25519.PublicKey
	Sign(message []byte) []byte
}

// Signed is bytes with the signature of a key over them and what they are.
type Signed struct {
	Body []byte `json:"body"`
	Key  []byte `json:"key"` // Ed25519, public
	Sig  []byte `json:"sig"`
}

// Words before what is signed, so that no signature serves for something else.
const (
	entryWord  = "afterimage ledger entry v1\n"
	headWord   = "afterimage ledger head v1\n"
	anchorWord = "afterimage ledger anchor v1\n"
)

func sign(s Signer, word string, body []byte) Signed {
	return Signed{body, s.Public(), s.Sign(append([]byte(word), body...))}
}

func (s Signed) genuine(word string) bool {
	return len(s.Key) == ed25519.PublicKeySize && ed25519.Verify(s.Key, append([]byte(word), s.Body...), s.Sig)
}

// hash is what the next entry names.
func (s Signed) hash() string {
	h := sha256.New()
	for _, part := range [][]byte{s.Body, s.Key, s.Sig} {
		sum := sha256.Sum256(part)
		h.Write(sum[:])
	}
	return hex.EncodeToString(h.Sum(nil))
}

// HashOf is a file's hash as entries have it.
func HashOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// Head is where a ledger ends.
type Head struct {
	Site string    `json:"site"`
	N    uint64    `json:"n"`
	Hash string    `json:"hash"`
	Time time.Time `json:"time"`
}

// Anchor is another site's word for a head.
type Anchor struct {
	Head Signed    `json:"head"` // by the ledger's site
	Site string    `json:"site"` // who vouches
	Time time.Time `json:"time"`
}

// Bundle is a report with all that proves it.
type Bundle struct {
	Version int      `json:"evidence_version"`
	Name    string   `json:"name"`
	Report  []byte   `json:"report"`
	Ledger  []Signed `json:"ledger"`
	Anchor  *Signed  `json:"anchor,omitempty"` // of an Anchor
}

package fence

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/novacron/afterimage/journal"
)

// Standing is what a site states of a group that it stood down from: its machine is
// off, the site will not begin another epoch of it, and its history ends at Head.
type Standing struct {
	Site     string           `json:"site"`
	Group    string           `json:"group"` // TENANT/NAME
	Identity journal.Identity `json:"identity"`
	Head     journal.Position `json:"head"`
	Epoch    uint64           `json:"epoch"` // number of Head's
	Machine  string           `json:"machine"`
	How      string           `json:"how"` // that it is off was seen
	Time     time.Time        `json:"time"`
}

// Words before a statement's token and before what is signed.
const (
	statementToken = "aioff1-"
	statementWord  = "afterimage machine off v1\n"
)

// maxStatement bounds what is read of a stranger's text.
const maxStatement = 16 << 10

// Signer is a site's key.
type Signer interface {
	Public() ed25519.PublicKey
	Sign(message []byte) []byte
}

type signedStanding struct {
	Body []byte `json:"body"`
	Key  []byte `json:"key"`
	Sig  []byte `json:"sig"`
}

// Sign makes a statement: one line, which can be carried on paper if it must.
func (s Standing) Sign(by Signer) (string, error) {
	body, err := json.Marshal(s)
	if err != nil {
		return "", err
	}
	b, err := json.Marshal(signedStanding{body, by.Public(), by.Sign(append([]byte(statementWord), body...))})
	if err != nil {
		return "", err
	}
	return statementToken + base64.RawURLEncoding.EncodeToString(b), nil
}

// Statement is a Standing that somebody presents, and what it must fit.
type Statement struct {
	Text     string
	Site     string            // whose it has to be
	Key      func([]byte) bool // whether a public key is that site's
	Identity journal.Identity  // of the group
	// Latest is the newest head that was heard of the site: one beyond the statement's
	// was written after it, so it does not hold any more.
	Latest journal.Position
	Epoch  uint64 // number of the newest epoch that the site is known to have begun
}

var _ Channel = Statement{}

// Name implements Channel.
func (s Statement) Name() string { return "statement of " + s.Site }

// Standing reads and judges the statement.
func (s Statement) Standing() (Standing, error) {
	var out Standing
	refuse := func(why string, a ...any) (Standing, error) {
		return out, fmt.Errorf("%w: %s", ErrStatement, fmt.Sprintf(why, a...))
	}
	text, ok := strings.CutPrefix(strings.TrimSpace(s.Text), statementToken)
	if !ok || len(text) > maxStatement {
		return refuse("it does not begin with %s, or is too long", statementToken)
	}
	b, err := base64.RawURLEncoding.DecodeString(text)
	var signed signedStanding
	if err == nil {
		err = json.Unmarshal(b, &signed)
	}
	if err != nil || len(signed.Key) != ed25519.PublicKeySize {
		return refuse("it was cut short or changed")
	}
	if !ed25519.Verify(signed.Key, append([]byte(statementWord), signed.Body...), signed.Sig) {
		return refuse("its signature is wrong")
	}
	if err := json.Unmarshal(signed.Body, &out); err != nil {
		return refuse("%v", err)
	}
	switch {
	case s.Key == nil || !s.Key(signed.Key):
		return refuse("another key than that of site %s signed it", s.Site)
	case out.Site != s.Site:
		return refuse("it is of site %q, not of %q", out.Site, s.Site)
	case out.Identity != s.Identity:
		return refuse("it is about another group: %s", out.Group)
	case out.Head.Seq == 0:
		return refuse("it names no head")
	case s.Epoch > out.Epoch:
		return refuse("%s wrote after it: it is of epoch %d, and epoch %d was begun there since", s.Site, out.Epoch, s.Epoch)
	case s.Latest.Epoch == out.Head.Epoch && s.Latest.Seq > out.Head.Seq:
		return refuse("%s wrote after it: its head was %v then and %v was heard", s.Site, out.Head, s.Latest)
	}
	return out, nil
}

// Read implements Channel: off, if it can be believed. Nobody is asked.
func (s Statement) Read(context.Context) (State, string, error) {
	x, err := s.Standing()
	if err != nil {
		return Unseen, "", err
	}
	return SeenOff, fmt.Sprintf("off since %s at epoch %d, #%d: %s", x.Time.Format(time.RFC3339), x.Epoch, x.Head.Seq, x.How), nil
}

package control

// HandoverRequest asks for a planned change of a group's primary: nothing is lost.
type HandoverRequest struct {
	Group string `json:"group"`
	// To is the site that takes over. Empty: the only peer; at a replica, this site.
	To string `json:"to,omitempty"`
	// Quiesce "app" freezes the guest's file systems first and marks the last point;
	// empty: the machine is off before, or shut down by whoever asks.
	Quiesce string `json:"quiesce,omitempty"`
	// Shutdown asks the guest of the machine that runs there to switch itself off first;
	// it may take ShutdownSeconds, 0: a default. Where the handover does not come about
	// the machine is started again. Without it a machine that runs is an objection.
	Shutdown        bool    `json:"shutdown,omitempty"`
	ShutdownSeconds float64 `json:"shutdown_seconds,omitempty"`
	// Patience is how long the peer may take to hold all; 0: a default.
	Patience  float64 `json:"patience_seconds,omitempty"`
	NoMachine bool    `json:"no_machine,omitempty"` // start no machine there
	// Expect is HandoverPlan.Digest of what was confirmed; empty: whatever it is now.
	Expect   string `json:"expect,omitempty"`
	Operator string `json:"operator,omitempty"`
}

// HandoverPlan is what a planned failover would do.
type HandoverPlan struct {
	Group   string   `json:"group"`
	From    string   `json:"from"` // site that is primary
	To      string   `json:"to"`
	Head    Point    `json:"head"`   // newest record now
	Behind  uint64   `json:"behind"` // records that the peer lacks now
	Pending int64    `json:"behind_bytes"`
	Loss    Loss     `json:"loss"` // none: that is what is waited for
	Steps   []string `json:"steps"`
	// Expected is as in Plan.
	Expected *float64 `json:"expected_seconds,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
	Refused  []string `json:"refused,omitempty"` // nothing overrides: it would not be planned
	Digest   string   `json:"digest"`
}

// HandedOver tells what a planned failover did.
type HandedOver struct {
	HandoverPlan
	// Last is the record at which both histories ended when the role changed, and
	// Chain the hash of both up to it: the proof that nothing was lost.
	Last  Point  `json:"last"`
	Chain string `json:"chain"`
	Epoch uint64 `json:"new_epoch"`
	// PauseSeconds is from the last write taken here to the first that is taken there.
	PauseSeconds float64            `json:"pause_seconds"`
	Times        map[string]float64 `json:"step_seconds"`
	Report       string             `json:"report,omitempty"`
}

// Verbs of a decision.
const (
	VerbCommit    = "commit"    // what was failed over stays
	VerbRollback  = "rollback"  // it does not: the old primary goes on
	VerbRejoin    = "rejoin"    // a replica begins again with what it has in common with a peer
	VerbReprotect = "reprotect" // peers that went another way follow this site
	VerbResolve   = "resolve"   // of two histories one is kept

	VerbStandDown = "stand-down" // this site gives the group up and signs that it did
)

// DecisionRequest asks what a decision means, or for it.
type DecisionRequest struct {
	Verb  string `json:"verb"`
	Group string `json:"group"`
	// Keep is the site whose history goes on, of a resolve. Peer is the one that a
	// reprotect is for; empty: all that do not follow.
	Keep     string `json:"keep,omitempty"`
	Peer     string `json:"peer,omitempty"`
	Expect   string `json:"expect,omitempty"`
	Operator string `json:"operator,omitempty"`
}

// Decision is what a decision means, and what it came to.
type Decision struct {
	Verb  string `json:"verb"`
	Group string `json:"group"`
	Role  string `json:"role"` // of this site; afterwards where it is done
	Epoch uint64 `json:"epoch"`
	// Fork is where the histories part, Loss what the one that is not kept holds
	// beyond it; it stays readable as Branch.
	Fork   *Point  `json:"fork,omitempty"`
	Loss   *Loss   `json:"loss,omitempty"`
	Branch *Branch `json:"branch,omitempty"`
	Sides  []Side  `json:"sides,omitempty"` // both histories, of a divergence
	// Aside is the name by which what a rejoin sets aside can be read.
	Aside    string   `json:"aside,omitempty"`
	Steps    []string `json:"steps"`
	Warnings []string `json:"warnings,omitempty"`
	Refused  []string `json:"refused,omitempty"`
	Digest   string   `json:"digest"`
	// Done says that it was carried out; Following are the peers that follow since,
	// Away those that will when they are back.
	Done      bool     `json:"done"`
	Report    string   `json:"report,omitempty"`
	Following []string `json:"following,omitempty"`
	Away      []string `json:"away,omitempty"`
	// Statement is what a site signed that stood down.
	Statement string `json:"statement,omitempty"`
}

// Side is one site's history of a group that has two.
type Side struct {
	Site    string   `json:"site"`
	Role    string   `json:"role"`
	Kept    bool     `json:"kept"`
	Head    string   `json:"head"`           // #EPOCH.SEQ
	Beyond  uint64   `json:"records_beyond"` // after the fork
	History []Branch `json:"history"`
}

package control

import "time"

// InviteRequest makes a token with which a peer pairs itself.
type InviteRequest struct {
	Peer       string   `json:"peer"`                // as the configuration names it
	Addresses  []string `json:"addresses,omitempty"` // host:port where this site can be called; none: it finds out
	ForSeconds float64  `json:"for_seconds"`
}

// Invited is a token: whoever has it becomes the peer, once. It is shown here alone.
type Invited struct {
	Peer      string    `json:"peer"`
	Token     string    `json:"token"`
	Addresses []string  `json:"addresses"`
	Expires   time.Time `json:"expires"`
}

// JoinRequest presents a token.
type JoinRequest struct {
	Token string `json:"token"`
}

// RemovePeerRequest has a peer's keys accepted no more.
type RemovePeerRequest struct {
	Peer string `json:"peer"`
}

// Joined is a peer's key.
type Joined struct {
	Peer    string `json:"peer"`
	Pin     string `json:"pin"`
	Address string `json:"address,omitempty"`
}

// RotateRequest changes this site's key. Now: whether or not all peers know the next one.
type RotateRequest struct {
	Now bool `json:"now,omitempty"`
}

// Rotation is how far a change of key has come; without Next none is under way.
type Rotation struct {
	Pin     string     `json:"pin"` // that is shown
	Next    string     `json:"next,omitempty"`
	Since   *time.Time `json:"since,omitempty"`
	Waiting []string   `json:"waiting"` // peers that have not pinned it yet
}

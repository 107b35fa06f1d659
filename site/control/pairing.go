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

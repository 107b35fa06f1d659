package control

import "time"

// LimitRequest changes what may be sent in a second to a peer or, where a group is
// named, of that group to all peers together.
type LimitRequest struct {
	Peer           string  `json:"peer,omitempty"`
	Group          string  `json:"group,omitempty"`
	BytesPerSecond int64   `json:"bytes_per_second"`      // 0: no limit
	ForSeconds     float64 `json:"for_seconds,omitempty"` // then the configuration rules again; 0: until it is changed
	Schedule       bool    `json:"schedule,omitempty"`    // the configuration rules again at once
}

// Limited is what may be sent in a second.
type Limited struct {
	Peer           string    `json:"peer,omitempty"`
	Group          string    `json:"group,omitempty"`
	BytesPerSecond int64     `json:"bytes_per_second"`   // 0: no limit
	Set            bool      `json:"set,omitempty"`      // by a person, not by the configuration
	Until          time.Time `json:"until,omitzero"`     // when something else may rule
	Schedule       string    `json:"schedule,omitempty"` // of the configuration
}

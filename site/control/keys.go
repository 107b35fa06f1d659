package control

// KeyRequest is about the tenant's keys that a group's history is sealed with.
type KeyRequest struct {
	Group  string `json:"group"`
	DryRun bool   `json:"dry_run,omitempty"` // say what would be done
}

// KeyState is how a group's history is sealed.
type KeyState struct {
	Group      string   `json:"group"`
	DryRun     bool     `json:"dry_run,omitempty"`
	Key        string   `json:"key,omitempty"` // that new data keys are wrapped with
	Keys       []string `json:"keys"`          // of the tenant, that wrap a data key of the history
	DataKeys   int      `json:"data_keys"`
	Rewrapped  int      `json:"rewrapped,omitempty"`  // by this call
	Unreadable int      `json:"unreadable,omitempty"` // data keys that no key here opens
	// Destroyed are the keys that a shredding destroyed; Remaining those that are left
	// to whoever keeps them, with their sources.
	Destroyed []string `json:"destroyed,omitempty"`
	Remaining []string `json:"remaining,omitempty"`
	// Points and Bytes are what cannot be read any more after a shredding.
	Seconds float64 `json:"seconds,omitempty"` // from the first point to the last
	Bytes   int64   `json:"bytes,omitempty"`
}

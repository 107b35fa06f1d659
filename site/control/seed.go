package control

import "time"

// SeedExport asks for a seed of a group: what a peer needs to begin with, in a file.
type SeedExport struct {
	Group     string `json:"group"`
	To        string `json:"to"` // absolute path, on the machine of the daemon
	Overwrite bool   `json:"overwrite,omitempty"`
}

// SeedImport asks a site to begin a group with a seed. The seed says which.
type SeedImport struct {
	From string `json:"from"` // absolute path, on the machine of the daemon
}

// Seed is one that was made or taken in.
type Seed struct {
	Group   string    `json:"group"`
	File    string    `json:"file"`
	Site    string    `json:"site"` // where it was made
	Made    time.Time `json:"made"`
	Bytes   int64     `json:"bytes"`
	Epoch   string    `json:"epoch"` // with Seq: the record that it leads to
	Seq     uint64    `json:"seq"`
	Time    time.Time `json:"time"` // of that record
	Seconds float64   `json:"seconds"`
}

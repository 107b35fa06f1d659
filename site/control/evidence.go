package control

import "time"

// Report is an entry of the site's ledger of evidence.
type Report struct {
	N        uint64             `json:"n"`
	Name     string             `json:"name"`
	Kind     string             `json:"kind"` // drill, failover
	Group    string             `json:"group"`
	Time     time.Time          `json:"time"`
	Held     bool               `json:"held"` // it did what it should
	RTO      float64            `json:"rto_seconds"`
	Steps    map[string]float64 `json:"step_seconds,omitempty"`
	Anchored bool               `json:"anchored"` // another site has vouched for it
}

// Token is a line that is carried from one site to another.
type Token struct {
	Token   string `json:"token"`
	Site    string `json:"site"`    // whose ledger it is of
	Entries uint64 `json:"entries"` // that the ledger has there
}

// ReportRequest names a report.
type ReportRequest struct {
	Name string `json:"name"`
}

// TokenRequest brings a token of another site.
type TokenRequest struct {
	Token string `json:"token"`
}

// ReportFile is one file that proves a report.
type ReportFile struct {
	Name string `json:"name"`
	File []byte `json:"file"`
}

// ReportVerdict is what such a file proves.
type ReportVerdict struct {
	Report   Report    `json:"report"`
	Site     string    `json:"site"`
	Pin      string    `json:"pin"`     // of the key that signed the ledger
	Entries  int       `json:"entries"` // of the ledger in the file
	By       string    `json:"anchored_by"`
	ByPin    string    `json:"anchored_by_pin"`
	Anchored time.Time `json:"anchored_at"`
	// What was compared with a pin that the caller gave. What was not proves nothing
	// about who wrote it: anybody can make a key.
	PinChecked   bool `json:"pin_checked"`
	ByPinChecked bool `json:"anchored_by_pin_checked"`
}

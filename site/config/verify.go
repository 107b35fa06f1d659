package config

import "time"

// Verify is when and how fast a group's journal is scrubbed by itself.
type Verify struct {
	Every Duration `yaml:"every,omitempty"`
	Rate  Bytes    `yaml:"rate,omitempty"` // bytes per second read by it
}

// Defaults of Verify.
const (
	DefaultVerifyEvery = Duration(30 * 24 * time.Hour)
	DefaultVerifyRate  = Bytes(32 << 20)
)

// Scrubs is the group's Verify with what it leaves out.
func (g Group) Scrubs() Verify {
	v := Verify{}
	if g.Verify != nil {
		v = *g.Verify
	}
	if v.Every == 0 {
		v.Every = DefaultVerifyEvery
	}
	if v.Rate == 0 {
		v.Rate = DefaultVerifyRate
	}
	return v
}

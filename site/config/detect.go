package config

import "fmt"

// Detect looks for writes that seem to encrypt a volume from within. It never blocks
// and never deletes: it warns, and pins the last point before.
type Detect struct {
	Mode  DetectMode `yaml:"mode,omitempty"`  // on (default) or off
	After Bytes      `yaml:"after,omitempty"` // of legible content that was turned to noise lately; default 8MiB
	Ratio Percent    `yaml:"ratio,omitempty"` // of what is written lately, at least; default 25%
}

// DetectMode is whether a group's writes are looked at.
type DetectMode string

// Modes of Detect.
const (
	DetectOn  DetectMode = "on"
	DetectOff DetectMode = "off"
)

// UnmarshalText accepts the values.
func (m *DetectMode) UnmarshalText(text []byte) error {
	switch v := DetectMode(text); v {
	case DetectOn, DetectOff:
		*m = v
		return nil
	}
	return fmt.Errorf("mode %q of detect is not understood: want %s or %s", text, DetectOn, DetectOff)
}

const (
	defaultDetectAfter = Bytes(8 << 20)
	defaultDetectRatio = Percent(25)
)

func (d *Detect) complete() {
	if d.Mode == "" {
		d.Mode = DetectOn
	}
	if d.After == 0 {
		d.After = defaultDetectAfter
	}
	if d.Ratio == 0 {
		d.Ratio = defaultDetectRatio
	}
}

func (s *shape) detect(path string, d *Detect) {
	if d.After < 0 {
		s.wrong(path+".after", "less than nothing cannot be turned", "a size such as 8MiB")
	}
	if d.Ratio < 1 || d.Ratio > 100 {
		s.wrong(path+".ratio", fmt.Sprintf("%d%% of what is written is not possible", int(d.Ratio)), "between 1% and 100%")
	}
}

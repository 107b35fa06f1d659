package recovery

import (
	"context"
	"errors"
	"os"
	"strings"
	"time"
)

// Console is what a machine showed when it was looked at last.
type Console struct {
	Picture []byte `json:"picture_png,omitempty"` // of its screen
	Text    string `json:"text,omitempty"`        // the end of its serial console
	Why     string `json:"why,omitempty"`         // there is no picture
}

// IsZero reports whether nothing was looked at.
func (c Console) IsZero() bool { return c.Picture == nil && c.Text == "" && c.Why == "" }

// lookLimit bounds a look, which a machine that hangs must not hold up.
const lookLimit = 30 * time.Second

// consoleBytes is how much of the serial console's end is kept.
const consoleBytes = 4 << 10

// Look takes a picture of the machine's screen and the end of what it said on its
// serial console. What cannot be had is said so: a report is written all the same.
func (m Machine) Look(ctx context.Context) Console {
	if len(m.Besides) > 0 {
		return m.lookAll(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	var c Console
	picture, err := m.Screenshot(ctx)
	switch {
	case err == nil:
		c.Picture = picture
	case errors.Is(err, ErrNoScreen):
		c.Why = "the machine has no screen, its console is the serial port"
	default:
		c.Why = "no picture could be taken: " + err.Error()
	}
	c.Text = endOf(m.serial())
	return c
}

// endOf is the end of a console's file, in characters that can be shown.
func endOf(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return "" // nothing was written
	}
	defer f.Close()
	var from int64
	if st, err := f.Stat(); err == nil {
		from = max(0, st.Size()-consoleBytes)
	}
	b := make([]byte, consoleBytes)
	n, _ := f.ReadAt(b, from) // as much as is there
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' {
			return -1
		}
		return r
	}, strings.ToValidUTF8(string(b[:n]), "\uFFFD"))
}

package config

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// UnmarshalText accepts "1073741824", "1GiB", "1.5 GiB". Decimal units (GB) are
// refused, since half of their readers mean the others.
func (b *Bytes) UnmarshalText(text []byte) error {
	v, err := ParseBytes(string(text))
	if err == nil {
		*b = v
	}
	return err
}

// ParseBytes reads a size.
func ParseBytes(s string) (Bytes, error) {
	number, unit := strings.TrimSpace(s), Bytes(1)
	for _, u := range units {
		if rest, ok := strings.CutSuffix(number, u.suffix); ok {
			number, unit = strings.TrimSpace(rest), u.bytes
			break
		}
	}
	if n, err := strconv.ParseInt(number, 10, 64); err == nil {
		if n < 0 {
			return 0, fmt.Errorf("size %q is negative", s)
		}
		if n > math.MaxInt64/int64(unit) {
			return 0, fmt.Errorf("size %q is too large", s)
		}
		return Bytes(n) * unit, nil
	}
	if unit > 1 && strings.Count(number, ".") == 1 {
		f, err := strconv.ParseFloat(number, 64)
		v := f * float64(unit)
		if err == nil && v >= 0 && v < math.MaxInt64 && v == math.Trunc(v) {
			return Bytes(v), nil
		}
	}
	return 0, fmt.Errorf("size %q is not understood: want a number with KiB, MiB, GiB or TiB, such as 10GiB", s)
}

// UnmarshalText accepts Go's notation with days, weeks and years. A number without
// a unit is refused.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := parseSpan(string(text))
	switch {
	case strings.HasPrefix(string(text), "-"):
		return fmt.Errorf("duration %q is negative", text)
	case err != nil:
		return fmt.Errorf("duration %q is not understood: want a number with ms, s, m, h, d, w or y, such as 500ms or 7d", text)
	}
	*d = Duration(v)
	return nil
}

// UnmarshalText accepts primary and replica.
func (r *Role) UnmarshalText(text []byte) error {
	switch v := Role(text); v {
	case Primary, Replica:
		*r = v
		return nil
	}
	return fmt.Errorf("role %q is neither primary nor replica", text)
}

// UnmarshalText accepts process and power.
func (y *Sync) UnmarshalText(text []byte) error {
	switch v := Sync(text); v {
	case SyncProcess, SyncPower:
		*y = v
		return nil
	}
	return fmt.Errorf("sync %q is neither process nor power", text)
}

var errName = errors.New("a name is 1 to 64 letters, digits, dots, dashes and underscores, and begins with a letter or digit")

// checkName judges names of sites, peers, tenants, groups and volumes: they
// become parts of paths, export names and metric labels.
func checkName(s string) error {
	if s == "" || len(s) > 64 {
		return errName
	}
	for i, r := range s {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !letter && (i == 0 || !strings.ContainsRune("._-", r)) {
			return errName
		}
	}
	return nil
}

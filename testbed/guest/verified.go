package guest

import (
	"context"
	"fmt"
	"strings"
)

// Verified is the guest's answer to "verify": sums over its volumes.
type Verified struct {
	Max     uint64 // highest stamp that every volume has reached
	Count   uint64 // whole stamps
	Torn    uint64 // blocks that are no stamp and not zeros
	Foreign uint64 // stamps where they do not belong
	Missing uint64 // stamps that must be there and are not
}

// Whole reports whether everything up to upto is there and nothing is damaged.
func (v Verified) Whole(upto uint64) bool {
	return v.Max >= upto && v.Torn == 0 && v.Foreign == 0 && v.Missing == 0
}

// Verify asks the guest what is on its disks. Every stamp up to upto must be there;
// slots 0 leaves the number of slots to the guest.
func (c *Console) Verify(ctx context.Context, upto, slots uint64) (Verified, error) {
	order := fmt.Sprintf("verify upto=%d", upto)
	if slots > 0 {
		order += fmt.Sprintf(" slots=%d", slots)
	}
	line, err := c.Ask(ctx, order, "verified ")
	if err != nil {
		return Verified{}, err
	}
	return ParseVerified(line)
}

// ParseVerified reads the line "verified max=… count=… torn=… foreign=… missing=…".
func ParseVerified(line string) (Verified, error) {
	var v Verified
	_, err := fmt.Sscanf(strings.TrimSpace(line), "verified max=%d count=%d torn=%d foreign=%d missing=%d",
		&v.Max, &v.Count, &v.Torn, &v.Foreign, &v.Missing)
	if err != nil {
		return v, fmt.Errorf("parse %q: %w", line, err)
	}
	return v, nil
}

package site

import (
	"errors"
	"testing"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/recovery/witness"
)

// A primary takes the right again only where it is sure that nobody had it in the time of
// its reign; it is told apart from not knowing.
func TestLastHolderRefusesTheOldPrimary(t *testing.T) {
	first, second := cbt.ID{}, cbt.NewID()
	held := guardKept{Lease: witness.Saved{ID: 1, Revision: 7}, known: true}
	gave, giving, replica := held, held, guardKept{known: true}
	gave.Gave, giving.Gave = 9, givingBack
	taking := replica
	taking.Taking = "b"
	for name, c := range map[string]struct {
		k         guardKept
		promotion cbt.ID
		last      string
		at        int64
		ok, taken bool
	}{
		"nobody ever":                        {guardKept{}, first, "", 0, true, false},
		"own":                                {held, first, "a", 7, true, false},
		"own, and what was kept is lost":     {guardKept{}, first, "a", 7, true, false},
		"a peer":                             {held, first, "b", 8, false, true},
		"a peer, given back":                 {held, first, "", 9, false, true},
		"a peer, in an earlier reign":        {held, second, "b", 8, true, false},
		"another site that is no peer":       {held, second, "z", 8, false, true},
		"given back here":                    {gave, first, "", 9, true, false},
		"given back here, and by a peer":     {gave, first, "", 11, false, true},
		"perhaps given back here":            {giving, first, "", 9, false, false},
		"given back, and nothing is kept":    {guardKept{}, second, "", 9, false, false},
		"a peer, and nothing is kept":        {guardKept{}, second, "b", 9, false, true},
		"a replica that was promoted":        {replica, second, "", 9, true, false},
		"a takeover that was never finished": {taking, second, "b", 9, false, true},
		"the witness has forgotten":          {held, first, "", 0, false, false},
	} {
		err := c.k.refuses("a", []string{"b"}, c.promotion, c.last, c.at)
		if (err == nil) != c.ok || errors.Is(err, errTakenSince) != c.taken {
			t.Errorf("%s: %v", name, err)
		}
	}
}

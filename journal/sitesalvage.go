package journal

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
)

// siteScan is what verifies of a damaged site log:
//
//	| entry 1 | entry 2 | ######### | entry 5 | entry 6 |
//	                      a hole: entries 3 and 4 are lost
//
// Behind a hole an entry counts by its own checksum and by its number, which never
// falls; those that follow on it by the chain again.
type siteScan struct {
	entries []siteEntry
	holes   []siteHole
	last    Chain
	end     int64 // behind the last entry
	size    int64
}

// siteHole is bytes that are no entry.
type siteHole struct {
	Offset, Bytes int64
	upTo          uint64 // the newest entry that may have stood there; atEnd: not known
}

const siteHoleAtEnd = ^uint64(0)

// scanSite reads every entry of a log that verifies, and where there is none.
func scanSite(b []byte) siteScan {
	s := siteScan{size: int64(len(b))}
	var number uint64
	for s.end < s.size {
		e, n, chain := decodeSiteEntry(b[s.end:], s.last)
		at := s.end
		if n == 0 {
			if e, at, n, chain = nextSiteEntry(b, s.end+1, number); n == 0 {
				break
			}
			upTo := number // of a log that was rewritten all have the newest's
			if e.N > number+1 {
				upTo = e.N - 1
			}
			s.holes = append(s.holes, siteHole{s.end, at - s.end, upTo})
		}
		s.entries = append(s.entries, e)
		number = max(number, e.N)
		s.last, s.end = chain, at+int64(n)
	}
	if s.end < s.size && !tornEntry(b[s.end:], s.end) {
		s.holes = append(s.holes, siteHole{s.end, s.size - s.end, siteHoleAtEnd})
	}
	return s
}

// nextSiteEntry is the first entry at or behind a place that verifies by itself and
// is not older than number.
func nextSiteEntry(b []byte, from int64, number uint64) (e siteEntry, at int64, n int, chain Chain) {
	for at = from; at+siteEntryHead < int64(len(b)); at++ {
		size := int64(binary.LittleEndian.Uint32(b[at:]))
		if size == 0 || size > maxSiteEntry || at+siteEntryHead+size > int64(len(b)) {
			continue
		}
		whole := b[at : at+siteEntryHead+size]
		if crc32.Checksum(whole[8:], castagnoli) != binary.LittleEndian.Uint32(whole[4:]) {
			continue
		}
		if e = (siteEntry{}); json.Unmarshal(whole[siteEntryHead:], &e) == nil && e.N >= number {
			return e, at, len(whole), Chain(whole[8:siteEntryHead])
		}
	}
	return siteEntry{}, 0, 0, Chain{}
}

// siteCopy is the live values of a site log as they were after entry N.
type siteCopy struct {
	N      uint64                     `json:"n"`
	Values map[string]json.RawMessage `json:"values"`
}

// siteMerged is what is known of a site log from what verifies of it and a copy.
type siteMerged struct {
	live map[string]json.RawMessage
	n    uint64
	lost bool     // entries are, that the copy does not cover
	may  []string // keys whose values may be of an earlier time, sorted
}

// merge takes the newest of each value. Entries that the copy is not older than are not
// lost with the log.
func (s *siteScan) merge(c siteCopy) siteMerged {
	m := siteMerged{live: make(map[string]json.RawMessage), n: c.N}
	maps.Copy(m.live, c.Values)
	newest := make(map[string]uint64)
	for k := range c.Values {
		newest[k] = c.N
	}
	for _, e := range s.entries {
		m.n = max(m.n, e.N)
		if e.N > c.N || c.N == 0 {
			m.live[e.Key], newest[e.Key] = e.Value, e.N
		}
	}
	var upTo uint64
	for _, h := range s.holes {
		if h.upTo > c.N || c.N == 0 {
			m.lost, upTo = true, max(upTo, h.upTo)
		}
	}
	for k, n := range newest {
		if m.lost && n < upTo {
			m.may = append(m.may, k)
		}
	}
	slices.Sort(m.may)
	return m
}

// newest is the number of the newest entry.
func (s *siteScan) newest() uint64 {
	var n uint64
	for _, e := range s.entries {
		n = max(n, e.N)
	}
	return n
}

func sortedKeys(m map[string]json.RawMessage) []string { return slices.Sorted(maps.Keys(m)) }

// String says where the log is damaged.
func (s *siteScan) String() string {
	if len(s.holes) == 0 {
		return fmt.Sprintf("%d bytes verify", s.end)
	}
	h := s.holes[0]
	at := fmt.Sprintf("%d bytes at offset %d of %s do not verify", h.Bytes, h.Offset, siteLogName)
	if n := len(s.holes); n > 1 {
		at += fmt.Sprintf(", nor do %d other places", n-1)
	}
	return at
}

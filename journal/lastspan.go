package journal

import (
	"cmp"
	"encoding/binary"
	"errors"
	"slices"

	"github.com/novacron/afterimage/cbt"
)

// lastSpan is the newest span of l, as the last of spans(l) is, without reading the
// turns of all epochs: an epoch's first record closes every interval, so of what was
// before it only matters which volumes had become members. That costs a look-up per
// volume, and the turns of the epochs from the newest back to one with a span.
func (j *Journal) lastSpan(l Lineage) (Span, bool, error) {
	for k := len(l) - 1; k >= 0 && !j.o.faults.carrySynced; k-- {
		members, certain, err := j.membersBefore(l, k)
		if err != nil {
			return Span{}, false, err
		}
		if !certain {
			break
		}
		turns, err := j.turns(l[k:min(k+2, len(l))], members)
		if err != nil {
			return Span{}, false, err
		}
		if k+1 < len(l) { // of the epoch after k only that it began
			turns = slices.DeleteFunc(turns, func(t turn) bool { return t.seq > l[k+1].First })
		}
		if spans := j.leftOf(spansOf(l[:min(k+2, len(l))], turns, idsOf(members), false), l); len(spans) > 0 {
			return spans[len(spans)-1], true, nil
		}
	}
	spans, err := j.spans(l)
	if err != nil || len(spans) == 0 {
		return Span{}, false, err
	}
	return spans[len(spans)-1], true, nil
}

// membersBefore is the volumes of l, by ordinal, that are members of the group
// when interval k begins. It is certain only where each of them was synced once.
func (j *Journal) membersBefore(l Lineage, k int) (_ map[uint32]cbt.VolumeID, certain bool, err error) {
	out := make(map[uint32]cbt.VolumeID)
	vs, err := j.volumesIn(l[:k])
	if err != nil {
		return nil, false, err
	}
	it, err := j.iterate([]byte{prefixState}, []byte{prefixState + 1})
	if err != nil {
		return nil, false, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	ordinals := j.ordinalsOf(l[:k])
	for id, v := range vs {
		if ok, err := everSynced(it, v.Ordinal, l[:k], ordinals); err != nil || !ok {
			return nil, false, err
		}
		out[v.Ordinal] = id
	}
	return out, true, it.Error()
}

// everSynced looks for a synced record of a volume in l, newest first.
func everSynced(it iterator, volume uint32, l Lineage, ordinals []uint32) (bool, error) {
	for i := len(l) - 1; i >= 0; i-- {
		for ok := it.SeekGE(stateKey(volume, ordinals[i], l[i].Last)); ; ok = it.Next() {
			if !ok || binary.BigEndian.Uint32(it.Key()[1:]) != volume {
				return false, it.Error() // nothing older
			}
			if at := ^binary.BigEndian.Uint32(it.Key()[5:]); at != ordinals[i] {
				for i > 0 && ordinals[i-1] > at { // epochs without a turn of it
					i--
				}
				break
			}
			if len(it.Value()) == 1 && Kind(it.Value()[0]) == KindSynced {
				return true, nil
			}
		}
	}
	return false, it.Error()
}

func idsOf(m map[uint32]cbt.VolumeID) []cbt.VolumeID {
	var out []cbt.VolumeID
	for _, id := range m {
		out = append(out, id)
	}
	slices.SortFunc(out, func(a, b cbt.VolumeID) int { return cmp.Compare(a.String(), b.String()) })
	return out
}

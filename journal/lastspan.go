package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/novacron/afterimage/cbt"
)

// lastSpan is the newest span of l, as the last of spans(l) is, without reading the
// turns of all epochs: an epoch's first record closes every interval, so of what was
// before it only matters which volumes had become members. That costs a look-up per
// volume, and the turns of the epochs from the newest back to one with a span.
func (j *Journal) lastSpan(l Lineage) (Span, bool, error) {
	for k := len(l) - 1; k >= 0 && !j.o.faults.carrySynced; k-- {
		known, members, certain, err := j.membersBefore(l, k)
		if err != nil {
			return Span{}, false, err
		}
		if !certain {
			break
		}
		turns, err := j.turns(l[k:min(k+2, len(l))], known)
		if err != nil {
			return Span{}, false, err
		}
		if k+1 < len(l) { // of the epoch after k only that it began
			turns = slices.DeleteFunc(turns, func(t turn) bool { return t.seq > l[k+1].First })
		}
		if spans := j.leftOf(spansOf(l[:min(k+2, len(l))], turns, members, false), l); len(spans) > 0 {
			return spans[len(spans)-1], true, nil
		}
	}
	spans, err := j.spans(l)
	if err != nil || len(spans) == 0 {
		return Span{}, false, err
	}
	return spans[len(spans)-1], true, nil
}

// membersBefore is the volumes of l that are known when interval k begins, by ordinal,
// and which of them are members of the group then. It is certain only where each of
// those was synced once.
func (j *Journal) membersBefore(l Lineage, k int) (known map[uint32]cbt.VolumeID, members []cbt.VolumeID, certain bool, err error) {
	parts, err := j.partsIn(l[:k])
	if err != nil {
		return nil, nil, false, err
	}
	known = make(map[uint32]cbt.VolumeID)
	for id, v := range parts {
		known[v.Ordinal] = id
		switch {
		case v.Left || v.Joins && v.synced == 0:
		case v.synced == 0:
			return nil, nil, false, nil
		default:
			members = append(members, id)
		}
	}
	return known, members, true, nil
}

// pictured is the volumes that the picture at p, the end of l, consists of: of a point
// those that it covers. What joins and was never synced is known in parts only.
func (j *Journal) pictured(l Lineage, p Point) (map[cbt.VolumeID]volumeBody, error) {
	parts, err := j.partsIn(l)
	out := make(map[cbt.VolumeID]volumeBody)
	for id, v := range parts {
		covered := len(p.Volumes) == 0 || slices.Contains(p.Volumes, id)
		if covered && !v.Left && (!v.Joins || v.synced > 0) {
			out[id] = v.volumeBody
		}
	}
	return out, err
}

// partake is a volume's part in a group: as it is, and where it was synced last since it
// came or came back; 0: never.
type partake struct {
	volumeBody
	synced Seq
}

func (j *Journal) partsIn(l Lineage) (_ map[cbt.VolumeID]partake, err error) {
	came := make(map[cbt.VolumeID]Seq)
	out := make(map[cbt.VolumeID]partake)
	err = j.eachHappening(KindVolume, l, func(_ Interval, s Seq, h happening) error {
		var v volumeBody
		if err := decodeBody(h.Body, &v); err != nil {
			return fmt.Errorf("read catalogue: volume record %d: %w", s, err)
		}
		if was, ok := out[v.ID]; !ok || was.Left {
			came[v.ID] = s
		}
		out[v.ID] = partake{volumeBody: v}
		return nil
	})
	if err != nil {
		return nil, err
	}
	it, err := j.iterate([]byte{prefixState}, []byte{prefixState + 1})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	ordinals := j.ordinalsOf(l)
	for id, v := range out {
		if v.Left {
			continue
		}
		at, err := lastSynced(it, v.Ordinal, l, ordinals)
		if err != nil {
			return nil, err
		}
		if at > came[id] {
			v.synced = at
			out[id] = v
		}
	}
	return out, it.Error()
}

// lastSynced is the newest synced record of a volume in l; 0: there is none.
func lastSynced(it iterator, volume uint32, l Lineage, ordinals []uint32) (Seq, error) {
	for i := len(l) - 1; i >= 0; i-- {
		for ok := it.SeekGE(stateKey(volume, ordinals[i], l[i].Last)); ; ok = it.Next() {
			if !ok || binary.BigEndian.Uint32(it.Key()[1:]) != volume {
				return 0, it.Error() // nothing older
			}
			if at := ^binary.BigEndian.Uint32(it.Key()[5:]); at != ordinals[i] {
				for i > 0 && ordinals[i-1] > at { // epochs without a turn of it
					i--
				}
				break
			}
			if len(it.Value()) == 1 && Kind(it.Value()[0]) == KindSynced {
				return Seq(^binary.BigEndian.Uint64(it.Key()[9:])), nil
			}
		}
	}
	return 0, it.Error()
}

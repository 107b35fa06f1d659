package stamp

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
	"time"
)

func TestEveryByteOfAStampIsGuarded(t *testing.T) {
	s := Stamp{Number: 7, Volume: 1, Writer: 99, Time: time.Unix(5, 6)}
	block := s.Block()
	if got, err := Decode(block); err != nil || got.Number != 7 || got.Volume != 1 || got.Writer != 99 || !got.Time.Equal(s.Time) {
		t.Fatalf("decode = %+v, %v", got, err)
	}
	for i := range block {
		block[i] ^= 1
		if _, err := Decode(block); !errors.Is(err, ErrTorn) {
			t.Fatalf("byte %d flipped: %v", i, err)
		}
		block[i] ^= 1
	}
	if _, err := Decode(make([]byte, Size)); !errors.Is(err, ErrEmpty) {
		t.Errorf("zeros: %v", err)
	}
}

// disk is an image of slots slots on which a load wrote stamps 1 to last.
func disk(volume uint32, slots, last uint64) []byte {
	image := make([]byte, slots*Size)
	for k := uint64(1); k <= last; k++ {
		Stamp{Number: k, Volume: volume}.Encode(image[Offset(k, slots):])
	}
	return image
}

func scan(t *testing.T, image []byte, volume uint32) Report {
	t.Helper()
	r, err := Scan(bytes.NewReader(image), volume, uint64(len(image)/Size))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestScanSeesWhatHappenedToADisk(t *testing.T) {
	const slots = 100
	for _, c := range []struct {
		name   string
		last   uint64
		upto   uint64
		harm   func(image []byte)
		whole  bool
		report string
	}{
		{"fresh", 0, 0, nil, true, "volume=3 max=0 count=0 torn=0 foreign=0 holes=0"},
		{"first round", 42, 42, nil, true, "volume=3 max=42 count=42 torn=0 foreign=0 holes=0"},
		{"many rounds", 1042, 1042, nil, true, "volume=3 max=1042 count=100 torn=0 foreign=0 holes=0"},
		{"ahead of the report", 1042, 1000, nil, true, "volume=3 max=1042 count=100 torn=0 foreign=0 holes=0"},
		{"lost its end", 41, 42, nil, false, "volume=3 max=41 count=41 torn=0 foreign=0 holes=0"},
		{"a hole", 42, 42, func(p []byte) { clear(p[Offset(17, slots):][:Size]) }, false, "volume=3 max=42 count=41 torn=0 foreign=0 holes=1"},
		{"an old stamp left", 142, 142, func(p []byte) { Stamp{Number: 17, Volume: 3}.Encode(p[Offset(117, slots):]) }, false, "volume=3 max=142 count=100 torn=0 foreign=0 holes=1"},
		{"torn in the middle", 142, 142, func(p []byte) { clear(p[Offset(117, slots)+512:][:512]) }, false, "volume=3 max=142 count=99 torn=1 foreign=0 holes=1"},
		{"another volume's", 42, 42, func(p []byte) { Stamp{Number: 17, Volume: 4}.Encode(p[Offset(17, slots):]) }, false, "volume=3 max=42 count=41 torn=0 foreign=1 holes=1"},
		{"in another slot", 42, 42, func(p []byte) { Stamp{Number: 17, Volume: 3}.Encode(p[Offset(60, slots):]) }, false, "volume=3 max=42 count=42 torn=0 foreign=1 holes=0"},
	} {
		image := disk(3, slots, c.last)
		if c.harm != nil {
			c.harm(image)
		}
		r := scan(t, image, 3)
		if r.String() != c.report || r.Whole(c.upto) != c.whole {
			t.Errorf("%s: %v, whole %v; want %s, %v", c.name, r, r.Whole(c.upto), c.report, c.whole)
		}
	}
}

func TestMissingCountsExactlyWhatWasLost(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 50 {
		slots, last := 1+rng.Uint64N(150), rng.Uint64N(400)
		image := disk(0, slots, last)
		var lost uint64
		for slot := range slots {
			if rng.IntN(4) > 0 {
				continue
			}
			block := image[slot*Size:][:Size]
			if _, err := Decode(block); err == nil {
				clear(block)
				lost++
			}
		}
		if got := scan(t, image, 0).Missing(last); got != lost {
			t.Fatalf("slots %d, last %d: missing %d, want %d", slots, last, got, lost)
		}
	}
}

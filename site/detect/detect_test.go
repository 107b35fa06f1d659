package detect

import (
	"bytes"
	"compress/flate"
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/testbed/scale"
)

// disk is a volume of blocks, watched as a site watches one.
type disk struct {
	rng        *rand.Rand
	blocks     map[int64][]byte
	meter      Meter
	d          *Detector
	now        time.Time
	batch      []Sample
	rate       int64 // bytes a second
	size       int64 // blocks of the files that are attacked
	n          int64 // bytes since the last stretch
	wrote      int64
	attack     int64 // what was written before it
	attackTime time.Time
	ends       []int64 // of the records, by seq: what was written with them
	report     Report
	alarms     int
}

func newDisk(seed uint64) *disk {
	now := time.Unix(1e9, 0)
	k := &disk{rng: rand.New(rand.NewPCG(seed, 7)), blocks: map[int64][]byte{}, d: New(Options{}, now, journal.Position{}), now: now, rate: 4 << 20, size: 16 << 10, ends: []int64{0}}
	k.meter.dice = seed | 1
	return k
}

// write is one request of whole blocks, and one record. A stretch is a second.
func (k *disk) write(block int64, p []byte) {
	if stands, ok := k.meter.Pick(int64(len(p))); ok {
		at := int64(0)
		if n := int64(len(p)) / SampleBytes; n > 1 {
			at = k.rng.Int64N(n)
		}
		k.batch = append(k.batch, Sample{Was: Classify(k.blocks[block+at]), Is: Classify(p[at*SampleBytes:]), StandsFor: stands,
			At: k.time(), Before: journal.Position{Seq: journal.Seq(len(k.ends) - 1)}, Extent: cbt.Extent{Offset: block * SampleBytes, Length: int64(len(p))}})
	}
	for i := int64(0); i*SampleBytes < int64(len(p)); i++ {
		k.blocks[block+i] = p[i*SampleBytes : (i+1)*SampleBytes]
	}
	k.wrote += int64(len(p))
	k.ends = append(k.ends, k.wrote)
	if k.n += int64(len(p)); k.n >= k.rate {
		was := k.report.Suspect
		k.report = k.d.Stretch(k.batch)
		if k.report.Suspect && !was {
			k.alarms++
		}
		k.batch, k.n, k.now = nil, 0, k.now.Add(time.Second)
		k.meter.Refill()
	}
}

func (k *disk) time() time.Time {
	return k.now.Add(time.Duration(float64(k.n) / float64(k.rate) * float64(time.Second)))
}

// Pools of what disks hold; a disk takes pieces of them.
var legiblePool, noisePool, compressedPool = pools()

func pools() (legible, noise, compressed []byte) {
	const size = 1 << 20
	rng := rand.New(rand.NewPCG(1, 2))
	for len(legible) < size {
		legible = fmt.Appendf(legible, "%08d|customer %d|%x|order of the day\x00\x00\x00\x00", rng.IntN(1e8), rng.IntN(5000), rng.Uint32())
	}
	noise = make([]byte, size)
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, flate.BestSpeed)
	for err == nil && b.Len() < size {
		_, err = w.Write(legible[rng.IntN(size/2):])
	}
	if err != nil {
		panic(err)
	}
	return legible, noise, b.Bytes()
}

// legible is a block like text or a database's page.
func (k *disk) legible(n int) []byte { return k.piece(legiblePool, n) }

func (k *disk) noise(n int) []byte { return k.piece(noisePool, n) }

// compressed is a piece of a compressed stream.
func (k *disk) compressed(n int) []byte { return k.piece(compressedPool, n) }

func (k *disk) piece(pool []byte, n int) []byte {
	at := k.rng.IntN(len(pool) - n)
	return pool[at : at+n : at+n]
}

// database writes pages over pages: most in place, some new.
func (k *disk) database(bytes int64) {
	for n := int64(0); n < bytes; n += 8192 {
		k.write(k.rng.Int64N(8000)*2, k.legible(8192))
	}
}

// files are legible ones, one after the other.
func (k *disk) files(from, blocks int64) {
	for b := from; b < from+blocks; b += 16 {
		k.write(b, k.legible(16*SampleBytes))
	}
}

// encrypt goes over files, as ransomware does: read, encrypt, write back.
func (k *disk) encrypt(from, blocks int64, done func() bool) {
	block, err := aes.NewCipher(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		panic(err)
	}
	c := cipher.NewCTR(block, make([]byte, 16))
	for b := from; b < from+blocks && !done(); b += 16 {
		p := make([]byte, 16*SampleBytes)
		for i := range int64(16) {
			copy(p[i*SampleBytes:], k.blocks[b+i])
		}
		c.XORKeyStream(p, p)
		k.write(b, p)
	}
}

// An encryption is found within 24 MiB of it, over a disk that nobody has seen before
// and over one with a database that goes on beside it; and it is known when it began.
func TestEncryptionIsFound(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	n := scale.Scale(20)
	for i := range n {
		for _, beside := range []bool{false, true} {
			k := newDisk(seed + uint64(i))
			k.files(1<<20, k.size) // 64 MiB
			if beside {
				k.database(64 << 20)
			}
			shares := 1
			if beside {
				shares = 2
			}
			if took := k.attacked(t, shares); took > 24<<20 {
				t.Fatalf("beside a database %v: after %d KiB of encryption %+v", beside, took>>10, k.report)
			}
			k.wantClean(t)
		}
	}
	scale.Counted(t, "detect-encryptions", 2*n, 40)
}

// attacked encrypts files at block 1<<20 until there is an alarm, one of so many bytes
// that are written, and is what was encrypted by then.
func (k *disk) attacked(t *testing.T, shares int) (took int64) {
	t.Helper()
	if k.report.Suspect {
		t.Fatalf("an alarm before anything happened: %+v", k.report)
	}
	k.attack, k.attackTime = k.wrote, k.time()
	k.encrypt(1<<20, k.size, func() bool {
		if shares > 1 && k.wrote > k.attack {
			k.database(int64(shares-1) * 64 << 10)
		}
		return k.report.Suspect
	})
	if !k.report.Suspect {
		t.Fatalf("one byte of %d was encrypted, at %d KiB/s, and there is no alarm: %+v", shares, k.rate>>10, k.report)
	}
	return (k.wrote - k.attack) / int64(shares)
}

// wantClean wants a clean position before the first byte of the attack, and no more given
// up than the margin: 128 samples, which are 192 KiB apart at most, or three seconds of
// writes where those are more; or a minute, or 16 samples, where those are less.
func (k *disk) wantClean(t *testing.T) {
	t.Helper()
	r := k.report
	clean := k.ends[r.Clean.Seq]
	if clean > k.attack {
		t.Fatalf("at %d KiB/s %d KiB are encrypted in what is called clean: %+v", k.rate>>10, (clean-k.attack)>>10, r)
	}
	most := max(marginMost*defaultEvery*3/2, 3*k.rate)
	if k.rate < 256<<10 {
		most = max(k.rate*int64(marginTime/time.Second), marginLeast*defaultEvery*3/2) + 2*defaultEvery
	}
	if k.attack-clean > most {
		t.Fatalf("at %d KiB/s %d KiB before the attack are given up, %d at most: %+v", k.rate>>10, (k.attack-clean)>>10, most>>10, r)
	}
	if r.Since.Before(k.attackTime) || len(r.Extents) == 0 {
		t.Fatalf("the attack began at %v: %+v", k.attackTime, r)
	}
	for _, e := range r.Extents {
		if e.Offset < 1<<20*SampleBytes || e.End() > (1<<20+k.size)*SampleBytes {
			t.Fatalf("extent %+v was not encrypted", e)
		}
	}
}

// Whatever its rate, not one encrypted block is in what is called clean, and what is
// given up is bounded; alone, beside a load of the same size, and as a fifth of all that
// is written to a disk with a database that is known.
func TestCleanIsClean(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	n := 0
	for _, c := range []struct {
		shares    int
		to, known int64
	}{{1, 64 << 20, 16 << 20}, {2, 64 << 20, 16 << 20}, {5, 16 << 20, 320 << 20}} {
		for rate := int64(128 << 10); rate <= c.to; rate *= 2 {
			for i := range scale.Scale(20) {
				k := newDisk(seed + uint64(i))
				k.rate = rate * int64(c.shares)
				k.size = max(16<<10, 4*rate/SampleBytes)
				k.files(1<<20, k.size)
				k.database(c.known + k.rng.Int64N(1<<20))
				k.attacked(t, c.shares)
				k.wantClean(t)
				n++
			}
		}
	}
	scale.Counted(t, "detect-clean-points", n, 560)
}

// None of what a machine does all day is taken for one.
func TestNormalLoadsAreNoAlarm(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	loads := map[string]func(k *disk){
		"database": func(k *disk) { k.database(256 << 20) },
		"mkfs over files": func(k *disk) {
			k.files(0, 16<<10)
			for b := int64(0); b < 16<<10; b += 2048 {
				k.write(b, make([]byte, 64*SampleBytes))
				k.write(b+64, k.legible(8*SampleBytes))
			}
		},
		"copy of archives to free space": func(k *disk) {
			k.files(0, 8<<10)
			for b := int64(1 << 20); b < 1<<20+16<<10; b += 64 {
				k.write(b, k.compressed(64*SampleBytes))
			}
		},
		"archives over archives": func(k *disk) {
			for range 2 {
				for b := int64(0); b < 8<<10; b += 64 {
					k.write(b, k.compressed(64*SampleBytes))
				}
			}
		},
		"vacuum": func(k *disk) {
			k.files(0, 16<<10)
			for b := int64(0); b < 16<<10; b += 16 { // tables written anew over freed ones
				k.write((b*7)%(16<<10), k.legible(16*SampleBytes))
			}
		},
		"database with a few compressed pages": func(k *disk) {
			k.database(64 << 20)
			for range 2000 {
				k.database(128 << 10)
				k.write(k.rng.Int64N(8000)*2, k.noise(8192)) // a blob over a page: 6 % of the writes
			}
		},
		"database with many compressed pages": func(k *disk) {
			k.database(320 << 20)
			for range 2000 {
				k.database(64 << 10)
				k.write(k.rng.Int64N(8000)*2, k.noise(8192)) // one in nine
			}
		},
		"a guest's own encryption": func(k *disk) {
			for range 3 {
				for b := int64(0); b < 8<<10; b += 16 {
					k.write(b, k.noise(16*SampleBytes))
				}
			}
		},
	}
	n := scale.Scale(10)
	for name, load := range loads {
		for i := range n {
			k := newDisk(seed + uint64(i))
			load(k)
			if k.alarms > 0 {
				t.Errorf("%s: %d alarms, %+v", name, k.alarms, k.report)
			}
			if name == "a guest's own encryption" != k.report.Blind {
				t.Errorf("%s: blind %v", name, k.report.Blind)
			}
		}
	}
	scale.Counted(t, "detect-loads", n*len(loads), 70)
}

func TestClasses(t *testing.T) {
	k := newDisk(1)
	for name, c := range map[string]struct {
		p    []byte
		want Class
	}{
		"nothing": {nil, Unknown}, "zeros": {make([]byte, 4096), Zeros}, "ones": {bytes.Repeat([]byte{255}, 4096), Zeros}, "a sector of noise": {k.noise(512), Noise},
		"noise": {k.noise(4096), Noise}, "pages": {k.legible(8192), Legible}, "a sector of pages": {k.legible(512), Legible}, "compressed": {k.compressed(4096), Noise},
	} {
		if got := Classify(c.p); got != c.want {
			t.Errorf("%s is %d, want %d", name, got, c.want)
		}
	}
}

// The samples of a second stand for what is written in it, at any rate, and for each part
// of it as much as it is, however regular the parts are.
func TestMeter(t *testing.T) {
	for rate := int64(256 << 10); rate <= 256<<20; rate *= 4 {
		var m Meter
		var stands [2]int64
		total := int64(0)
		for range 64 {
			picked := 0
			for n := int64(0); n < rate; n += 64 << 10 {
				total += 64 << 10
				if s, ok := m.Pick(64 << 10); ok {
					stands[total>>16&1] += s
					picked++
				}
			}
			if picked > defaultMost {
				t.Fatalf("%d samples at %d MiB/s", picked, rate>>20)
			}
			m.Refill()
		}
		for _, s := range stands {
			if share := float64(s) / float64(total); share < 0.4 || share > 0.6 {
				t.Errorf("at %d KiB/s samples stand for %v of what is written", rate>>10, stands)
			}
		}
	}
}

// Extents are in order, apart, no more than fit, and over all that was added.
func TestExtents(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 200 {
		var x extents
		var all []cbt.Extent
		span := int64(1) << (22 + rng.IntN(20))
		for range 1 + rng.IntN(300) {
			e := cbt.Extent{Offset: rng.Int64N(span) &^ 511, Length: 512 * (1 + rng.Int64N(4096))}
			all = append(all, e)
			x.add(e)
		}
		for i := range len(x.list) - 1 {
			if x.gap(i) <= nearBytes {
				t.Fatalf("%+v and %+v lie near", x.list[i], x.list[i+1])
			}
		}
		if len(x.list) > maxExtents {
			t.Fatalf("%d extents", len(x.list))
		}
		for _, e := range all {
			if !slices.ContainsFunc(x.list, func(l cbt.Extent) bool { return l.Offset <= e.Offset && e.End() <= l.End() }) {
				t.Fatalf("%+v is forgotten", e)
			}
		}
	}
}

func BenchmarkClassify(b *testing.B) {
	p := newDisk(1).noise(SampleBytes)
	b.SetBytes(SampleBytes)
	for b.Loop() {
		Classify(p)
	}
}

package journal

// Which runs are rewritten as one, and when. A read asks the index, not the runs, so
// that many of them cost it nothing: they are merged for the room that this frees, or
// because the site log lists too many. What it would free is estimated by three
// things that the manifests know of a stretch of runs:
//
//   - the bytes that only dropped points needed go;
//   - of n runs with p points between them, p+n images are kept now, one for the end
//     of each run, and p+1 after: what is left shrinks by as much;
//   - but not below the largest of them: a base that little was written over stays.
//
// Where half would go at least, the stretch that leaves the smallest part of itself
// is merged; fewer than mergeFan runs are not worth it, save one alone of which half
// is garbage. So a byte that nothing replaces is rewritten as often as the history
// grows by the factor of mergeFan, and while most points are kept not at all.

const (
	mergeFan = 4
	maxRuns  = 48 // more are merged, however little that frees
	forceFan = 16 // so many at once
)

// planMerge chooses the runs to merge, which are listed oldest first with how many
// points are left of each. Under pressure of the quota a tenth is worth it, and any
// two are.
func planMerge(runs []manifest, points []int, pressed bool) (from, to int, ok bool) {
	worth, fan := 0.5, mergeFan
	if pressed {
		worth, fan = 0.9, 2
	}
	for i := range runs {
		var w window
		for k := i; k < len(runs); k++ {
			w.add(runs[k], points[k])
			if left := w.left(); left <= worth && w.garbage+int64(w.runs-1) > 0 && (w.runs == 1 || w.runs >= fan) {
				from, to, ok, worth = i, k, true, left
			}
		}
	}
	if ok || len(runs) <= maxRuns {
		return from, to, ok
	}
	least := int64(-1)
	for i := 0; i+forceFan <= len(runs); i++ {
		var w window
		for k := i; k < i+forceFan; k++ {
			w.add(runs[k], points[k])
		}
		if least < 0 || w.bytes < least {
			from, to, least = i, i+forceFan-1, w.bytes
		}
	}
	return from, to, true
}

// window is what a stretch of runs sums up to.
type window struct {
	runs, points                  int
	bytes, garbage, live, largest int64
}

func (w *window) add(m manifest, points int) {
	live := m.Bytes - min(m.Garbage, m.Bytes)
	w.runs, w.points = w.runs+1, w.points+points
	w.bytes, w.garbage, w.live = w.bytes+m.Bytes, w.garbage+m.Garbage, w.live+live
	w.largest = max(w.largest, live)
}

// liveBytes is what a run made of runs takes at most.
func liveBytes(runs []manifest) int64 {
	var w window
	for _, m := range runs {
		w.add(m, 0)
	}
	return w.live
}

// left is the part of the stretch that merging it would leave, by the estimate.
func (w *window) left() float64 {
	images := float64(w.points+1) / float64(w.points+w.runs)
	return max(float64(w.live)*images, float64(w.largest)) / float64(w.bytes)
}

// keptPerRun is how many points are kept in each run.
func (p *folds) keptPerRun() []int {
	out := make([]int, len(p.state.Runs))
	i := 0
	for _, k := range p.kept {
		for i < len(out)-1 && k.after(p.state.Runs[i].To) {
			i++
		}
		out[i]++
	}
	return out
}

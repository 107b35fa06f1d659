package journal

// steady does a look-up again for as long as history is folded under it. What it asks
// first, whether a record is folded, and what it reads then, samples and frames, are not
// one moment: a fold in between takes the frames away that were there a moment ago. Of a
// look-up during which nothing was folded, every answer stands.
func steady[T any](j *Journal, look func() (T, error)) (T, error) {
	for {
		before := j.history()
		out, err := look()
		if err == nil || j.history() == before {
			return out, err
		}
	}
}

package journal

// usedLocked is what the history takes on disk: frames whose segments have not been
// given back, and runs. What a fold frees counts as used until its files are gone
// durably.
func (j *Journal) usedLocked() int64 {
	s := &j.past.state
	given := s.Given
	if j.o.faults.quotaEarly && s.Change != nil {
		given = s.End.Bytes
	}
	return j.bytes - given + s.bytes()
}

package nbd

import "github.com/novacron/afterimage/cbt"

// terms are what was negotiated for a connection.
type terms struct {
	size       int64
	flags      uint16 // transmission flags
	structured bool
	allocation bool // base:allocation was granted
}

// judge says what is wrong with q, or zero. It is what keeps a Device from
// ever seeing a request outside its export (proto.md, "Request types" and
// "Error values").
func (t terms) judge(q request) (Errno, string) {
	if errno, text := t.judgeFlags(q); errno != 0 {
		return errno, text
	}
	inside := q.offset <= uint64(t.size) && uint64(q.length) <= uint64(t.size)-q.offset
	switch q.cmd {
	case cmdFlush:
		if q.offset != 0 || q.length != 0 {
			return EINVAL, "flush with an offset or a length"
		}
		return 0, ""
	case cmdRead:
		if q.length > maxPayloadBytes {
			return EINVAL, "read above 32 MiB"
		}
	case cmdWrite, cmdTrim, cmdWriteZeroes:
		if t.flags&flagReadOnly != 0 {
			return EPERM, "export is read-only"
		}
		if q.cmd == cmdWrite && q.length > maxPayloadBytes {
			return EINVAL, "write above 32 MiB"
		}
		if !inside && q.cmd != cmdTrim {
			return ENOSPC, "beyond the end of the export"
		}
	case cmdBlockStatus:
		if !t.allocation {
			return EINVAL, "no meta context was negotiated"
		}
		if q.length == 0 {
			return EINVAL, "status of nothing"
		}
	}
	if !inside {
		return EINVAL, "beyond the end of the export"
	}
	return 0, ""
}

func (t terms) judgeFlags(q request) (Errno, string) {
	var allowed uint16
	if t.flags&flagSendFUA != 0 {
		allowed = cmdFlagFUA
	}
	switch q.cmd {
	case cmdRead:
		if t.structured {
			allowed |= cmdFlagDF
		}
	case cmdWrite:
	case cmdTrim:
	case cmdWriteZeroes:
		allowed |= cmdFlagNoHole
	case cmdBlockStatus:
		allowed |= cmdFlagReqOne
	case cmdFlush:
		if t.flags&flagSendFlush == 0 {
			return EINVAL, "flush was not offered"
		}
	default:
		return EINVAL, "unknown command"
	}
	if q.flags&^allowed != 0 {
		return EINVAL, "flag is not allowed here"
	}
	return 0, ""
}

// extent is q's range. Only for requests that were judged good.
func (q request) extent() cbt.Extent {
	return cbt.Extent{Offset: int64(q.offset), Length: int64(q.length)}
}

// changes reports whether q alters content.
func (q request) changes() bool {
	return q.cmd == cmdWrite || q.cmd == cmdWriteZeroes || q.cmd == cmdTrim
}

// weight is how many bytes of memory q may hold while it is in flight.
func (q request) weight() int64 {
	switch q.cmd {
	case cmdRead, cmdWrite:
		return int64(q.length)
	case cmdBlockStatus:
		return statusWeight
	}
	return 0
}

// Package mode holds the rules of capture that have nothing to do with how a
// machine is reached: what follows what, when an interval of points may open, and
// what may be believed of bitmaps. It is pure; the drivers carry out its orders.
//
// One volume, per write:
//
//	Attach → Judged ─ trusted ─→ delta ┐
//	            └── untrusted ─→ full ─┤ Tapped, then Brought → Mark → per-write
//	any of them ── Break, Release ─────┴─→ none, and a gap if an interval was open
//
// One volume, in bitmap cycles:
//
//	Attach → Judged ─ untrusted ─→ full: a new bitmap, then all is read → Compared
//	            └──── trusted ───→ bitmap → Drawn → Brought → Mark → Closed ─┐
//	                                  │  └ Dropped: no point this time ┐     │
//	                                  └──────── the next cycle is due ─┴─────┘
//
// What State.Next promises, whatever the order of events:
//
//   - an interval opens only by Mark, and Mark is refused unless the picture is
//     whole: every write has arrived since before the reading began (Tapped), or one
//     instant was held (Drawn); and all that was to be read is recorded and durable
//     (Brought), told by bitmaps that Judge trusts or by reading everything;
//   - what ends an interval orders a gap with its cause before anything else happens;
//     until that is told (GapTold), nothing can be marked;
//   - a cycle's interval holds one record: the gap behind it (Closed) is ordered with
//     the mark, so nothing that follows is ever offered as a point.
//
// Judge trusts bitmaps only if every remembered one is there, sound, recording, of the
// remembered granularity, on the remembered node, and the disk has the remembered
// size. A count proves nothing: that of an inconsistent bitmap is zero.
//
// Values; safe to share.
package mode

// Package faultrule says which requests to a device go wrong, and how. It only
// decides: package mapper does what it says. Nothing here waits or does I/O,
// and equal rules decide the same about the same sequence of requests.
//
// # Words
//
// A rule ([Rule]) has operations, a place, an occurrence and an action. A
// request matches a rule when it is one of its operations and touches its
// place; every match is counted (seen). The occurrence says which matches are
// hit; every hit is counted too. A rule with a count ends with its last hit: it
// goes on existing, and counts no more.
//
// # Text
//
// A rule as text is words separated by blanks, the operations first, the others
// in any order. Rules are separated by semicolons or line ends; what follows a #
// is a comment.
//
//	OPS                read, write, flush, discard, several joined by commas, or any
//
//	sectors=S+N[,…]    place: N sectors of 512 bytes from sector S on
//	bytes=OFF+LEN[,…]  place in bytes, or with a suffix: s sectors, k m g t powers of 1024
//
//	after=N            the first N matches pass
//	nth=N              the N-th match, and no other
//	every=N            the N-th match, the 2N-th, and so on
//	p=P                each match with probability P, above 0 and up to 1
//	count=N            the rule ends with its N-th hit
//	seed=N             of all that is left to chance: p, delay, tear, corrupt
//
//	errno=NAME         the request fails: EIO, ENOSPC and the others of [Errnos]
//	delay=TIME         it waits first: 10ms, 2s
//	delay=A..B         it waits from A to B, any time as likely
//	delay=normal:MEAN:DEV:MIN:MAX
//	                   normal distribution, cut off at MIN and MAX
//	hang               it waits until the rule is cleared
//	drop               it is answered, and not done (no reads)
//	drop=until-flush   what is written is kept back until a flush (writes only)
//	tear=512           of a write only some sectors land, never all of them (tear=4096:
//	                   blocks); it is answered as done, or with the error of errno
//	corrupt            one bit of what is read or written is flipped
//	corrupt=bits:N     N bits are; corrupt=bytes:N: N bytes have another value
//
// A flush touches every place. Zeroing a range is a write.
//
// A request meets the rules in their order. Waits add up; so do flips. The first
// rule hit that decides what becomes of the request (errno, drop, tear) is the
// last it meets: later ones neither see nor count it.
package faultrule

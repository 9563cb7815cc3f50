package intake

// Sizes of an arena's pieces, and of what gets a piece of its own: so at most a sixteenth of
// the others stays empty at their ends.
const (
	pieceBytes = 64 << 10
	apartBytes = pieceBytes / 16
)

// arena is the memory for the encodings of a request's events, in pieces that many share: an
// allocation for each costs more than to copy it.
type arena struct {
	// expected is how much may still come. No piece is made larger.
	expected int
	piece    []byte // the newest one, as far as it is taken
	unused   int64  // bytes of the pieces that nothing was put into
}

// take returns memory for size bytes, as an empty slice of that capacity.
func (a *arena) take(size int) []byte {
	a.expected -= size
	if size > apartBytes {
		return make([]byte, 0, size)
	}
	start := len(a.piece)
	if cap(a.piece)-start < size {
		a.piece, start = make([]byte, 0, size+min(pieceBytes-size, max(a.expected, 0))), 0
		a.unused += int64(cap(a.piece))
	}
	a.unused -= int64(size)
	a.piece = a.piece[:start+size]
	return a.piece[start : start : start+size]
}

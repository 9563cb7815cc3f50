package governor

import "encoding/binary"

// Of RFC 9113: types of frames, flags, settings.
const (
	frameHeaderBytes = 9

	frameData         = 0x0
	frameHeaders      = 0x1
	frameReset        = 0x3
	frameSettings     = 0x4
	frameWindowUpdate = 0x8

	flagEndStream = 0x1
	flagPadded    = 0x8

	settingInitialWindow = 0x4
	settingBytes         = 6

	streamMask = 1<<31 - 1
)

// prefaceBytes is the length of "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", which a client sends
// before its first frame.
const prefaceBytes = 24

// frameHeader is a frame's header as it comes in, perhaps in pieces.
type frameHeader struct {
	raw [frameHeaderBytes]byte
	got int
}

// fill takes what it lacks from b and returns how much that was.
func (h *frameHeader) fill(b []byte) int {
	n := copy(h.raw[h.got:], b)
	h.got += n
	return n
}

func (h *frameHeader) complete() bool { return h.got == frameHeaderBytes }
func (h *frameHeader) length() int {
	return int(h.raw[0])<<16 | int(h.raw[1])<<8 | int(h.raw[2])
}
func (h *frameHeader) kind() byte         { return h.raw[3] }
func (h *frameHeader) has(flag byte) bool { return h.raw[4]&flag != 0 }
func (h *frameHeader) stream() uint32     { return binary.BigEndian.Uint32(h.raw[5:]) & streamMask }

// appendWindowUpdate appends a frame that opens a stream's window by n bytes.
func appendWindowUpdate(dst []byte, stream uint32, n int) []byte {
	dst = append(dst, 0, 0, 4, frameWindowUpdate, 0)
	dst = binary.BigEndian.AppendUint32(dst, stream)
	return binary.BigEndian.AppendUint32(dst, uint32(n))
}

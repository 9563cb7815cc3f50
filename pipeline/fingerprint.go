package pipeline

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"

	"github.com/waybillhq/waybill/internal/cloudevent"
)

// fingerprintBytes is the length of a fingerprint. Among the 1e8 that a window may hold, a
// new event is taken for another one with a probability of 1e8 / 2^96, about 1e-21.
const fingerprintBytes = 12

// Fingerprint stands for what makes an event one event: its source and its id, or an
// attribute in place of the id. Its first eight bytes are never all zero.
type Fingerprint [fingerprintBytes]byte

// What a fingerprint is of, as a byte of what is hashed.
const (
	fingerprintOfID        = 0
	fingerprintOfAttribute = 1
)

// newFingerprint hashes source, a zero byte, which no source contains, kind and value.
func newFingerprint(source string, kind byte, value string) Fingerprint {
	var space [256]byte
	buf := append(space[:0], source...)
	buf = append(buf, 0, kind)
	buf = append(buf, value...)
	sum := sha256.Sum256(buf)
	f := Fingerprint(sum[:fingerprintBytes])
	if f.low() == 0 {
		f[0] = 1 // zero is an empty place of a fingerprintSet
	}
	return f
}

func (f Fingerprint) low() uint64  { return binary.LittleEndian.Uint64(f[:]) }
func (f Fingerprint) high() uint32 { return binary.LittleEndian.Uint32(f[8:]) }

// IdentifyBy makes e the same event as every other one of its source that has the same value
// of the named attribute in ce, whatever their ids. An event without the attribute, or with an
// empty one, keeps being identified by its id. ce is what e was made from.
func (e *Event) IdentifyBy(ce *pb.CloudEvent, attribute string) {
	if value := cloudevent.Text(ce.Attributes[attribute]); value != "" {
		e.Fingerprint = newFingerprint(ce.Source, fingerprintOfAttribute, value)
	}
}

// CheckIdentifyingAttribute says why events cannot be identified by the named attribute, or
// is nil. "" stands for none.
func CheckIdentifyingAttribute(name string) error {
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return fmt.Errorf("dedupe attribute: %q; attribute names consist of lower-case letters a-z and digits only", name)
		}
	}
	switch name {
	case "id", "source", "type", "specversion", "data":
		return fmt.Errorf("dedupe attribute: %q is no extension; name one such as idempotencykey, or none to go by the id", name)
	case headerTrace, "tracestate":
		return fmt.Errorf("dedupe attribute: %q is of a trace, which events share; name an attribute that a producer sets once per event", name)
	case SeqnumAttribute, ProducerSeqnumAttribute:
		return fmt.Errorf("dedupe attribute: %q starts again with its producer; name an attribute that a producer sets once per event", name)
	}
	return nil
}

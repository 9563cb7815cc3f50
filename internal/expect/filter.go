// Package expect tells which events somebody waits for, and how far these have come: what `waybill expect`
// and package waybilltest stand on.
package expect

import (
	"strings"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"google.golang.org/protobuf/proto"

	"github.com/waybillhq/waybill/pipeline"
)

// Filter picks events: those that match every field that is set.
type Filter struct {
	Source  string `env:"-" help:"Only of this source; with an asterisk at its end, of those that begin so."`
	Type    string `env:"-" help:"Only of this type; with an asterisk at its end, of those that begin so."`
	Subject string `env:"-" help:"Only with this subject."`
	ID      string `name:"id" env:"-" help:"Only with this id."`
}

// Matches reports whether an event is wanted.
func (f Filter) Matches(ce *pb.CloudEvent) bool {
	return MatchesText(f.Source, ce.Source) && MatchesText(f.Type, ce.Type) && (f.ID == "" || f.ID == ce.Id) &&
		(f.Subject == "" || f.Subject == AttributeText(ce, "subject"))
}

// MatchesText compares with a text, or with a beginning that an asterisk follows. Empty: any.
func MatchesText(want, text string) bool {
	if beginning, ok := strings.CutSuffix(want, "*"); ok {
		return strings.HasPrefix(text, beginning)
	}
	return want == "" || want == text
}

// AttributeText is the value of an attribute that is a string; empty where there is none.
func AttributeText(ce *pb.CloudEvent, name string) string { return ce.Attributes[name].GetCeString() }

// EachEvent decodes the events of a batch. One that is none is passed over: a sink refuses it, and it is a
// dead letter then.
func EachEvent(b pipeline.TailedBatch, visit func(index int, ce *pb.CloudEvent) error) error {
	for index, encoded := range b.Events {
		ce := new(pb.CloudEvent)
		if proto.Unmarshal(encoded, ce) != nil {
			continue
		}
		if err := visit(index, ce); err != nil {
			return err
		}
	}
	return nil
}

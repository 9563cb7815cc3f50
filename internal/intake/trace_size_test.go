package intake

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"go.opentelemetry.io/otel/propagation"

	"github.com/waybillhq/waybill/pipeline"
)

// What a request's trace adds to its events is little: it is added to each, before it is charged, and
// a small message has many. A state that may be dropped is.
func TestTraceStateIsShort(t *testing.T) {
	for _, size := range []int{pipeline.MaxTraceState, pipeline.MaxTraceState + 1, 8 << 10} {
		var members []string
		for left := size; left > 0; {
			name := fmt.Sprintf("k%d=", len(members))
			value := min(left-len(name), 256)
			if rest := left - len(name) - value; rest > 0 && rest < 8 {
				value -= 8 // room for another member
			}
			members = append(members, name+strings.Repeat("v", value))
			left -= len(name) + value + 1
		}
		state := strings.Join(members, ",")
		trace := traceOf(propagation.MapCarrier{
			traceParent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", traceState: state,
		})
		if trace.parent == "" || (trace.state == state) != (size <= pipeline.MaxTraceState) {
			t.Errorf("of a state of %d bytes %d are added, and of its parent %d", len(state), len(trace.state), len(trace.parent))
		}
		events := make([]*pb.CloudEvent, 2000)
		for i := range events {
			events[i] = validEvent("1")
		}
		body := protobufBatch(t, events...)
		e := &encoder{maxEventBytes: 1 << 20, trace: trace}
		items, err := decodeProtobufBatch(body, len(events), e)
		if err != nil || items[0].fault != nil {
			t.Fatal(items[0].fault, err)
		}
		if held := e.held(items); held > 20*int64(len(body)) {
			t.Errorf("a state of %d bytes makes %d bytes of %d", size, held, len(body))
		}
	}
}

package snippets

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/waybilltest"
)

// patience bounds a wait for what must come about; no test waits for it to pass.
const patience = time.Minute

// Order is what the programs of the pages are about.
type Order struct {
	ID    string  `json:"id"`
	Total float64 `json:"total"`
}

// emitFromInside is a program that has an emitter, until it has emitted an event.
func emitFromInside(ctx context.Context, databaseURL, natsURL string, order Order) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	//snippet:begin README.md docs/embedding.md pipeline/doc.go
	emitter, err := pipeline.NewEmitter(pipeline.DefaultEmitterConfig(databaseURL, natsURL))
	if err != nil {
		return err // it names the setting
	}
	stopped := make(chan error, 1)
	go func() { stopped <- emitter.Run(ctx) }() // until ctx ends

	starting, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := emitter.WaitReady(starting); err != nil {
		return err // it says what is waited for
	}
	err = emitter.Emit(ctx, pipeline.CloudEvent{ // nil: it is committed, and will reach every sink
		Source: "/orders", Type: "order.placed", ID: "order-7-placed", Data: pipeline.JSONData(order),
	})
	//snippet:end
	stop()
	return errors.Join(err, <-stopped)
}

func TestEmitFromInside(t *testing.T) {
	t.Parallel()
	w := waybilltest.Start(t)
	if err := emitFromInside(t.Context(), w.DatabaseURL, w.NATSURL, Order{"7", 12.5}); err != nil {
		t.Fatal(err)
	}
	placed := waybilltest.Filter{Source: "/orders", Type: "order.placed", ID: "order-7-placed"}
	if data := w.Expect(t, placed, 1, patience)[0].Data; string(data) != `{"id":"7","total":12.5}` {
		t.Errorf("the data is %s", data)
	}
}

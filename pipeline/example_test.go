package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/waybillhq/waybill/pipeline"
)

// A program has one emitter, for as long as it runs.
func ExampleEmitter() {
	ctx := context.Background() // ends when the program is to stop
	emitter, err := pipeline.NewEmitter(pipeline.DefaultEmitterConfig("postgres://waybill:secret@db:5432/waybill", "nats://nats:4222"))
	if err != nil {
		log.Fatal(err) // it names the setting
	}
	stopped := make(chan error, 1)
	go func() { stopped <- emitter.Run(ctx) }()
	starting, cancel := context.WithTimeout(ctx, 30*time.Second) // Run waits for Postgres as long as it takes
	err = emitter.WaitReady(starting)
	cancel()
	if err != nil {
		log.Fatal(err) // it says what is waited for
	}
	err = emitter.Emit(ctx, pipeline.CloudEvent{
		Source: "/orders", Type: "order.placed", ID: "order-7-placed",
		Data: pipeline.JSONData(map[string]any{"number": 7, "total": "12.50"}),
	})
	if err != nil {
		log.Print(err)
	}
	log.Fatal(<-stopped)
}

// An event has its attributes by name and type.
func ExampleCloudEvent() {
	event := pipeline.CloudEvent{
		Source:  "https://shop.example.com/orders",
		Type:    "com.example.order.placed",
		ID:      "7",
		Subject: "customer/12",
		Time:    time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC),
		Data:    pipeline.TextData("two pencils"),
		Extensions: map[string]pipeline.AttributeValue{
			"correlationid": pipeline.StringValue("checkout-99"),
			"priority":      pipeline.IntegerValue(3),
			"gift":          pipeline.BooleanValue(true),
		},
	}
	fmt.Println(event.Source, event.Type, event.ID)
	// Output: https://shop.example.com/orders com.example.order.placed 7
}

// What an error of Emit means for the caller.
func ExampleEmitter_Emit() {
	emit := func(ctx context.Context, emitter *pipeline.Emitter, event pipeline.CloudEvent) error {
		err := emitter.Emit(ctx, event)
		var invalid *pipeline.InvalidEventError
		switch {
		case errors.As(err, &invalid):
			// It never will be accepted: invalid.Attribute says what to mend.
		case errors.Is(err, pipeline.ErrOverloaded), errors.Is(err, pipeline.ErrUnavailable):
			// Nothing was stored: later it may be accepted.
		case errors.Is(err, pipeline.ErrOutcomeUnknown):
			// It may be stored. Emitted again under the same ID, it is stored once.
		}
		return err
	}
	_ = emit
}

// A program that must not wait hears of the outcome later.
func ExampleEmitter_EmitAsync() {
	notify := func(ctx context.Context, emitter *pipeline.Emitter, event pipeline.CloudEvent) {
		emitter.EmitAsync(ctx, event, func(err error) {
			if err != nil {
				log.Printf("event %s is not stored: %v", event.ID, err)
			}
		})
	}
	_ = notify
}

// Health tells what stops an emitter from what somebody should know.
func ExampleEmitter_Health() {
	report := func(emitter *pipeline.Emitter) string {
		err := emitter.Health()
		var health *pipeline.HealthError
		switch {
		case !errors.As(err, &health):
			return "ok"
		case health.Ready:
			return "degraded: " + err.Error() // events are emitted
		default:
			return "not ready: " + err.Error() // none are
		}
	}
	emitter, err := pipeline.NewEmitter(pipeline.DefaultEmitterConfig("postgres://db/waybill", "nats://nats:4222"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(report(emitter)[:9])
	// Output: not ready
}

// An event that exists exactly if a transaction of the caller's commits. The service's tables are in the pipeline's
// database; its role needs USAGE on the schema waybill.
func ExampleEmitTx() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, "postgres://shop:secret@db:5432/waybill")
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `INSERT INTO orders (id, total) VALUES ($1, $2)`, 7, "12.50"); err != nil {
			return err
		}
		return pipeline.EmitTx(ctx, tx, pipeline.CloudEvent{
			Source: "/orders", Type: "order.placed", ID: "order-7-placed",
			Data: pipeline.JSONData(map[string]any{"number": 7, "total": "12.50"}),
		})
	})
	if err != nil {
		log.Print(err)
	}
}

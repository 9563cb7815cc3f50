// Package pipeline is Waybill's engine: it takes CloudEvents, makes them durable
// in Postgres before it says so, queues them in NATS JetStream, hands them to the
// sinks and settles what the sinks took.
//
// A program that wants to emit events begins with [Emitter] and [CloudEvent]:
//
//	emitter, err := pipeline.NewEmitter(pipeline.DefaultEmitterConfig(databaseURL, natsURL))
//	if err != nil {
//		return err // it names the setting
//	}
//	stopped := make(chan error, 1)
//	go func() { stopped <- emitter.Run(ctx) }() // until ctx ends
//
//	starting, cancel := context.WithTimeout(ctx, 30*time.Second)
//	defer cancel()
//	if err := emitter.WaitReady(starting); err != nil {
//		return err // it says what is waited for
//	}
//	err = emitter.Emit(ctx, pipeline.CloudEvent{ // nil: it is committed, and will reach every sink
//		Source: "/orders", Type: "order.placed", ID: "order-7-placed", Data: pipeline.JSONData(order),
//	})
//
// An event that is to exist exactly if a transaction of the program's own commits, on the same Postgres, needs no
// emitter: [EmitTx] and [EmitSQLTx] emit it inside that. Package waybilltest runs all of Waybill in a Go test.
//
// The rest of this page is for those who work on Waybill itself. The life of an event, each step one call down and never back up:
//
//	ingest     Ingester.Accept → NewEvent → Store.Append → Publisher.Publish
//	           or, of what others' transactions have emitted (EmitTx): taker → Store.Append
//	emitter    Emitter.Emit → the same
//	forwarder  Forwarder.Run → lane worker → Sink.Send → receipt → ack
//	janitor    Janitor.Run ┬ applyReceipts → Store.Settle → ack
//	                       ├ retransmit    → Store.ClaimStale → Publisher.Publish
//	                       └ expire        → Store.Expire
//
// An [Event] is encoded once, when it is accepted, and travels as those bytes: they
// are what Postgres stores, what a JetStream message carries and what the ingress
// endpoint receives. Only its sequence number is added on the way, at commit.
//
// Nothing here reads flags, signals or the environment, and no New function starts
// a goroutine: whatever runs has a Run(ctx) method that blocks until ctx ends and
// everything it started has ended.
package pipeline

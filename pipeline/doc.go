// Package pipeline is Waybill's engine: it takes CloudEvents, makes them durable
// in Postgres before it says so, queues them in NATS JetStream, hands them to the
// sinks and settles what the sinks took.
//
// A program that wants to emit events begins with [Emitter] and [CloudEvent]:
//
//	emitter, err := pipeline.NewEmitter(pipeline.DefaultEmitterConfig(databaseURL, natsURL))
//	go func() { stopped <- emitter.Run(ctx) }()
//	err = emitter.WaitReady(ctx)
//	err = emitter.Emit(ctx, pipeline.CloudEvent{Source: "/orders", Type: "order.placed", Data: pipeline.JSONData(order)})
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

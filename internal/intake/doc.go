// Package intake is ingest's front: it takes CloudEvents over HTTP and gRPC, checks and
// encodes them, and answers only when an [Accepter] has made them durable.
//
// [New] joins a [Config] and an [Accepter] into an [Intake]. [NewHTTP] and [NewGRPC] are
// its two faces; they share its byte [Budget], its limits and its metrics. What a client
// sees of both is written down in docs/api.md.
//
// HTTP bodies and headers are read by this package, not by the CloudEvents SDK. What the
// SDK reads, version 2.16, is meant for a trusted peer: a data_base64 that is no string
// and a header named "ce-" make it panic, an extension of 1.5 becomes 1, an unreadable
// dataschema vanishes, and one bad event of a batch hides which one it was. The tests hold
// this package against the SDK's own client.
package intake

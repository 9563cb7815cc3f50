// Package jaeger speaks the JSON of Jaeger's query API: a Client that finds traces, and a Handler
// that offers those of a Source.
//
// It is the API that Jaeger's own UI uses, which versions 1 and 2 serve below /api and other
// stores of traces offer too. Jaeger calls it internal and does not version it; what is used here
// is as in Jaeger's source, cmd/jaeger/internal/extension/jaegerquery/internal (http_handler.go,
// query_parser.go) and internal/uimodel:
//
//	GET /api/services
//	GET /api/traces?service=…&tags={"key":"value"}&start=…&end=…&limit=…
//	GET /api/traces/<trace id>
//
// Times are microseconds, since 1970 where they are points. Ids are hexadecimal; that of a trace
// lacks its first half where that is zero. Of OTLP, a parent is a reference CHILD_OF, a link
// FOLLOWS_FROM, the resource a process, and the status the tags error and otel.status_description.
package jaeger

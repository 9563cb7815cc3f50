package proxy

import (
	"bytes"
	"strings"
)

// describe says what a response that is lost or cut off was the answer to, as far as its
// first bytes and those of the newest request on its connection tell.
func describe(asked string, response []byte) string {
	switch {
	case bytes.HasPrefix(response, []byte("HTTP/1.1 ")):
		return asked
	case bytes.HasPrefix(response, []byte("C\x00\x00\x00")): // Postgres: a statement is done
		tag, _, _ := bytes.Cut(response[5:], []byte{0})
		word, _, _ := strings.Cut(string(tag), " ")
		return word
	case bytes.HasPrefix(response, []byte("MSG ")), bytes.HasPrefix(response, []byte("HMSG ")):
		return describeNATS(response)
	default:
		return "gRPC"
	}
}

// describeNATS tells the word that a message is stored from other messages.
func describeNATS(response []byte) string {
	if _, stored, ok := bytes.Cut(response, []byte(`{"stream":"`)); ok {
		name, _, _ := bytes.Cut(stored, []byte(`"`))
		return "stored in " + string(name)
	}
	if bytes.Contains(response, []byte("io.nats.jetstream.api.")) {
		return "JetStream API"
	}
	return "message"
}

// method is the one of the request that begins with data; empty: none begins there.
func method(data []byte) string {
	for _, m := range []string{"GET", "PUT", "POST", "DELETE", "HEAD"} {
		if bytes.HasPrefix(data, []byte(m+" ")) {
			return m
		}
	}
	return ""
}

package intake

import (
	"net/http"
	"slices"
	"strings"
)

const headerPrefix = "Ce-"

// isBinary reports whether the request has any CloudEvents header.
func isBinary(header http.Header) bool {
	for name := range header {
		if hasHeaderPrefix(name) {
			return true
		}
	}
	return false
}

func hasHeaderPrefix(name string) bool {
	return len(name) >= len(headerPrefix) && strings.EqualFold(name[:len(headerPrefix)], headerPrefix)
}

// readBinary reads one event in the binary mode of the CloudEvents HTTP binding: an
// attribute a header, the data in the body.
func readBinary(header http.Header, body []byte) *draft {
	d := newDraft()
	names := make([]string, 0, len(header))
	for name := range header {
		if hasHeaderPrefix(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names) // so that of several faults always the same is told
	if contentType := header.Get("Content-Type"); contentType != "" {
		d.setText(attrContentType, contentType)
	}
	for _, name := range names {
		d.setHeader(strings.ToLower(name[len(headerPrefix):]), header[name])
	}
	if len(body) > 0 {
		d.setData(body)
	}
	return d
}

func (d *draft) setHeader(name string, values []string) {
	switch {
	case name == attrContentType:
		d.fail(name, "must be in the header Content-Type, not in a ce- header")
	case len(values) > 1:
		d.fail(name, "is there twice")
	default:
		d.setText(name, decodeHeader(values[0]))
	}
}

// decodeHeader undoes what the HTTP binding does to values: a value in double quotes, as
// older versions of it had, and then percent-encoding. A percent sign that begins no
// escape stays as it is, because the SDKs' clients do not encode at all. What is no UTF-8
// then is refused when the event is encoded.
func decodeHeader(value string) string {
	if len(value) >= 2 && value[0] == '"' && value[len(value)-1] == '"' {
		value = unescapeQuoted(value[1 : len(value)-1])
	}
	if strings.IndexByte(value, '%') >= 0 {
		value = percentDecode(value)
	}
	return value
}

func unescapeQuoted(s string) string {
	if strings.IndexByte(s, '\\') < 0 {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func percentDecode(s string) string {
	var b strings.Builder
	b.Grow(len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			high, low := fromHex(s[i+1]), fromHex(s[i+2])
			if high >= 0 && low >= 0 {
				b.WriteByte(byte(high<<4 | low))
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// fromHex returns the value of a hexadecimal digit, or -1.
func fromHex(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

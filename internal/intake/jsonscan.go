package intake

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// The functions of this file cut JSON that checkJSON let pass into its parts without
// copying them, so that the data of an event keeps its exact bytes. They rely on the
// check: on anything else their result means nothing, though they end.

// checkJSON returns nil if body is one JSON value in UTF-8, else what is wrong where.
func checkJSON(body []byte) error {
	if !utf8.Valid(body) {
		return errors.New("the body is not valid UTF-8")
	}
	var value json.RawMessage
	err := json.Unmarshal(body, &value)
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return fmt.Errorf("the body is not valid JSON: %w, at byte %d", err, syntax.Offset)
	}
	if err != nil {
		return fmt.Errorf("the body is not valid JSON: %w", err)
	}
	return nil
}

// eachMember calls visit with every member of a JSON object: its name, and its value as
// it stands.
func eachMember(object []byte, visit func(name string, value []byte)) {
	i := skipSpace(object, 1)
	for i < len(object) && object[i] == '"' {
		end := skipValue(object, i)
		name, _ := unquote(object[i:end])
		i = skipSpace(object, end) + 1 // the colon
		i = skipSpace(object, i)
		end = skipValue(object, i)
		visit(name, object[i:end])
		i = skipComma(object, end)
	}
}

// eachElement calls visit with every element of a JSON array until visit returns false.
func eachElement(array []byte, visit func(value []byte) bool) {
	i := skipSpace(array, 1)
	for i < len(array) && array[i] != ']' {
		end := skipValue(array, i)
		if !visit(array[i:end]) {
			return
		}
		i = skipComma(array, end)
	}
}

func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\n' || b[i] == '\t' || b[i] == '\r') {
		i++
	}
	return i
}

func skipComma(b []byte, i int) int {
	i = skipSpace(b, i)
	if i < len(b) && b[i] == ',' {
		i = skipSpace(b, i+1)
	}
	return i
}

// skipValue returns the index behind the value that begins at i.
func skipValue(b []byte, i int) int {
	if i >= len(b) {
		return len(b)
	}
	switch b[i] {
	case '"':
		return skipString(b, i)
	case '{', '[':
		return skipNested(b, i)
	}
	end := i + 1 // a number or a word; one byte at least, so that every caller ends
	for end < len(b) && strings.IndexByte(",]} \n\t\r", b[end]) < 0 {
		end++
	}
	return end
}

func skipNested(b []byte, i int) int {
	depth := 0
	for i < len(b) {
		switch b[i] {
		case '"':
			i = skipString(b, i)
			continue
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		}
		i++
		if depth == 0 {
			return i
		}
	}
	return len(b)
}

func skipString(b []byte, i int) int {
	for i++; i < len(b); i++ {
		switch b[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return len(b)
}

// unquote returns the text of a JSON string. It refuses half a surrogate pair, which
// encoding/json would replace by U+FFFD, so that two different ids could become one.
func unquote(quoted []byte) (string, error) {
	if len(quoted) < 2 {
		return "", errors.New("is not a string")
	}
	if bytes.IndexByte(quoted, '\\') < 0 {
		return string(quoted[1 : len(quoted)-1]), nil
	}
	var text string
	if err := json.Unmarshal(quoted, &text); err != nil {
		return "", errors.New("is not a string")
	}
	if strings.Count(text, "\uFFFD") > writtenReplacements(quoted) {
		return text, errors.New("contains an unpaired surrogate")
	}
	return text, nil
}

// writtenReplacements counts how often U+FFFD was meant.
func writtenReplacements(quoted []byte) int {
	n := bytes.Count(quoted, []byte("\uFFFD"))
	for i := 0; i+1 < len(quoted); i++ {
		if quoted[i] != '\\' {
			continue
		}
		if i+6 <= len(quoted) && strings.EqualFold(string(quoted[i+1:i+6]), "ufffd") {
			n++
		}
		i++ // what follows a backslash begins no escape of its own
	}
	return n
}

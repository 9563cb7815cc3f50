package intake

import (
	"encoding/base64"
	"strconv"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
)

// readStructured reads one event in the CloudEvents JSON format. raw is a value that
// checkJSON let pass.
func readStructured(raw []byte) *draft {
	d := newDraft()
	raw = raw[skipSpace(raw, 0):]
	if raw[0] != '{' {
		d.fail("event", "is not a JSON object")
		return d
	}
	var data, base64Data []byte
	eachMember(raw, func(name string, value []byte) {
		switch name {
		case memberData:
			data = d.keepOnce(name, data, value)
		case memberBase64:
			base64Data = d.keepOnce(name, base64Data, value)
		default:
			d.setMember(name, value)
		}
	})
	d.setJSONData(data, base64Data)
	return d
}

func (d *draft) keepOnce(name string, before, value []byte) []byte {
	if before != nil {
		d.fail(name, "is there twice")
	}
	return value
}

// setMember sets an attribute from a JSON value. null means that it is absent.
func (d *draft) setMember(name string, value []byte) {
	switch value[0] {
	case 'n':
	case '"':
		text, err := unquote(value)
		if err != nil {
			d.fail(name, err.Error())
		}
		d.setText(name, text)
	default:
		d.setTyped(name, value)
	}
}

// setTyped sets an attribute from a boolean or an integer.
func (d *draft) setTyped(name string, value []byte) {
	if d.field(name) != nil || name == attrTime || name == attrDataSchema || name == attrContentType || name == "subject" {
		d.fail(name, "is not a string")
		return
	}
	switch value[0] {
	case 't', 'f':
		d.set(name, &pb.CloudEventAttributeValue{
			Attr: &pb.CloudEventAttributeValue_CeBoolean{CeBoolean: value[0] == 't'},
		})
	case '{', '[':
		d.fail(name, "is an object or an array; attributes are strings, booleans or integers; put it into data")
	default:
		number, err := strconv.ParseInt(string(value), 10, 32)
		if err != nil {
			d.fail(name, "is not an integer between -2147483648 and 2147483647; send other numbers as strings")
			return
		}
		d.set(name, &pb.CloudEventAttributeValue{
			Attr: &pb.CloudEventAttributeValue_CeInteger{CeInteger: int32(number)},
		})
	}
}

// setJSONData sets the data from the two members that may hold it; nil is absent.
func (d *draft) setJSONData(data, base64Data []byte) {
	switch {
	case data != nil && base64Data != nil:
		d.fail(memberData, "and data_base64 are both there; send one of them")
	case base64Data != nil:
		d.setBase64(base64Data)
	case data != nil:
		d.setPlain(data)
	}
}

func (d *draft) setBase64(value []byte) {
	if value[0] == 'n' {
		return
	}
	if value[0] != '"' {
		d.fail(memberBase64, "is not a string")
		return
	}
	text, err := unquote(value)
	if err != nil {
		d.fail(memberBase64, err.Error())
		return
	}
	data, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		d.fail(memberBase64, "is not base64 as of RFC 4648, section 4, with padding")
		return
	}
	d.setData(data)
}

// setPlain sets the data from the member data: a JSON value that keeps its bytes, or the
// text of a string where the content type is not JSON. Without a content type the JSON
// format implies JSON, which the event has to say from here on.
func (d *draft) setPlain(value []byte) {
	if d.contentType() == "" {
		d.ce.Attributes[attrContentType] = stringValue("application/json")
	}
	switch {
	case isJSON(mediaType(d.contentType())):
		d.setData(value)
	case value[0] == 'n':
	case value[0] == '"':
		text, err := unquote(value)
		if err != nil {
			d.fail(memberData, err.Error())
			return
		}
		d.setData([]byte(text))
	default:
		d.fail(memberData, "is not a string, which data of a content type other than JSON must be; send bytes in data_base64")
	}
}

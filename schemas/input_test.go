package schemas

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// input is a record of an input topic, which decoder and JSON Schema must accept or refuse alike.
type input struct {
	json  string
	field string // the field that the error names; ok: the record is accepted; whole: the error is about all of it
	// decoderOnly says why the JSON Schema accepts what the decoder refuses: it cannot say it.
	decoderOnly string
}

const (
	ok    = "ok"
	whole = ""

	aboutNumbers = "in JSON Schema 1.0 and 1e0 are integers"
	aboutBytes   = "JSON Schema counts characters, not bytes"
	aboutSyntax  = "this is about the text, not about the value"
	aboutTime    = "the year 9999 may end in another zone"
	aboutDepth   = "JSON Schema does not say how deep a value is"
)

var (
	uid256 = strings.Repeat("u", 256)
	umlaut = strings.Repeat("ü", 129) // 258 bytes, 129 characters
)

// nested is a value of so many levels, arrays and objects in turn.
func nested(levels int) string {
	return strings.Repeat(`[{"a":`, levels/2) + strings.Repeat("[", levels%2) + "0" + strings.Repeat("]", levels%2) + strings.Repeat(`}]`, levels/2)
}

var connectionInputs = []input{
	{json: `{"type":"online","uid":"u","conn_id":1}`, field: ok},
	{json: `{"type":"online","uid":"u","conn_id":1,"device_flag":null,"node_id":null,"opened_at":null,"background":null,"timestamp":null}`, field: ok},
	{json: ` {"extra":[{"a":null}],"type":"offline","uid":"` + uid256 + `","conn_id":"` + uid256 + `","node_id":"","x":""}`, field: "node_id"},
	{json: `{"type":"offline","uid":"` + uid256 + `","conn_id":"` + uid256 + `","node_id":"n\u0000"}` + "\n", field: ok},
	{json: `{"type":"online","uid":"u","conn_id":1,"x":` + nested(maxDepth-1) + `}`, field: ok},
	{json: `{"type":"online","uid":"u","conn_id":1,"x":` + nested(maxDepth) + `}`, field: whole, decoderOnly: aboutDepth},
	{json: `{"type":"online","uid":"` + uid256 + `u","conn_id":1}`, field: "uid"},
	{json: `{"type":"online","uid":"` + umlaut + `","conn_id":1}`, field: "uid", decoderOnly: aboutBytes},
	{json: `{"type":"online","uid":"","conn_id":1}`, field: "uid"},
	{json: `{"type":"online","uid":"a\u0000","conn_id":1}`, field: "uid"},
	{json: `{"type":"online","uid":"a\u007f","conn_id":1}`, field: "uid"},
	{json: `{"type":"online","uid":"a\u0085","conn_id":1}`, field: "uid"},
	{json: `{"type":"online","uid":"a\u00a0\ufffd","conn_id":1}`, field: ok},
	{json: `{"type":"online","uid":7,"conn_id":1}`, field: "uid"},
	{json: `{"type":"online","conn_id":1}`, field: "uid"},
	{json: `{"type":"online","uid":null,"conn_id":1}`, field: "uid"},
	{json: `{"type":"online","uid":"u"}`, field: "conn_id"},
	{json: `{"type":"offline","uid":"u","conn_id":null}`, field: "conn_id"},
	{json: `{"type":"online","uid":"u","conn_id":9223372036854775807}`, field: ok},
	{json: `{"type":"online","uid":"u","conn_id":9223372036854775808}`, field: "conn_id"},
	{json: `{"type":"online","uid":"u","conn_id":-1}`, field: "conn_id"},
	{json: `{"type":"online","uid":"u","conn_id":1.0}`, field: "conn_id", decoderOnly: aboutNumbers},
	{json: `{"type":"online","uid":"u","conn_id":1.5}`, field: "conn_id"},
	{json: `{"type":"online","uid":"u","conn_id":1e3}`, field: "conn_id", decoderOnly: aboutNumbers},
	{json: `{"type":"online","uid":"u","conn_id":-0}`, field: "conn_id", decoderOnly: aboutNumbers},
	{json: `{"type":"online","uid":"u","conn_id":""}`, field: "conn_id"},
	{json: `{"type":"online","uid":"u","conn_id":"` + uid256 + `c"}`, field: "conn_id"},
	{json: `{"type":"online","uid":"u","conn_id":true}`, field: "conn_id"},
	{json: `{"type":"online","uid":"u","conn_id":[1]}`, field: "conn_id"},
	{json: `{"type":"online","uid":"u","conn_id":1,"node_id":{}}`, field: "node_id"},
	{json: `{"type":"online","uid":"u","conn_id":1,"device_flag":255}`, field: ok},
	{json: `{"type":"online","uid":"u","conn_id":1,"device_flag":256}`, field: "device_flag"},
	{json: `{"type":"online","uid":"u","conn_id":1,"device_flag":"1"}`, field: "device_flag"},
	{json: `{"type":"online","uid":"u","conn_id":1,"device_flag":-1}`, field: "device_flag"},
	{json: `{"type":"online","uid":"u","conn_id":1,"background":1}`, field: "background"},
	{json: `{"type":"online","uid":"u","conn_id":1,"background":true,"opened_at":"2026-01-02T03:04:05Z"}`, field: ok},
	{json: `{"type":"online","uid":"u","conn_id":1,"opened_at":-5}`, field: "opened_at"},
	{json: `{"type":"online","uid":"u","conn_id":1,"timestamp":0}`, field: ok},
	{json: `{"type":"online","uid":"u","conn_id":1,"timestamp":253402300799999}`, field: ok},
	{json: `{"type":"online","uid":"u","conn_id":1,"timestamp":253402300800000}`, field: "timestamp"},
	{json: `{"type":"online","uid":"u","conn_id":1,"timestamp":1767323045.5}`, field: "timestamp"},
	{json: `{"type":"online","uid":"u","conn_id":1,"timestamp":"1767323045"}`, field: "timestamp"},
	{json: `{"type":"online","uid":"u","conn_id":1,"timestamp":"2026-01-02T03:04:05.678901+08:00"}`, field: ok},
	{json: `{"type":"online","uid":"u","conn_id":1,"timestamp":"2026-01-02 03:04:05Z"}`, field: "timestamp"},
	{json: `{"type":"online","uid":"u","conn_id":1,"timestamp":"2026-01-02T03:04:05,5Z"}`, field: "timestamp"},
	{json: `{"type":"online","uid":"u","conn_id":1,"timestamp":"2026-01-02T3:04:05Z"}`, field: "timestamp"},
	{json: `{"type":"online","uid":"u","conn_id":1,"timestamp":"2026-02-30T03:04:05Z"}`, field: "timestamp"},
	{json: `{"type":"online","uid":"u","conn_id":1,"timestamp":"1969-12-31T23:59:59.999Z"}`, field: "timestamp"},
	{json: `{"type":"online","uid":"u","conn_id":1,"timestamp":"9999-12-31T23:59:59-01:00"}`, field: "timestamp", decoderOnly: aboutTime},
	{json: `{"type":"online","uid":"u","conn_id":1,"timestamp":"2026-01-02T03:04:05.Z"}`, field: "timestamp"},
	{json: `{"type":"online","uid":"u","conn_id":1,"timestamp":"2026-01-02T03:04:05"}`, field: "timestamp"},
	{json: `{"type":"online","uid":"u","conn_id":1,"timestamp":"2026-01-02T03:04:05+24:00"}`, field: "timestamp"},
	{json: `{"type":"online","uid":"u","conn_id":1,"timestamp":"2026-01-02T03:04:05+08:60"}`, field: "timestamp"},
	{json: `{"type":"online","uid":"u","conn_id":1,"timestamp":""}`, field: "timestamp"},
	{json: `{"type":"online","uid":"u","conn_id":1,"timestamp":false}`, field: "timestamp"},
	{json: `{"uid":"u","conn_id":1}`, field: "type"},
	{json: `{"type":null,"uid":"u","conn_id":1}`, field: "type"},
	{json: `{"type":"Online","uid":"u","conn_id":1}`, field: "type"},
	{json: `{"type":3,"uid":"u","conn_id":1}`, field: "type"},
	{json: `{"type":"heartbeat","uid":"u","conn_id":1}`, field: ok},
	{json: `{"type":"heartbeat","uid":"u","node_id":1}`, field: "conn_id"},
	{json: `{"type":"heartbeat","conn_id":1,"node_id":1}`, field: "uid"},
	{json: `{"type":"heartbeat","node_id":1}`, field: ok},
	{json: `{"type":"heartbeat","node_id":"gw-1","uid":null,"conn_id":null}`, field: ok},
	{json: `{"type":"heartbeat"}`, field: "node_id"},
	{json: `{"type":"heartbeat","node_id":null}`, field: "node_id"},
	{json: `{"type":"node_started","node_id":1}`, field: ok},
	{json: `{"uid":"u","type":"node_started","node_id":"gw","conn_id":5}`, field: ok},
	{json: `{"uid":5,"type":"node_started","node_id":"gw","conn_id":{}}`, field: ok},
	{json: `{"type":"node_started"}`, field: "node_id"},
	{json: `{"type":"node_started","node_id":null,"uid":"u","conn_id":1}`, field: "node_id"},
	{json: `{"\u0074ype":"on\u006cine","uid":"u","conn_id":1}`, field: ok},

	{json: ``, field: whole, decoderOnly: aboutSyntax},
	{json: ` `, field: whole, decoderOnly: aboutSyntax},
	{json: `null`, field: whole},
	{json: `[]`, field: whole},
	{json: `"online"`, field: whole},
	{json: `7`, field: whole},
	{json: `nope`, field: whole, decoderOnly: aboutSyntax},
	{json: `{"type":"online","uid":"u","conn_id":1`, field: whole, decoderOnly: aboutSyntax},
	{json: `{"type":"online","uid":"u","conn_id":1,}`, field: whole, decoderOnly: aboutSyntax},
	{json: `{"type":"online","uid":"u","conn_id":01}`, field: whole, decoderOnly: aboutSyntax},
	{json: `{"type":"online","uid":"u","conn_id":1}{}`, field: whole, decoderOnly: aboutSyntax},
	{json: `{"type":"online","uid":"u","conn_id":1}]`, field: whole, decoderOnly: aboutSyntax},
	{json: `{"type":"online","uid":"u","conn_id":1,"uid":"u"}`, field: whole, decoderOnly: aboutSyntax},
	{json: `{"type":"online","uid":"u","conn_id":1,"\u0075id":"u"}`, field: whole, decoderOnly: aboutSyntax},
	{json: `{"type":"online","uid":"u","conn_id":1,"x":{"a":1,"a":2}}`, field: whole, decoderOnly: aboutSyntax},
	{json: "{\"type\":\"online\",\"uid\":\"\xff\",\"conn_id\":1}", field: whole, decoderOnly: aboutSyntax},
	{json: "{\"type\":\"online\",\"uid\":\"u\",\"conn_id\":1,\"x\":\"\xc3\"}", field: whole, decoderOnly: aboutSyntax},
	{json: `{"type":"online","uid":"\ud800","conn_id":1}`, field: whole, decoderOnly: aboutSyntax},
	{json: "\ufeff" + `{"type":"online","uid":"u","conn_id":1}`, field: whole, decoderOnly: aboutSyntax},
}

var messageInputs = []input{
	{json: `{"channel_id":"c"}`, field: ok},
	{json: `{"channel_id":"c","header":null,"setting":null,"message_id":null,"message_idstr":null,"client_msg_no":null,
		"message_seq":null,"from_uid":null,"channel_type":null,"timestamp":null,"payload":null,"to_uids":null,"offline_push":null,"x":null}`, field: ok},
	{json: `{}`, field: "channel_id"},
	{json: `{"channel_id":null}`, field: "channel_id"},
	{json: `{"channel_id":""}`, field: "channel_id"},
	{json: `{"channel_id":7}`, field: "channel_id"},
	{json: `{"channel_id":"` + uid256 + `more"}`, field: ok},
	{json: `{"channel_id":"c\u0000"}`, field: ok},
	{json: `{"channel_id":"c","header":{}}`, field: ok},
	{json: `{"channel_id":"c","header":{"no_persist":1,"red_dot":0,"sync_once":null,"x":null,"y":1}}`, field: ok},
	{json: `{"channel_id":"c","header":{"no_persist":2}}`, field: "header.no_persist"},
	{json: `{"channel_id":"c","header":{"red_dot":true}}`, field: "header.red_dot"},
	{json: `{"channel_id":"c","header":{"sync_once":1.0}}`, field: "header.sync_once", decoderOnly: aboutNumbers},
	{json: `{"channel_id":"c","header":{"sync_once":"1"}}`, field: "header.sync_once"},
	{json: `{"channel_id":"c","header":[]}`, field: "header"},
	{json: `{"channel_id":"c","header":"x"}`, field: "header"},
	{json: `{"channel_id":"c","header":{"a":1,"a":1}}`, field: whole, decoderOnly: aboutSyntax},
	{json: `{"channel_id":"c","setting":255}`, field: ok},
	{json: `{"channel_id":"c","setting":256}`, field: "setting"},
	{json: `{"channel_id":"c","setting":1e1}`, field: "setting", decoderOnly: aboutNumbers},
	{json: `{"channel_id":"c","message_id":0}`, field: ok},
	{json: `{"channel_id":"c","message_id":18446744073709551615}`, field: ok},
	{json: `{"channel_id":"c","message_id":18446744073709551616}`, field: "message_id"},
	{json: `{"channel_id":"c","message_id":-1}`, field: "message_id"},
	{json: `{"channel_id":"c","message_id":1.5}`, field: "message_id"},
	{json: `{"channel_id":"c","message_id":true}`, field: "message_id"},
	{json: `{"channel_id":"c","message_id":{}}`, field: "message_id"},
	{json: `{"channel_id":"c","message_id":"any"}`, field: ok},
	{json: `{"channel_id":"c","message_id":""}`, field: ok},
	{json: `{"channel_id":"c","message_idstr":5}`, field: "message_idstr"},
	{json: `{"channel_id":"c","client_msg_no":5}`, field: "client_msg_no"},
	{json: `{"channel_id":"c","message_seq":18446744073709551615}`, field: ok},
	{json: `{"channel_id":"c","message_seq":18446744073709551616}`, field: "message_seq"},
	{json: `{"channel_id":"c","message_seq":"1"}`, field: "message_seq"},
	{json: `{"channel_id":"c","from_uid":""}`, field: ok},
	{json: `{"channel_id":"c","from_uid":"` + uid256 + `"}`, field: ok},
	{json: `{"channel_id":"c","from_uid":"` + uid256 + `u"}`, field: "from_uid"},
	{json: `{"channel_id":"c","from_uid":"a\n"}`, field: "from_uid"},
	{json: `{"channel_id":"c","from_uid":1}`, field: "from_uid"},
	{json: `{"channel_id":"c","channel_type":0}`, field: ok},
	{json: `{"channel_id":"c","channel_type":256}`, field: "channel_type"},
	{json: `{"channel_id":"c","channel_type":"1"}`, field: "channel_type"},
	{json: `{"channel_id":"c","timestamp":"2026-01-02T03:04:05.678Z"}`, field: ok},
	{json: `{"channel_id":"c","timestamp":"yesterday"}`, field: "timestamp"},
	{json: `{"channel_id":"c","timestamp":253402300800000}`, field: "timestamp"},
	{json: `{"channel_id":"c","payload":""}`, field: ok},
	{json: `{"channel_id":"c","payload":"aGVsbG8="}`, field: ok},
	{json: `{"channel_id":"c","payload":"YQ=="}`, field: ok},
	{json: `{"channel_id":"c","payload":"ab\/+"}`, field: ok},
	{json: `{"channel_id":"c","payload":"YQ"}`, field: "payload"},
	{json: `{"channel_id":"c","payload":"Y==="}`, field: "payload"},
	{json: `{"channel_id":"c","payload":"===="}`, field: "payload"},
	{json: `{"channel_id":"c","payload":"YQ=a"}`, field: "payload"},
	{json: `{"channel_id":"c","payload":"YQ==YQ=="}`, field: "payload"},
	{json: `{"channel_id":"c","payload":"ab_-"}`, field: "payload"},
	{json: `{"channel_id":"c","payload":"YWJj\n"}`, field: "payload"},
	{json: `{"channel_id":"c","payload":"YWJj\r\n\r\n"}`, field: "payload"},
	{json: `{"channel_id":"c","payload":7}`, field: "payload"},
	{json: `{"channel_id":"c","payload":{}}`, field: "payload"},
	{json: `{"channel_id":"c","to_uids":[]}`, field: ok},
	{json: `{"channel_id":"c","to_uids":["a",1,null,{},[],true,"","a\u0000"]}`, field: ok},
	{json: `{"channel_id":"c","to_uids":"a"}`, field: "to_uids"},
	{json: `{"channel_id":"c","to_uids":{}}`, field: "to_uids"},
	{json: `{"channel_id":"c","to_uids":["a",]}`, field: whole, decoderOnly: aboutSyntax},
	{json: `{"channel_id":"c","to_uids":["a"`, field: whole, decoderOnly: aboutSyntax},
	{json: `{"channel_id":"c","offline_push":false}`, field: ok},
	{json: `{"channel_id":"c","offline_push":0}`, field: "offline_push"},
	{json: `{"channel_id":"c","x":{"deep":[1,{"a":null}]},"y":1.50e3}`, field: ok},
	{json: `{"channel_id":"c","y":"` + strings.Repeat(`[\"{`, maxDepth) + `","x":` + nested(maxDepth-1) + `,"z":` + nested(maxDepth-1) + `}`, field: ok},
	{json: `{"channel_id":"c","x":` + nested(maxDepth) + `}`, field: whole, decoderOnly: aboutDepth},
	{json: `{"channel_id":"c","to_uids":[` + nested(maxDepth-1) + `]}`, field: whole, decoderOnly: aboutDepth},
	{json: `{"channel_id":"c","x":{"a":1,"a":2}}`, field: whole, decoderOnly: aboutSyntax},
	{json: `{"channel_id":"c","x":1,"x":1}`, field: whole, decoderOnly: aboutSyntax},
	{json: "{\"channel_id\":\"c\",\"x\":\"\xff\"}", field: whole, decoderOnly: aboutSyntax},
	{json: `{"channel_id":"c"} x`, field: whole, decoderOnly: aboutSyntax},
	{json: `[{"channel_id":"c"}]`, field: whole},
	{json: ``, field: whole, decoderOnly: aboutSyntax},
}

func TestInputs(t *testing.T) {
	t.Run("connection", func(t *testing.T) {
		checkInputs(t, connectionInputs, compileSchema(t, "connection"), func(b []byte) error {
			_, err := DecodeConnection(b, 1)
			return err
		})
	})
	t.Run("message", func(t *testing.T) {
		checkInputs(t, messageInputs, compileSchema(t, "message"), func(b []byte) error {
			_, err := DecodeMessage(b, Source{Topic: "t"})
			return err
		})
	})
}

func checkInputs(t *testing.T, inputs []input, schema *jsonschema.Schema, decode func([]byte) error) {
	for _, in := range inputs {
		// The record must not be written to, and a second reader must find nothing of the first.
		for range 2 {
			record := []byte(in.json)
			err := decode(record)
			if string(record) != in.json {
				t.Fatalf("%.200s: decoding has changed the record to %.200s", in.json, record)
			}
			checkField(t, in, err)
		}
		value, err := jsonschema.UnmarshalJSON(bytes.NewReader([]byte(in.json)))
		if err != nil {
			if in.decoderOnly != aboutSyntax {
				t.Errorf("%.200s: the test's own JSON: %v", in.json, err)
			}
			continue
		}
		want := in.field == ok || in.decoderOnly != ""
		if err := schema.Validate(value); (err == nil) != want {
			t.Errorf("%.200s: schema accepts it: %t, want %t: %v", in.json, err == nil, want, err)
		}
	}
}

func checkField(t *testing.T, in input, err error) {
	t.Helper()
	if in.field == ok {
		if err != nil {
			t.Errorf("%.200s: error %v, want none", in.json, err)
		}
		return
	}
	invalid, is := errors.AsType[*InvalidError](err)
	if !is {
		t.Errorf("%.200s: error %v, want an InvalidError", in.json, err)
		return
	}
	if invalid.Field != in.field || invalid.Reason == "" {
		t.Errorf("%.200s: error about field %q (%s), want %q", in.json, invalid.Field, invalid.Reason, in.field)
	}
}

// A record's content must not leak into an error, which is logged and stands in a dead letter's header.
func TestErrorsHoldNoValues(t *testing.T) {
	const secret = "s3cr3t"
	for _, field := range []string{
		"type", "uid", "conn_id", "node_id", "device_flag", "opened_at", "background", "timestamp", "header", "setting",
		"message_id", "message_idstr", "client_msg_no", "message_seq", "from_uid", "channel_id", "channel_type", "payload",
		"to_uids", "offline_push",
	} {
		for _, value := range []string{
			`"s3cr3t\u0000"`, `{"s3cr3t":1}`, `["s3cr3t"]`, `"s3cr3t`, `s3cr3t`, `{"s3cr3t":1,"s3cr3t":2}`, `"s3cr3t` + "\xff\"", `"s3cr3t" "s3cr3t"`,
		} {
			record := `{"` + field + `":` + value + `}`
			_, err := DecodeConnection([]byte(record), 0)
			_, err2 := DecodeMessage([]byte(record), Source{})
			_, err3 := DecodeMessagesBody([]byte("[" + record + "]"))
			_, err4 := DecodeOnlineStatusBody([]byte("[" + value + "]"))
			for _, err := range []error{err, err2, err3, err4} {
				if err != nil && strings.Contains(err.Error(), secret) {
					t.Errorf("%s: the error holds the value: %v", record, err)
				}
			}
		}
	}
}

func TestSyntaxErrorsNameTheByte(t *testing.T) {
	for _, c := range []struct{ json, want string }{
		{``, "the record is empty; send one JSON object"},
		{`[]`, "the record is no JSON object; send one object"},
		{`{"a":1`, "the JSON is not complete at the record's end, byte 6"},
		{`{"a":1 "b":2}`, "the record is not valid JSON at byte 7; send one JSON object"},
		{"{\"a\":\"x\xff\"}", "the record is not UTF-8 at byte 7; send JSON in UTF-8"},
		{`{"a":1,"a":2}`, "an object has a name for the second time at byte 7; each name may stand once"},
		{`{"type":"online","uid":"u","conn_id":1} 5`, "data follows the JSON value, which ends at byte 39; send one value a record"},
	} {
		_, err := DecodeConnection([]byte(c.json), 0)
		if err == nil || err.Error() != c.want {
			t.Errorf("%s: error %q, want %q", c.json, err, c.want)
		}
	}
}

func compileSchema(t *testing.T, name string) *jsonschema.Schema {
	t.Helper()
	text, err := Schema(name)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatalf("schema %s: %v", name, err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource(name+".json", doc); err != nil {
		t.Fatalf("schema %s: %v", name, err)
	}
	schema, err := c.Compile(name + ".json")
	if err != nil {
		t.Fatalf("schema %s: %v", name, err)
	}
	return schema
}

// TestDefaultTime: a record's own timestamp, which producers set as they like, is brought into the range that receivers are told.
func TestDefaultTime(t *testing.T) {
	for recordTime, want := range map[int64]int64{-1: 0, 0: 0, 1_700_000_000_000: 1_700_000_000_000, maxTime: maxTime, maxTime + 1: maxTime, 1_700_000_000_000_000: maxTime} {
		c, err := DecodeConnection([]byte(`{"type":"online","uid":"u","conn_id":1}`), recordTime)
		if err != nil || c.Time != want {
			t.Errorf("a connection of a record of %d is of %d (error %v), want %d", recordTime, c.Time, err, want)
		}
		m, err := DecodeMessage([]byte(`{"channel_id":"u"}`), Source{Topic: "t", Time: recordTime})
		if err != nil {
			t.Fatal(err)
		}
		items, err := DecodeMessagesBody(append(append([]byte{'['}, m.Item...), ']'))
		if err != nil || items[0].Timestamp != want/1000 {
			t.Errorf("a message of a record of %d is written as %s (error %v)", recordTime, m.Item, err)
		}
	}
}

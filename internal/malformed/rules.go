package malformed

import (
	"encoding/binary"
	"strconv"
	"strings"
	"unicode/utf16"

	"github.com/offhook/offhook/schemas"
)

// connectionFields and messageFields are the names that have a meaning.
var (
	connectionFields = []string{`"type"`, `"uid"`, `"conn_id"`, `"node_id"`, `"device_flag"`, `"background"`, `"opened_at"`, `"timestamp"`}
	messageFields    = []string{
		`"header"`, `"setting"`, `"message_id"`, `"message_idstr"`, `"client_msg_no"`, `"message_seq"`, `"from_uid"`, `"channel_id"`,
		`"channel_type"`, `"timestamp"`, `"payload"`, `"to_uids"`, `"offline_push"`,
	}
	headerFields = []string{`"no_persist"`, `"red_dot"`, `"sync_once"`}
)

func (g *Generator) field(message bool) string {
	if message {
		return pick(g, messageFields)
	}
	return pick(g, connectionFields)
}

var numbers = []string{
	"0", "1", "-0", "-1", "2", "255", "256", "65536", "1.0", "1.5", "0.0", "1e0", "1e3", "1E+2", "1e-2", "1e400", "-1e400",
	"01", "00", "+1", ".5", "1.", "1e", "1e+", "0x10", "1_000", "Infinity", "-Infinity", "NaN", "-",
	"2147483647", "2147483648", "4294967296", "9007199254740993", "9223372036854775807", "9223372036854775808",
	"18446744073709551615", "18446744073709551616", "99999999999999999999", "184467440737095516160",
	"99999999999", "100000000000", "253402300799", "253402300800", "253402300799999", "253402300800000", "1700000000000000",
	repeat("9", 400), "0." + repeat("3", 400), "1" + repeat("0", 308),
}

var texts = []string{
	``, ` `, `bad`, `0`, `1`, `01`, `-1`, `1.5`, `+1`, `9223372036854775807`, `9223372036854775808`, `18446744073709551615`, `18446744073709551616`,
	`true`, `null`, `a\u0000b`, `\u0000`, `\u0001`, `\u001f`, `\u007f`, `\u0085`, `\u009f`, `\u00a0`, `\u00ad`, `\u200b`, `\u2028`, `\u202e`, `\ufeff`, `\ufffd`, `\uffff`,
	"a\x00b", "\x01", "\x1f", "\x7f", "\n", "\t", "\u0085", "\u2028", "\ufeff", "\ufffd", "\U0001f600", "e\u0301", `bad\nbad`, `\"\\\/\b\f\n\r\t`, `bad-\u0031`,
	`\ud83d\ude00`, `\uD83D\uDE00`, `\ud800`, `\udc00`, `\ud800\ud800`, `\ude00\ud83d`, `\ud83d\u0041`, `\ud83dx`, `\ud83d\n`,
	"\xff", "\xc0\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xe2\x82", "\x80", "bad\xfe",
	`\x41`, `\u12`, `\u00g0`, `\U00000041`, `\'`, `\`,
	repeat("u", 255), repeat("u", 256), repeat("u", 257), repeat("é", 256), repeat("é", 258), repeat("\U0001f600", 256), repeat(`\u00e9`, 6*128), repeat(`\u00e9`, 6*129), repeat("long ", 3000),
	// times
	`2026-01-02T03:04:05Z`, `2026-01-02T03:04:05.678Z`, `2026-01-02T03:04:05.` + repeat("1", 30) + `Z`, `2026-01-02T03:04:05+23:59`, `2026-01-02T03:04:05-23:59`, `2026-01-02T03:04:05+24:00`, `2026-01-02T03:04:05+00:60`,
	`2026-01-02t03:04:05z`, `2026-01-02 03:04:05Z`, `2026-01-02T03:04:05`, `2026-01-02T3:04:05Z`, `2026-01-02T03:04:05,678Z`, `2026-01-02T03:04:05.Z`, `2026-01-02T03:04:60Z`, `2026-01-02T24:00:00Z`, `2026-02-29T00:00:00Z`,
	`2024-02-29T00:00:00Z`, `2026-13-01T00:00:00Z`, `2026-00-01T00:00:00Z`, `2026-01-00T00:00:00Z`, `1970-01-01T00:00:00Z`, `1969-12-31T23:59:59.999Z`, `1970-01-01T00:00:00+00:01`, `1969-12-31T23:59:59-00:01`, `0000-01-01T00:00:00Z`,
	`9999-12-31T23:59:59.999Z`, `9999-12-31T23:59:59.9999Z`, `9999-12-31T23:59:59-00:01`, `10000-01-01T00:00:00Z`, `+2026-01-02T03:04:05Z`, `2026-W01-1T00:00:00Z`, ` 2026-01-02T03:04:05Z`, `2026-01-02T03:04:05ZZ`, `2026-01-02T03:04:05 +00:00`, `٢٠٢٦-01-02T03:04:05Z`,
	// base64
	`QQ==`, `QQ=`, `QQ`, `QR==`, `QUI=`, `QUJ=`, `QUJD`, `QUJD=`, `QUJDQ===`, `====`, `=`, `Q=Q=`, `QUJD\nQUJD`, "QUJD\nQUJD", `QUJD QUJD`, `-_-_`, `Q\u0055JD`, `QUJ\u0000`, `QUJé`, `\/\/\/\/`,
	// types
	`online`, `Online`, `ONLINE`, ` online`, `online `, `online\u0000`, `o\u006eline`, `offline`, `heartbeat`, `node_started`, `node-started`, `dance`,
}

var others = []string{
	`true`, `false`, `null`, `True`, `TRUE`, `nul`, `nulll`, `tru`, `undefined`, ``, ` `, `{}`, `[]`, `{"a":1}`, `{"a":1,"a":2}`, `{"a":{"b":1,"\u0062":2}}`, `[null]`, `[[]]`, `[1,"bad",null,{},true]`,
	`[1,]`, `[,1]`, `[1 2]`, `{,}`, `{"a"}`, `{"a":}`, `{a:1}`, `{"a":1,}`, `{"a" 1}`, `{1:2}`, `{null:1}`, `'bad'`, `bad`, `/* */1`, `1//`, `"bad`, `bad"`, `"bad""`, `{`, `[`, `}`, `]`, `[}`, `{]`, `"\`,
}

// value is any value, mostly a wrong one.
func (g *Generator) value() string {
	switch g.rand.IntN(8) {
	case 0, 1:
		return pick(g, numbers)
	case 2, 3, 4:
		return `"` + pick(g, texts) + `"`
	case 5:
		return `[` + g.value() + `,` + g.value() + `]`
	case 6:
		return `{` + pick(g, append(headerFields, `"more"`, `"`+pick(g, texts)+`"`)) + `:` + g.value() + `}`
	}
	return pick(g, others)
}

// recipients is an array of texts that are uids or none.
func (g *Generator) recipients() string {
	var b strings.Builder
	b.WriteByte('[')
	for i := range g.rand.IntN(8) {
		if i > 0 {
			b.WriteByte(',')
		}
		switch g.rand.IntN(4) {
		case 0:
			b.WriteString(g.value())
		case 1:
			b.WriteString(`"` + pick(g, texts) + `"`)
		default:
			b.WriteString(quote(g.uid()))
		}
	}
	b.WriteByte(']')
	return b.String()
}

var fieldRules = []rule{
	{"a field's value", 300, func(g *Generator, r *Record) {
		r.Value = g.good(r.Message).set(g.field(r.Message), g.value()).json()
	}},
	{"several fields' values", 40, func(g *Generator, r *Record) {
		o := g.good(r.Message)
		for range 2 + g.rand.IntN(4) {
			o = o.set(g.field(r.Message), g.value())
		}
		r.Value = o.json()
	}},
	{"a field of the header", 40, func(g *Generator, r *Record) {
		r.Message = true
		header := object{{pick(g, headerFields), g.value()}}
		for range g.rand.IntN(3) {
			header = append(header, member{pick(g, append(headerFields, `"RED_DOT"`, `"red\u005fdot"`, `"more"`)), pick(g, []string{"0", "1", "2", "null", `"1"`, "true"})})
		}
		r.Value = g.good(true).set(`"header"`, string(header.json())).json()
	}},
	{"recipients", 60, func(g *Generator, r *Record) {
		r.Message = true
		r.Value = g.good(true).set(`"to_uids"`, g.recipients()).json()
	}},
	{"many recipients", 2, func(g *Generator, r *Record) {
		r.Message = true
		r.Value = g.good(true).set(`"to_uids"`, g.uids(1000+g.rand.IntN(3000))).json()
	}},
	{"a missing field", 40, func(g *Generator, r *Record) {
		o := g.good(r.Message)
		i := g.rand.IntN(len(o))
		r.Value = append(o[:i:i], o[i+1:]...).json()
	}},
	{"a name twice", 40, func(g *Generator, r *Record) {
		o := g.good(r.Message)
		again := pick(g, o)
		if g.chance(50) { // the same name, otherwise written
			c := again.name[1]
			again.name = `"\u00` + strconv.FormatInt(int64(c), 16) + again.name[2:]
		}
		if g.chance(30) {
			again.value = pick(g, []string{"null", "1", `"bad"`})
		}
		r.Value = append(o, again).json()
	}},
	{"a name in other letters", 30, func(g *Generator, r *Record) {
		o := g.good(r.Message)
		i := g.rand.IntN(len(o))
		name := o[i].name
		o[i].name = pick(g, []string{
			strings.ToUpper(name), `"` + strings.ToUpper(name[1:2]) + name[2:], strings.ReplaceAll(name, "_", ""), strings.ReplaceAll(name, "_", "-"),
			`" ` + name[1:], strings.ReplaceAll(name, "i", "ı"), strings.ReplaceAll(name, `"`, `'`), strings.Trim(name, `"`), `"` + name,
		})
		r.Value = o.json()
	}},
	{"a field beyond the known", 60, func(g *Generator, r *Record) {
		name := `"` + pick(g, texts) + `"`
		if g.chance(50) {
			name = `"more"`
		}
		r.Value = append(g.good(r.Message), member{name, g.value()}).json()
	}},
	{"many fields", 2, func(g *Generator, r *Record) {
		o := g.good(r.Message)
		for i := range 20 + g.rand.IntN(2000) {
			o = append(o, member{quote("more" + strconv.Itoa(i)), "1"})
		}
		if g.chance(30) {
			o = append(o, pick(g, o))
		}
		r.Value = o.json()
	}},
	{"all fields null", 4, func(g *Generator, r *Record) {
		o := g.good(r.Message)
		for i := range o {
			o[i].value = "null"
		}
		r.Value = o.json()
	}},
}

var documentRules = []rule{
	{"something before the document", 20, func(g *Generator, r *Record) {
		before := pick(g, []string{"\ufeff", "\x00", " \t\r\n", "\v", "\f", "\u00a0", ",", "//\n", "\xff\xfe", "{}", "[", ")]}',\n", "\x1e"})
		r.Value = append([]byte(before), g.good(r.Message).json()...)
	}},
	{"something behind the document", 30, func(g *Generator, r *Record) {
		behind := pick(g, []string{"\x00", " ", "\n", "\r\n\t ", "\v", ",", "}", "]", "{}", " null", "garbage", "\ufeff", "\xff", "//", string(g.good(r.Message).json()), "\n" + string(g.good(r.Message).json())})
		r.Value = append(g.good(r.Message).json(), behind...)
	}},
	{"no object", 25, func(g *Generator, r *Record) {
		if g.chance(30) {
			r.Value = append(append([]byte{'['}, g.good(r.Message).json()...), ']')
			return
		}
		r.Value = []byte(g.value())
	}},
	{"an empty value", 8, func(_ *Generator, r *Record) { r.Value = []byte{} }},
	{"blanks alone", 4, func(g *Generator, r *Record) { r.Value = []byte(repeat(" \n\t", 1+g.rand.IntN(100))) }},
	{"punctuation", 30, func(g *Generator, r *Record) {
		text := string(g.good(r.Message).json())
		old := pick(g, []string{`,`, `:`, `"`, `{`, `}`})
		from := pick(g, []string{`,,`, ``, `;`, ` `, `'`, `=`, `[`, `]`, `\`, "\n", "\u00a0"})
		r.Value = []byte(replaceNth(g, text, old, from))
	}},
	{"blanks between", 10, func(g *Generator, r *Record) {
		blank := pick(g, []string{" ", "\n", "\r\n", "\t", "\v", "\f", "\u00a0", "\x00"})
		text := strings.NewReplacer(`:`, blank+`:`+blank, `,`, blank+`,`+blank).Replace(string(g.good(r.Message).json()))
		r.Value = []byte(blank + text + blank)
	}},
	{"another encoding", 6, func(g *Generator, r *Record) {
		text := utf16.Encode([]rune(string(g.good(r.Message).json())))
		for _, u := range text {
			if g.n%2 == 0 {
				r.Value = binary.LittleEndian.AppendUint16(r.Value, u)
			} else {
				r.Value = binary.BigEndian.AppendUint16(r.Value, u)
			}
		}
	}},
	{"bytes of no meaning", 10, func(g *Generator, r *Record) {
		r.Value = make([]byte, 1+g.rand.IntN(300))
		for i := range r.Value {
			r.Value[i] = byte(g.rand.Uint32())
		}
	}},
	{"deep nesting", 4, func(g *Generator, r *Record) {
		depth := pick(g, []int{50, 498, 499, 500, 501, 512, 1000, 9_998, 9_999, 10_000, 10_001, 20_000, 100_000})
		open, closed := "[", "]"
		if g.chance(30) {
			open, closed = `{"a":`, "}"
		}
		value := strings.Repeat(open, depth)
		if open != "[" {
			value += "1"
		}
		if g.chance(80) {
			value += strings.Repeat(closed, depth)
		}
		name := pick(g, []string{`"more"`, g.field(r.Message), `"to_uids"`, `"header"`})
		r.Value = g.good(r.Message).set(name, value).json()
	}},
}

// replaceNth puts with in the place of one old of text.
func replaceNth(g *Generator, text, old, with string) string {
	at := 0
	for range 1 + g.rand.IntN(strings.Count(text, old)+1) {
		if i := strings.Index(text[at:], old); i >= 0 {
			at += i + len(old)
		}
	}
	if at == 0 {
		return text + with
	}
	return text[:at-len(old)] + with + text[at:]
}

var recordRules = []rule{
	{"a null value", 10, func(_ *Generator, r *Record) { r.Value = nil }},
	{"an odd key", 10, func(g *Generator, r *Record) {
		r.Value = g.good(r.Message).json()
		r.Key = []byte(pick(g, []string{"", "\x00", "\xff\xfe", "{}", repeat("k", 300), "key\nkey"}))
	}},
	{"odd headers", 30, func(g *Generator, r *Record) {
		r.Value = g.good(r.Message).json()
		g.headers(r)
	}},
	{"odd headers of a wrong record", 20, func(g *Generator, r *Record) {
		r.Value = g.good(r.Message).set(g.field(r.Message), g.value()).json()
		g.headers(r)
	}},
	{"a size about the limit", 3, func(g *Generator, r *Record) {
		if g.chance(90) {
			r.Value = g.good(r.Message).set(`"more"`, `""`).json()
		}
		g.fill(r, g.maxBytes+pick(g, []int{-1, 0, 1, 2, g.maxBytes/2 + g.rand.IntN(g.maxBytes/2)}))
	}},
}

func (g *Generator) headers(r *Record) {
	for range 1 + g.rand.IntN(3) {
		r.Headers = append(r.Headers, pick(g, []schemas.Header{
			{Key: "", Value: []byte("no name")}, {Key: "no value"}, {Key: "empty", Value: []byte{}}, {Key: "\xff", Value: []byte("\xff\x00")}, {Key: "v", Value: []byte("99")},
			{Key: "v", Value: []byte("1")}, {Key: "source-offset", Value: []byte("bad")}, {Key: "reason", Value: []byte("bad")}, {Key: "sink", Value: []byte("bad")},
			{Key: "traceparent", Value: []byte("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")}, {Key: "traceparent", Value: []byte("00-bad")},
			{Key: "traceparent", Value: []byte("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nHost: bad")}, {Key: "Traceparent", Value: []byte("bad")},
			{Key: "webhook-id", Value: []byte("bad")}, {Key: "many", Value: []byte(repeat("h", 2000))},
		}))
	}
}

// fill makes the record so large, by its key, a header or its value.
func (g *Generator) fill(r *Record, size int) {
	left := size - r.Size()
	if left <= 0 {
		return
	}
	const text, empty = "many a letter ", `"more":""`
	at := strings.LastIndex(string(r.Value), empty)
	switch {
	case at >= 0 && g.chance(60):
		at += len(empty) - 1
		r.Value = []byte(string(r.Value[:at]) + repeat(text, left) + string(r.Value[at:]))
	case g.chance(50):
		r.Key = []byte(repeat(text, left))
	default:
		const name = "h"
		r.Key = []byte{} // Next would give it one
		r.Headers = append(r.Headers, schemas.Header{Key: name, Value: []byte(repeat(text, max(left-len(name), 0)))})
	}
	if r.Key == nil {
		r.Key = []byte{}
	}
}

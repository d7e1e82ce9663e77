package malformed

import (
	"fmt"
	"strconv"
)

// member is a name and its value, both as JSON has them.
type member struct{ name, value string }

// object is a JSON object as it is to be written, right or wrong.
type object []member

func (o object) json() []byte {
	b := []byte{'{'}
	for i, m := range o {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, m.name...)
		b = append(b, ':')
		b = append(b, m.value...)
	}
	return append(b, '}')
}

// find is where a name stands; -1: nowhere.
func (o object) find(name string) int {
	for i, m := range o {
		if m.name == name {
			return i
		}
	}
	return -1
}

// set gives a name a value, which it has from then on.
func (o object) set(name, value string) object {
	if i := o.find(name); i >= 0 {
		o[i].value = value
		return o
	}
	return append(o, member{name, value})
}

func quote(text string) string { return strconv.Quote(text) } // of ASCII that JSON quotes alike

func (g *Generator) uid() string { return "bad-" + strconv.Itoa(g.rand.IntN(200)) }

// good is a valid record's value.
func (g *Generator) good(message bool) object {
	var o object
	if message {
		o = g.goodMessage()
	} else {
		o = g.goodConnection()
	}
	if g.chance(20) {
		g.rand.Shuffle(len(o), func(i, j int) { o[i], o[j] = o[j], o[i] })
	}
	return o
}

func (g *Generator) goodConnection() object {
	id := func() string {
		if g.chance(50) {
			return strconv.Itoa(g.rand.IntN(5))
		}
		return quote("bad-conn-" + strconv.Itoa(g.rand.IntN(5)))
	}
	kind := pick(g, []string{"online", "online", "offline", "heartbeat", "node_started"})
	o := object{{`"type"`, quote(kind)}}
	if kind != "node_started" && (kind != "heartbeat" || g.chance(95)) {
		o = append(o, member{`"uid"`, quote(g.uid())}, member{`"conn_id"`, id()})
	}
	o = append(o, member{`"node_id"`, quote(pick(g, []string{"bad-node-x", "bad-node-y", "bad-node-z"}))})
	if g.chance(70) {
		o = append(o, member{`"device_flag"`, strconv.Itoa(g.rand.IntN(4))})
	}
	if g.chance(30) {
		o = append(o, member{`"background"`, pick(g, []string{"true", "false"})})
	}
	if g.chance(30) {
		o = append(o, member{`"opened_at"`, g.time()})
	}
	if g.chance(60) {
		o = append(o, member{`"timestamp"`, g.time()})
	}
	return o
}

func (g *Generator) time() string {
	at := 1_700_000_000 + int64(g.rand.IntN(1000))
	switch g.rand.IntN(3) {
	case 0:
		return strconv.FormatInt(at, 10)
	case 1:
		return strconv.FormatInt(at*1000+int64(g.rand.IntN(1000)), 10)
	}
	return fmt.Sprintf(`"2023-11-14T22:%02d:%02d.%dZ"`, g.rand.IntN(60), g.rand.IntN(60), g.rand.IntN(1000))
}

func (g *Generator) goodMessage() object {
	o := object{
		{`"client_msg_no"`, quote("no." + strconv.Itoa(g.n))},
		{`"from_uid"`, quote(g.uid())},
		{`"channel_id"`, quote("bad-group-" + strconv.Itoa(g.rand.IntN(5)))},
		{`"channel_type"`, "2"},
	}
	if g.chance(20) {
		o = o.set(`"channel_type"`, "1").set(`"channel_id"`, quote(g.uid()))
	}
	if g.chance(60) {
		o = append(o, member{`"to_uids"`, g.uids(g.rand.IntN(6))})
	}
	if g.chance(50) {
		o = append(o, member{`"header"`, pick(g, []string{`{}`, `{"red_dot":1}`, `{"no_persist":0,"red_dot":1,"sync_once":0}`, `{"more":[1]}`})})
	}
	for _, optional := range []member{
		{`"setting"`, strconv.Itoa(g.rand.IntN(256))},
		{`"message_id"`, pick(g, []string{strconv.Itoa(g.rand.Int()), quote(strconv.Itoa(g.rand.Int())), quote("bad-id")})},
		{`"message_idstr"`, quote(strconv.Itoa(g.rand.IntN(1000)))},
		{`"message_seq"`, strconv.Itoa(g.rand.IntN(1000))},
		{`"timestamp"`, g.time()},
		{`"payload"`, pick(g, []string{`"aGVsbG8="`, `""`, `"QUJD"`, `"QQ=="`})},
		{`"offline_push"`, pick(g, []string{"true", "true", "false"})},
		{`"more"`, pick(g, []string{`"text"`, `{"a":[1,2.5,-3e7,null]}`, `null`, `"é \u00e9"`})},
	} {
		if g.chance(40) {
			o = append(o, optional)
		}
	}
	return o
}

// uids is an array of n uids.
func (g *Generator) uids(n int) string {
	b := []byte{'['}
	for i := range n {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, quote(g.uid())...)
	}
	return string(append(b, ']'))
}

package oracle

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/offhook/offhook/schemas"
)

const testRecords = 800

func judgeRun(t *testing.T, r *run) Report {
	t.Helper()
	o, err := r.oracle()
	if err != nil {
		t.Fatal(err)
	}
	return o.Judge()
}

func TestCleanRun(t *testing.T) {
	for seed := range uint64(15) {
		p := newPipeline(seed)
		p.traffic(testRecords)
		r := judgeRun(t, &p.run)
		if r.Wrong() {
			t.Fatalf("seed %d: %v\n%v", seed, r.Counts, r.Findings[:min(len(r.Findings), 20)])
		}
		if r.Expired == 0 || r.Rejected == 0 || r.DeadLettered == 0 || r.Repeated == 0 ||
			r.Events[onlineStatus] == 0 || r.Events[msgOffline] == 0 || r.Events[msgNotify] == 0 {
			t.Fatalf("seed %d shows little: %+v", seed, r)
		}
		var delivered, expected int64
		for _, event := range []string{onlineStatus, msgOffline, msgNotify} {
			delivered += r.Delivered[event]
			expected += r.Events[event]
		}
		if r.Inputs != int64(len(p.inputs)) || r.Acks != r.Inputs || r.InboxRecords != int64(len(p.inbox)) || r.Requests != int64(len(p.requests)) ||
			delivered+r.DeadLettered != expected {
			t.Errorf("seed %d: %+v", seed, r)
		}
	}
}

// spot is an item of a taken request.
type spot struct {
	request, item int
	text          string
}

func items(t *testing.T, r Request) []json.RawMessage {
	var list []json.RawMessage
	if err := json.Unmarshal(r.Body, &list); err != nil {
		t.Fatal(err)
	}
	return list
}

// spots are the items of an event in the order of their first taking, of all partitions or of those of one key.
func (r *run) spots(t *testing.T, event string) []spot {
	seen := make(map[string]bool)
	var spots []spot
	for n, req := range r.requests {
		if req.Event != event || !req.Taken || seen[req.ID] {
			continue
		}
		seen[req.ID] = true
		for i, item := range items(t, req) {
			spots = append(spots, spot{n, i, string(item)})
		}
	}
	return spots
}

// set puts another item into a request and its repeats.
func (r *run) set(t *testing.T, s spot, item string) {
	id := r.requests[s.request].ID
	list := items(t, r.requests[s.request])
	list[s.item] = json.RawMessage(item)
	for i := range r.requests {
		if r.requests[i].ID == id {
			parts := make([][]byte, len(list))
			for k := range list {
				parts[k] = list[k]
			}
			r.requests[i].Body = schemas.AppendBody(nil, parts)
		}
	}
}

func (r *run) dropRequests(id string) {
	r.requests = slices.DeleteFunc(r.requests, func(q Request) bool { return q.ID == id })
}

// uidOf is the uid of an onlinestatus item.
func uidOf(item string) string {
	parts := strings.Split(strings.Trim(item, `"`), "-")
	return strings.Join(parts[:len(parts)-5], "-")
}

// newID is an id behind all others of a lane.
func newID(event string, partition int32) string {
	return fmt.Sprintf("%x-%d-%d-%d", topicIDs[event], partition, 1_000_000, 1_000_000)
}

// planted is a fault that is planted in a run: what must be found, at least, with texts that the finding must have; other
// kinds may come with it.
type planted struct {
	kind  Kind
	count int64 // exactly, 0: any
	texts []string
	also  []Kind
}

var faults = map[string]func(t *testing.T, p *pipeline) planted{
	"a batch of statuses is dropped": func(t *testing.T, p *pipeline) planted { return dropBatch(t, p, onlineStatus) },
	"a batch of messages is dropped": func(t *testing.T, p *pipeline) planted { return dropBatch(t, p, msgNotify) },
	"a push is dropped":              func(t *testing.T, p *pipeline) planted { return dropBatch(t, p, msgOffline) },
	"two statuses are swapped": func(t *testing.T, p *pipeline) planted {
		last := make(map[string]spot)
		for _, s := range p.spots(t, onlineStatus) {
			if was, is := last[uidOf(s.text)]; is && was.text != s.text {
				p.set(t, was, s.text)
				p.set(t, s, was.text)
				return planted{kind: OutOfOrder, texts: []string{"user.onlinestatus " + uidOf(s.text) + "-"}}
			}
			last[uidOf(s.text)] = s
		}
		t.Fatal("no two statuses")
		return planted{}
	},
	"two messages are swapped": func(t *testing.T, p *pipeline) planted {
		type key struct {
			from      string
			partition int32
		}
		last := make(map[key]spot)
		for _, s := range p.spots(t, msgNotify) {
			var m struct {
				MessageID int    `json:"message_id"`
				From      string `json:"from_uid"`
			}
			if err := json.Unmarshal([]byte(s.text), &m); err != nil {
				t.Fatal(err)
			}
			if strings.Count(string(bytes.Join(bodies(p.requests), nil)), fmt.Sprintf(`"message_id":%d,`, m.MessageID)) > 1 {
				continue // it is there twice, or repeated
			}
			k := key{m.From, p.inputs[m.MessageID].Partition}
			if was, is := last[k]; is {
				p.set(t, was, s.text)
				p.set(t, s, was.text)
				return planted{kind: OutOfOrder, texts: []string{fmt.Sprintf("order key %q", m.From)}}
			}
			last[k] = s
		}
		t.Fatal("no two messages")
		return planted{}
	},
	"a count is off by one": func(t *testing.T, p *pipeline) planted {
		s := p.spots(t, onlineStatus)[p.IntN(20)]
		dash := strings.LastIndexByte(s.text, '-')
		wrong := s.text[:dash] + `-77"`
		p.set(t, s, wrong)
		return planted{kind: WrongCount, count: 1, texts: []string{strings.Trim(s.text, `"`), strings.Trim(wrong, `"`), p.requests[s.request].ID}}
	},
	"a body is changed": func(_ *testing.T, p *pipeline) planted {
		r := p.requests[p.IntN(len(p.requests))]
		r.Body, r.Taken = append(slices.Clone(r.Body), ' '), p.IntN(2) == 0
		p.requests = append(p.requests, r)
		return planted{kind: ChangedBody, count: 1, texts: []string{r.ID}}
	},
	"an event comes under two ids": func(t *testing.T, p *pipeline) planted {
		event := []string{onlineStatus, msgNotify, msgOffline}[p.IntN(3)]
		spots := p.spots(t, event)
		s := spots[p.IntN(len(spots))]
		first, _ := parseWebhookID(p.requests[s.request].ID)
		id := newID(event, first.partition)
		p.requests = append(p.requests, Request{Event: event, ID: id, Taken: true, Body: []byte(`[` + s.text + `]`)})
		return planted{kind: Duplicate, texts: []string{id}}
	},
	"a part of a batch comes again": func(_ *testing.T, p *pipeline) planted {
		for _, r := range p.requests {
			id, _ := parseWebhookID(r.ID)
			if r.Taken && id.last > id.first {
				id.last--
				r.ID = id.String()
				p.requests = append(p.requests, r)
				return planted{kind: Overlap, count: 1, texts: []string{r.ID}, also: []Kind{Duplicate, BadID}}
			}
		}
		return planted{}
	},
	"an inbox record is lost": func(t *testing.T, p *pipeline) planted {
		i := p.inboxAt(t, func(r Record) bool { return r.Value[0] == inboxConnection })
		p.inbox = slices.Delete(p.inbox, i, i+1)
		return planted{kind: LostInput, count: 1, texts: []string{"connections"}, also: consequences}
	},
	"a part of a message's recipients is lost": func(_ *testing.T, p *pipeline) planted {
		for i := 1; i < len(p.inbox); i++ {
			a, b := p.inbox[i-1], p.inbox[i]
			if a.Value[0] == inboxRecipients && b.Value[0] == inboxRecipients && a.Partition == b.Partition && item0(a) == item0(b) && p.parts(a) == 2 {
				p.inbox = slices.Delete(p.inbox, i, i+1)
				return planted{kind: LostInput, texts: []string{"im.messages", "recipients are in offhook.inbox"}, also: consequences}
			}
		}
		return planted{}
	},
	"an inbox record is doubled": func(t *testing.T, p *pipeline) planted {
		i := p.inboxAt(t, func(r Record) bool { return r.Value[0] <= inboxRecipients })
		r := p.inbox[i]
		for k := i + 1; k < len(p.inbox); k++ {
			if p.inbox[k].Partition == r.Partition {
				p.inbox[k].Offset += 10
			}
		}
		r.Offset++
		p.inbox = slices.Insert(p.inbox, i+1, r)
		return planted{kind: InboxOrder, count: 1, texts: []string{fmt.Sprintf("offhook.inbox-%d offset %d:", r.Partition, r.Offset)}, also: append([]Kind{WrongClose}, consequences...)}
	},
	"two inbox records are swapped": func(t *testing.T, p *pipeline) planted {
		last := make(map[string]int)
		for i, r := range p.inbox {
			in, err := schemas.DecodeInbox([]schemas.Header{schemas.VersionHeader()}, r.Value)
			if err != nil {
				t.Fatal(err)
			}
			if in.Kind != schemas.InboxConnection || in.Connection.UID == "" || i < len(p.inbox)/2 {
				continue
			}
			uid := in.Connection.UID
			k, is := last[uid]
			if last[uid] = i; is && !bytes.Equal(p.inbox[k].Value, r.Value) && once(p.inbox, r.Value) && once(p.inbox, p.inbox[k].Value) && onceUID(p, in.Connection) {
				p.inbox[i].Value, p.inbox[k].Value = p.inbox[k].Value, r.Value
				return planted{kind: InboxOrder, texts: []string{fmt.Sprintf("offhook.inbox-%d offset ", r.Partition)}, also: append([]Kind{WrongClose}, consequences...)}
			}
		}
		return planted{}
	},
	"an inbox record comes from nowhere": func(_ *testing.T, p *pipeline) planted {
		c := schemas.Connection{Type: schemas.Heartbeat, NodeID: "no such node", OpenedAt: -1}
		p.toInbox(1, schemas.AppendInboxConnection(nil, &c))
		last := p.inbox[len(p.inbox)-1]
		return planted{kind: InboxOrder, count: 1, texts: []string{fmt.Sprintf("offhook.inbox-1 offset %d: no input", last.Offset)}}
	},
	"recipients are others": func(t *testing.T, p *pipeline) planted {
		for i, r := range p.inbox {
			if r.Value[0] != inboxRecipients {
				continue
			}
			in, err := schemas.DecodeInbox([]schemas.Header{schemas.VersionHeader()}, r.Value)
			if err != nil {
				t.Fatal(err)
			}
			if len(in.UIDs) > 1 {
				p.inbox[i].Value = schemas.AppendInboxRecipients(nil, in.Item, in.Splice, in.UIDs[1:])
				return planted{kind: InboxOrder, texts: []string{fmt.Sprintf("offhook.inbox-%d offset %d:", r.Partition, r.Offset), "other recipients"}, also: append([]Kind{LostInput}, consequences...)}
			}
		}
		return planted{}
	},
	"an inbox record has no version": func(_ *testing.T, p *pipeline) planted {
		p.toInbox(1, schemas.AppendInboxCaughtUp(nil, &schemas.CaughtUp{}))
		p.inbox[len(p.inbox)-1].Headers = nil
		return planted{kind: InboxOrder, count: 1, texts: []string{"is no inbox record"}}
	},
	"a live connection expires": func(_ *testing.T, p *pipeline) planted {
		keys := slices.SortedFunc(maps.Keys(p.open), func(a, b tableKey) int { return int(p.open[b].time - p.open[a].time) })
		key := keys[0]
		q := partition(key.uid, 4)
		p.now = p.open[key].time + testTTL - 1
		p.toInbox(q, schemas.AppendInboxExpire(nil, &schemas.Expire{UID: key.uid, NodeID: key.node, ConnID: key.conn, Offset: p.open[key].offset}))
		offset := p.inbox[len(p.inbox)-1].Offset
		return planted{
			kind: WrongClose, count: 1,
			texts: []string{fmt.Sprintf("offhook.inbox-%d offset %d closes", q, offset), fmt.Sprintf("offset %d, %d ms before", p.open[key].offset, testTTL-1)},
			also:  []Kind{Lost},
		}
	},
	"an acknowledged record is gone": func(_ *testing.T, p *pipeline) planted {
		p.acks = append(p.acks, Ack{"im.messages", 1, 1_000_000, 5})
		return planted{kind: LostInput, count: 1, texts: []string{"im.messages-1 offset 1000000 was acknowledged and is not"}}
	},
	"an acknowledged record is another": func(_ *testing.T, p *pipeline) planted {
		a := &p.acks[p.IntN(len(p.acks))]
		a.Sum++
		return planted{kind: LostInput, count: 1, texts: []string{fmt.Sprintf("%s-%d offset %d was acknowledged", a.Topic, a.Partition, a.Offset), "another value"}}
	},
	"an input record is not routed": func(_ *testing.T, p *pipeline) planted {
		p.input("im.connections", 0, []byte(`{"type":"heartbeat","uid":"u-1","conn_id":1}`))
		return planted{kind: LostInput, count: 1, texts: []string{fmt.Sprintf("im.connections-0 offset %d has no record in offhook.inbox-%d", p.inputs[len(p.inputs)-1].Offset, partition("u-1", 4))}}
	},
	"a bad record is not in the dead letters": func(t *testing.T, p *pipeline) planted {
		i := p.letterOf(t, "route")
		source := deadSource(p.dead[i])
		p.dead = slices.Delete(p.dead, i, i+1)
		return planted{kind: LostInput, count: 1, texts: []string{source + " is not in the dead letters"}}
	},
	"a bad record is in the dead letters twice": func(t *testing.T, p *pipeline) planted {
		d := p.dead[p.letterOf(t, "route")]
		p.dead = append(p.dead, d)
		return planted{kind: Duplicate, count: 1, texts: []string{deadSource(d)}}
	},
	"a dead letter has another value": func(t *testing.T, p *pipeline) planted {
		d := &p.dead[p.letterOf(t, "route")]
		d.Value = []byte("x")
		return planted{kind: ChangedBody, count: 1, texts: []string{deadSource(*d)}}
	},
	"a copy of a dead letter has another value": func(t *testing.T, p *pipeline) planted {
		d := p.dead[p.letterOf(t, "default")]
		d.Value = append(slices.Clone(d.Value), ' ')
		p.dead = append(p.dead, d)
		return planted{kind: ChangedBody, count: 1, texts: []string{deadSource(d)}}
	},
	"a dead letter has another reason": func(t *testing.T, p *pipeline) planted {
		d := &p.dead[p.letterOf(t, "route")]
		for i, h := range d.Headers {
			if h.Key == "reason" {
				d.Headers[i].Value = []byte("cut")
			}
		}
		return planted{kind: Unexpected, count: 1, texts: []string{deadSource(*d), "the reason must be"}}
	},
	"a good record is in the dead letters": func(_ *testing.T, p *pipeline) planted {
		p.deadLetter(schemas.DeadLetter{Source: schemas.Source{Topic: "im.messages", Offset: 1_000_000}, Reason: schemas.ReasonInvalid, Sink: "route"})
		return planted{kind: Unexpected, count: 1, texts: []string{"im.messages-0 offset 1000000"}}
	},
	"a dead letter of the sink is gone": func(t *testing.T, p *pipeline) planted {
		key := p.dead[p.letterOf(t, "default")].Key
		p.dead = slices.DeleteFunc(p.dead, func(r Record) bool { return bytes.Equal(r.Key, key) })
		return planted{kind: Lost}
	},
	"a dead letter of the sink says what was not": func(_ *testing.T, p *pipeline) planted {
		p.deadLetter(schemas.DeadLetter{
			Source: schemas.Source{Topic: "offhook.user.onlinestatus", Offset: 1_000_000}, Value: []byte(`"u-1-0-1-1-55-55"`), Reason: schemas.ReasonRefused, Sink: "default",
		})
		return planted{kind: Unexpected, count: 1, texts: []string{"offhook.user.onlinestatus-0 offset 1000000 (refused)"}}
	},
	"an event is taken and dead": func(t *testing.T, p *pipeline) planted {
		spots := p.spots(t, msgNotify)
		s := spots[p.IntN(len(spots))]
		id, _ := parseWebhookID(p.requests[s.request].ID)
		p.deadLetter(schemas.DeadLetter{
			Source: schemas.Source{Topic: "offhook.msg.notify", Partition: id.partition, Offset: id.last}, TopicID: topicIDs[msgNotify],
			Value: []byte(s.text), Reason: schemas.ReasonSkipped, Sink: "default",
		})
		return planted{kind: TakenAndDead, count: 1, texts: []string{p.requests[s.request].ID}}
	},
	"a body is an object": func(t *testing.T, p *pipeline) planted {
		s := p.spots(t, msgNotify)[p.IntN(10)]
		id := p.requests[s.request].ID
		for i := range p.requests {
			if p.requests[i].ID == id {
				p.requests[i].Body = []byte(s.text)
			}
		}
		return planted{kind: BadRequest, count: 1, texts: []string{id, "no JSON array"}, also: []Kind{Lost}}
	},
	"fields are swapped": func(t *testing.T, p *pipeline) planted {
		s := p.spots(t, msgNotify)[p.IntN(10)]
		p.set(t, s, strings.Replace(s.text, `"client_msg_no":"","message_seq":0`, `"message_seq":0,"client_msg_no":""`, 1))
		return planted{kind: BadRequest, count: 1, texts: []string{p.requests[s.request].ID, "client_msg_no"}, also: []Kind{Lost}}
	},
	"a body has no items": func(_ *testing.T, p *pipeline) planted {
		p.requests = append(p.requests, Request{Event: msgNotify, ID: newID(msgNotify, 0), Taken: true, Body: []byte(`[]`)})
		return planted{kind: BadRequest, count: 1, texts: []string{newID(msgNotify, 0)}}
	},
	"an id is none": func(t *testing.T, p *pipeline) planted {
		s := p.spots(t, msgNotify)[p.IntN(10)]
		for id, i := p.requests[s.request].ID, 0; i < len(p.requests); i++ {
			if p.requests[i].ID == id {
				p.requests[i].ID = "msg_1"
			}
		}
		return planted{kind: BadID, count: 1, texts: []string{"msg_1"}}
	},
	"an id names another partition": func(t *testing.T, p *pipeline) planted {
		s := p.spots(t, msgOffline)[p.IntN(10)]
		old := p.requests[s.request].ID
		id, _ := parseWebhookID(old)
		id.partition = (id.partition + 1) % 4
		id.first, id.last = 2_000_000+id.first, 2_000_000+id.last
		for i := range p.requests {
			if p.requests[i].ID == old {
				p.requests[i].ID = id.String()
			}
		}
		return planted{kind: BadID, count: 1, texts: []string{id.String(), "another partition"}}
	},
	"an id names another topic": func(_ *testing.T, p *pipeline) planted {
		p.requests = append(p.requests, Request{Event: msgNotify, ID: newID(msgOffline, 0), Taken: true, Body: []byte(`[]`)})
		return planted{kind: BadRequest, count: 1, texts: []string{newID(msgOffline, 0)}}
	},
	"a recipient is left out": func(t *testing.T, p *pipeline) planted {
		for _, s := range p.spots(t, msgOffline) {
			from := strings.Index(s.text, `"to_uids":["`) + len(`"to_uids":[`)
			if comma := strings.Index(s.text[from:], `,"u`); comma >= 0 {
				uid := strings.Trim(s.text[from:from+comma], `"`)
				p.set(t, s, s.text[:from]+s.text[from+comma+1:])
				return planted{kind: Lost, count: 1, texts: []string{fmt.Sprintf("for %q", uid)}}
			}
		}
		return planted{}
	},
	"a recipient too many": func(t *testing.T, p *pipeline) planted {
		s := p.spots(t, msgOffline)[p.IntN(10)]
		id, _ := parseWebhookID(p.requests[s.request].ID)
		uid := "stranger"
		for i := 0; partition(uid, 4) != id.partition; i++ {
			uid = fmt.Sprint("stranger", i)
		}
		p.set(t, s, strings.Replace(s.text, `"to_uids":[`, fmt.Sprintf(`"to_uids":[%q,`, uid), 1))
		return planted{kind: Unexpected, count: 1, texts: []string{fmt.Sprintf("for %q", uid), p.requests[s.request].ID}}
	},
	"a payload is changed": func(t *testing.T, p *pipeline) planted {
		s := p.spots(t, msgNotify)[p.IntN(10)]
		p.set(t, s, strings.Replace(s.text, `"payload":"QQ=="`, `"payload":"Qg=="`, 1))
		return planted{kind: Unexpected, count: 1, texts: []string{p.requests[s.request].ID}, also: []Kind{Lost}}
	},
	"presence ignores an online": func(t *testing.T, p *pipeline) planted {
		*p = *newPipeline(p.Uint64())
		p.ignoreOpen = 40
		p.traffic(testRecords)
		if p.faultAt == "" {
			t.Fatal("no online is ignored")
		}
		return planted{kind: Lost, count: 1, texts: []string{"-1-", p.faultAt}}
	},
	"a start of a node closes one too few": func(t *testing.T, p *pipeline) planted {
		*p = *newPipeline(p.Uint64())
		p.spareOne = 3
		p.traffic(testRecords)
		if p.faultAt == "" {
			t.Fatal("no connection is spared")
		}
		return planted{kind: Lost, count: 1, texts: []string{"-0-", p.faultAt}}
	},
}

// consequences are the kinds that may come with a wrong inbox, of which other events must come than did.
var consequences = []Kind{Lost, Unexpected, Duplicate, WrongCount, OutOfOrder}

func bodies(requests []Request) [][]byte {
	var list [][]byte
	for _, r := range requests {
		list = append(list, r.Body)
	}
	return list
}

// item0 is the item of an inbox record with recipients.
func item0(r Record) string {
	in, _ := schemas.DecodeInbox([]schemas.Header{schemas.VersionHeader()}, r.Value)
	return string(in.Item)
}

// parts is how many inbox records of a partition are of one message with that item.
func (r *run) parts(of Record) int {
	n := 0
	for _, other := range r.inbox {
		if other.Value[0] == inboxRecipients && other.Partition == of.Partition && item0(other) == item0(of) {
			n++
		}
	}
	return n
}

func once(records []Record, value []byte) bool {
	n := 0
	for _, r := range records {
		if bytes.Equal(r.Value, value) {
			n++
		}
	}
	return n == 1
}

// onceUID reports whether all input about a uid's connections stands in one partition.
func onceUID(p *pipeline, c schemas.Connection) bool {
	in := make(map[topicPartition]bool)
	for _, r := range p.inputs {
		if bytes.Contains(r.Value, fmt.Appendf(nil, `"uid":%q`, c.UID)) {
			in[topicPartition{r.Topic, r.Partition}] = true
		}
	}
	return len(in) == 1
}

func (r *run) inboxAt(t *testing.T, is func(Record) bool) int {
	t.Helper()
	for i := len(r.inbox) / 2; i < len(r.inbox); i++ {
		if is(r.inbox[i]) && once(r.inbox, r.inbox[i].Value) {
			return i
		}
	}
	t.Fatal("there is no such inbox record")
	return 0
}

func (r *run) letterOf(t *testing.T, sink string) int {
	i := slices.IndexFunc(r.dead, func(d Record) bool { return bytes.HasPrefix(d.Key, []byte(sink+"/")) })
	if i < 0 {
		t.Fatal("no such dead letter")
	}
	return i
}

func deadSource(r Record) string {
	l, err := parseLetter(r)
	if err != nil {
		panic(err)
	}
	return fmt.Sprintf("%s-%d offset %d", l.topic, l.partition, l.offset)
}

func dropBatch(t *testing.T, p *pipeline, event string) planted {
	spots := p.spots(t, event)
	s := spots[p.IntN(len(spots))]
	list := items(t, p.requests[s.request])
	f := planted{kind: Lost}
	for _, item := range list {
		if event != msgOffline {
			f.count++
			continue
		}
		var m struct {
			To []string `json:"to_uids"`
		}
		if err := json.Unmarshal(item, &m); err != nil {
			t.Fatal(err)
		}
		f.count += int64(len(m.To))
	}
	if f.texts = []string{event}; event == onlineStatus {
		f.texts = append(f.texts, strings.Trim(string(list[0]), `"`), "offhook.inbox-")
	}
	p.dropRequests(p.requests[s.request].ID)
	return f
}

func TestFaults(t *testing.T) {
	for _, name := range slices.Sorted(maps.Keys(faults)) {
		t.Run(name, func(t *testing.T) {
			runs := 0
			for seed := range uint64(4) {
				p := newPipeline(100 + seed)
				p.traffic(testRecords)
				f := faults[name](t, p)
				if f.kind == "" {
					continue
				}
				runs++
				r := judgeRun(t, &p.run)
				if !r.Wrong() || r.Counts[f.kind] == 0 || f.count > 0 && r.Counts[f.kind] != f.count {
					t.Errorf("seed %d: found %v, want %d of %s\n%v", seed, r.Counts, f.count, f.kind, r.Findings[:min(len(r.Findings), 10)])
				}
				for kind := range r.Counts {
					if kind != f.kind && !slices.Contains(f.also, kind) {
						t.Errorf("seed %d: found %v, want %s alone\n%v", seed, r.Counts, f.kind, r.Findings[:min(len(r.Findings), 10)])
					}
				}
				if !slices.ContainsFunc(r.Findings, func(found Finding) bool {
					return found.Kind == f.kind && !slices.ContainsFunc(f.texts, func(text string) bool { return !strings.Contains(found.Text, text) })
				}) {
					t.Errorf("seed %d: no finding of %s names %q:\n%v", seed, f.kind, f.texts, r.Findings[:min(len(r.Findings), 10)])
				}
			}
			if runs == 0 {
				t.Error("no run had a place for it")
			}
		})
	}
}

func TestPhases(t *testing.T) {
	cfg := Config{Partitions: 1, Connections: []string{"c"}, Messages: []string{"m"}, Inbox: "i"}
	calls := []func(o *Oracle) error{
		func(o *Oracle) error { return o.Input(Record{Topic: "m"}) },
		func(o *Oracle) error { return o.Inbox(Record{Topic: "i"}) },
		func(o *Oracle) error { return o.DeadLetter(Record{}) },
		func(o *Oracle) error { return o.Request(Request{}) },
		func(o *Oracle) error { o.Judge(); return nil },
	}
	for later := range calls {
		for earlier := range later {
			o := New(cfg)
			if err := calls[later](o); err != nil {
				t.Fatal(err)
			}
			if calls[earlier](o) == nil {
				t.Errorf("call %d after %d is allowed", earlier, later)
			}
		}
	}
	o := New(cfg)
	for _, r := range []Record{{Topic: "m", Offset: 5}, {Topic: "m", Partition: 1}} {
		if err := o.Input(r); err != nil {
			t.Error(err)
		}
	}
	if err := o.Input(Record{Topic: "m", Offset: 5}); !errors.Is(err, errOffsets) {
		t.Errorf("the same offset again: %v", err)
	}
	if o.Input(Record{Topic: "x"}) == nil || o.Inbox(Record{Topic: "i", Partition: 1}) == nil || o.Inbox(Record{Topic: "m"}) == nil {
		t.Error("a record of another topic or partition is taken")
	}
	if err := o.Inbox(Record{Topic: "i", Offset: 1}); err != nil {
		t.Error(err)
	}
	if err := o.Inbox(Record{Topic: "i", Offset: 1}); !errors.Is(err, errOffsets) {
		t.Errorf("the same offset again: %v", err)
	}
}

func TestFindingsAreBounded(t *testing.T) {
	o := New(Config{Partitions: 1, Messages: []string{"m"}})
	for i := range 100 {
		o.Ack(Ack{Topic: "m", Offset: int64(i)})
	}
	r := o.Judge()
	if r.Counts[LostInput] != 100 || len(r.Findings) != 20 || r.Findings[19].Text != "m-0 offset 19 was acknowledged and is not in the log" {
		t.Errorf("%d counted, %d kept: %v", r.Counts[LostInput], len(r.Findings), r.Findings)
	}
	if again := o.Judge(); len(again.Findings) != 20 {
		t.Errorf("judged again: %d findings", len(again.Findings))
	}
}

func TestWebhookID(t *testing.T) {
	const topic = "ab030000000000000000000000000000"
	for _, good := range []string{topic + "-0-0-0", topic + "-2147483647-5-9223372036854775807", topic + "-1-2-3-r1700000000"} {
		if id, ok := parseWebhookID(good); !ok || id.String() != good {
			t.Errorf("%s is read as %s, %t", good, id, ok)
		}
	}
	for _, bad := range []string{
		"", topic, topic + "-0-0", topic + "-0-1-0", topic + "-01-0-0", topic + "-0-0-0-1", topic + "-0-0-0-r0", topic + "-0-0-0-r1-1",
		topic[1:] + "-0-0-0", strings.ToUpper(topic) + "-0-0-0", topic + "0-0-0-0", topic + "--1-0-0", topic + "-2147483648-0-0",
	} {
		if id, ok := parseWebhookID(bad); ok {
			t.Errorf("%q is read as %s", bad, id)
		}
	}
}

func TestIDs(t *testing.T) {
	id := func(event string, partition int32, first, last int64) string {
		return webhookID{lane: lane{topicIDs[event], partition}, first: first, last: last}.String()
	}
	const one, two = `["u-0-1-1-1-1"]`, `["u-0-1-1-1-1","u-0-1-1-1-1"]`
	q := partition("u", 2)
	for _, c := range []struct {
		name     string
		requests []Request
		want     map[Kind]int64
	}{
		{"one behind another", []Request{{ID: id(onlineStatus, q, 0, 1), Body: []byte(two)}, {ID: id(onlineStatus, q, 2, 2), Body: []byte(one)}}, nil},
		{"fewer items than offsets", []Request{{ID: id(onlineStatus, q, 0, 5), Body: []byte(two)}}, nil},
		{"more items than offsets", []Request{{ID: id(onlineStatus, q, 1, 1), Body: []byte(two)}}, map[Kind]int64{BadID: 1}},
		{"two inside one", []Request{
			{ID: id(onlineStatus, q, 0, 9), Body: []byte(one)}, {ID: id(onlineStatus, q, 7, 8), Body: []byte(one)}, {ID: id(onlineStatus, q, 2, 3), Body: []byte(one)},
		}, map[Kind]int64{Overlap: 2}},
		{"repeated on purpose", []Request{{ID: id(onlineStatus, q, 0, 1), Body: []byte(one)}, {ID: id(onlineStatus, q, 0, 1) + "-r5", Body: []byte(one)}}, nil},
		{"another topic", []Request{{ID: id(onlineStatus, q, 0, 0), Body: []byte(one)}, {ID: id(msgNotify, q, 1, 1), Body: []byte(one)}}, map[Kind]int64{BadID: 1}},
		{"the topic of another event", []Request{
			{ID: id(onlineStatus, q, 0, 0), Body: []byte(one)},
			{Event: msgNotify, ID: id(onlineStatus, partition("u2", 2), 1, 1), Body: []byte(`[{"header":{},"setting":0,"message_id":1,"message_idstr":"1","client_msg_no":"","message_seq":0,"from_uid":"","channel_id":"u2","channel_type":1,"timestamp":1,"payload":""}]`)},
		}, map[Kind]int64{BadID: 1}},
		{"a partition that is not there", []Request{{ID: id(onlineStatus, q+2, 0, 0), Body: []byte(one)}}, map[Kind]int64{BadID: 2}},
	} {
		o := New(Config{Partitions: 2})
		for _, r := range c.requests {
			if r.Event == "" {
				r.Event = onlineStatus
			}
			r.Taken = true
			if err := o.Request(r); err != nil {
				t.Fatal(err)
			}
		}
		counts := o.Judge().Counts
		delete(counts, Unexpected)
		if !maps.Equal(counts, c.want) {
			t.Errorf("%s: %v, want %v", c.name, counts, c.want)
		}
	}
}

// TestLostCopy loses the second of two equal messages, which stand in two input partitions.
func TestLostCopy(t *testing.T) {
	message := func(n int) []byte { return fmt.Appendf(nil, `{"channel_id":"g","channel_type":2,"message_id":%d}`, n) }
	item := func(n int) []byte {
		m, err := ParseMessage("m", 0, 0, message(n), 0)
		if err != nil {
			t.Fatal(err)
		}
		return m.Item
	}
	for _, dead := range []bool{false, true} {
		o := New(Config{Partitions: 1, Messages: []string{"m"}, Inbox: "i"})
		err := errors.Join(
			o.Input(Record{Topic: "m", Partition: 0, Offset: 0, Value: message(7)}), o.Input(Record{Topic: "m", Partition: 0, Offset: 1, Value: message(1)}),
			o.Input(Record{Topic: "m", Partition: 1, Offset: 0, Value: message(2)}), o.Input(Record{Topic: "m", Partition: 1, Offset: 1, Value: message(7)}),
		)
		want := []Finding{{Lost, `msg.notify with the order key "g" of m-1 offset 1 was not taken`}}
		if dead {
			want = nil
			d := schemas.DeadLetter{Source: schemas.Source{Topic: "x.msg.notify", Offset: 9}, Value: item(7), Reason: schemas.ReasonRefused, Sink: "s"}
			r := Record{Key: d.Key(), Value: d.Value}
			for _, h := range d.Headers() {
				r.Headers = append(r.Headers, Header{h.Key, h.Value})
			}
			err = errors.Join(err, o.DeadLetter(r))
		}
		err = errors.Join(err, o.Request(Request{
			Event: msgNotify, ID: fmt.Sprintf("%x-0-0-2", topicIDs[msgNotify]), Taken: true, Body: schemas.AppendBody(nil, [][]byte{item(7), item(1), item(2)}),
		}))
		if err != nil {
			t.Fatal(err)
		}
		if got := o.Judge().Findings; !slices.Equal(got, want) {
			t.Errorf("dead %t: %v, want %v", dead, got, want)
		}
	}
}

func TestBadBodies(t *testing.T) {
	const item = `{"header":{"no_persist":0,"red_dot":0,"sync_once":0},"setting":0,"message_id":1,"message_idstr":"1","client_msg_no":"","message_seq":0,"from_uid":"","channel_id":"u2","channel_type":1,"timestamp":1700000000,"payload":""}`
	offline := strings.Replace(item, `"payload":""`, `"payload":"","to_uids":["a"]`, 1)
	for _, c := range []struct{ event, body string }{
		{onlineStatus, `["u-0-1-1-1"]`}, {onlineStatus, `["u-256-1-1-1-1"]`}, {onlineStatus, `["u-0-2-1-1-1"]`}, {onlineStatus, `["-0-1-1-1-1"]`},
		{onlineStatus, `["u-0-1-01-1-1"]`}, {onlineStatus, `[1]`}, {onlineStatus, `["u-0-1-1-1-1",]`}, {onlineStatus, `["u-0-1-1-1-1"]]`}, {onlineStatus, `["u-0-1-1-1-1"`},
		{msgNotify, `[` + offline + `]`}, {msgNotify, item}, {msgNotify, `[null]`}, {msgNotify, `[` + item + item + `]`},
		{msgNotify, `[` + strings.Replace(item, `"setting":0,`, ``, 1) + `]`},
		{msgNotify, `[` + strings.Replace(item, `"setting":0`, `"setting":"0"`, 1) + `]`},
		{msgNotify, `[` + strings.Replace(item, `,"payload":""`, ``, 1) + `]`},
		{msgNotify, `[` + strings.Replace(item, `}`, `,"a":1,"a":2}`, 1) + `]`},
		{msgOffline, `[` + item + `]`},
		{msgOffline, `[` + strings.Replace(offline, `["a"]`, `[]`, 1) + `]`},
		{msgOffline, `[` + strings.Replace(offline, `["a"]`, `["\u0000"]`, 1) + `]`},
		{msgOffline, `[` + strings.Replace(item, `"payload":""`, `"payload":"","x":1,"to_uids":["a"]`, 1) + `]`},
		{"msg.other", `[]`}, {msgNotify, ``}, {msgNotify, `[]`},
	} {
		o := New(Config{Partitions: 1})
		if err := o.Request(Request{Event: c.event, ID: newID(c.event, 0), Taken: true, Body: []byte(c.body)}); err != nil {
			t.Fatal(err)
		}
		if n := o.report.Counts[BadRequest]; n != 1 {
			t.Errorf("%s %s: %d bad requests", c.event, c.body, n)
		}
	}
}

// FuzzUntrusted hands bytes to what reads records and requests of others.
func FuzzUntrusted(f *testing.F) {
	p := newPipeline(1)
	p.traffic(100)
	for _, r := range slices.Concat(p.inbox, p.dead) {
		f.Add(r.Value, string(r.Key))
	}
	for _, r := range p.requests {
		f.Add(r.Body, r.ID)
	}
	f.Fuzz(func(t *testing.T, value []byte, text string) {
		o := New(Config{Partitions: 2, Inbox: "i"})
		v := []Header{{"v", []byte("1")}}
		letter := append(v, Header{"source-topic", []byte("offhook.msg.offline")}, Header{"source-partition", []byte("0")},
			Header{"source-offset", []byte("1")}, Header{"sink", []byte("default")}, Header{"reason", []byte("refused")})
		if err := errors.Join(
			o.Inbox(Record{Topic: "i", Value: value, Headers: v}),
			o.DeadLetter(Record{Key: []byte(text), Value: value, Headers: letter}),
			o.DeadLetter(Record{Key: []byte("default/00000000000000000000000000000000/0/1"), Value: value, Headers: letter}),
		); err != nil {
			t.Fatal(err)
		}
		for i, event := range []string{onlineStatus, msgOffline, msgNotify} {
			if err := errors.Join(
				o.Request(Request{Event: event, ID: text, Taken: true, Body: value}),
				o.Request(Request{Event: event, ID: newID(event, int32(i)), Taken: true, Body: value}),
			); err != nil {
				t.Fatal(err)
			}
		}
		o.Judge()
	})
}

// BenchmarkRun judges runs of a million events: half statuses, of which each user's follow one another, a quarter
// pushes, a quarter messages.
func BenchmarkRun(b *testing.B) {
	const users, rounds, batch = 50_000, 5, 100
	type event struct {
		name string
		q    int32
		item []byte
	}
	var r run
	r.cfg = Config{Partitions: 12, Connections: []string{"c"}, Messages: []string{"m"}, Inbox: "i"}
	var events []event
	offsets := make(map[string]int64)
	next := func(log string) int64 { offsets[log]++; return offsets[log] - 1 }
	inbox := func(q int32, value []byte) {
		r.inbox = append(r.inbox, Record{Topic: "i", Partition: q, Offset: next(fmt.Sprint("i", q)), Value: value, Headers: []Header{{"v", []byte("1")}}})
	}
	for round := range rounds {
		for u := range users {
			uid := fmt.Sprintf("user-%d", u)
			q := partition(uid, 12)
			m := fmt.Appendf(nil, `{"message_id":%d,"channel_id":%q,"from_uid":"s-%d","payload":"aGVsbG8gd29ybGQ="}`, round*users+u, uid, u%1000)
			message, err := schemas.DecodeMessage(m, schemas.Source{})
			if err != nil {
				b.Fatal(err)
			}
			r.inputs = append(r.inputs, Record{Topic: "m", Offset: next("m"), Value: m})
			inbox(q, schemas.AppendInboxRecipients(nil, message.Item, message.Splice, message.Recipients))
			events = append(events, event{msgOffline, q, schemas.AppendOfflineItem(nil, message.Item, message.Splice, message.Recipients)},
				event{msgNotify, partition(message.FromUID, 12), message.Item})
			for i, typ := range []string{"online", "offline"} {
				value := fmt.Appendf(nil, `{"type":%q,"uid":%q,"conn_id":%d,"timestamp":%d}`, typ, uid, round*users+u, 1_700_000_000+round)
				r.inputs = append(r.inputs, Record{Topic: "c", Offset: next("c"), Value: value})
				c, err := schemas.DecodeConnection(value, 0)
				if err != nil {
					b.Fatal(err)
				}
				inbox(q, schemas.AppendInboxConnection(nil, &c))
				events = append(events, event{onlineStatus, q, schemas.AppendOnlineStatus(nil, schemas.OnlineStatus{
					UID: uid, Online: i == 0, ConnID: uint64(round*users + u), DeviceCount: 1 - i, TotalCount: 1 - i,
				})})
			}
		}
	}
	waiting := make(map[string][][]byte)
	send := func(e event, least int) {
		lane := fmt.Sprint(e.name, e.q)
		if items := waiting[lane]; len(items) >= least {
			first := offsets[lane]
			offsets[lane] += int64(len(items))
			r.requests = append(r.requests, Request{
				Event: e.name, Taken: true, Body: schemas.AppendBody(nil, items), ID: fmt.Sprintf("%x-%d-%d-%d", topicIDs[e.name], e.q, first, offsets[lane]-1),
			})
			waiting[lane] = nil
		}
	}
	for _, e := range events {
		lane := fmt.Sprint(e.name, e.q)
		waiting[lane] = append(waiting[lane], e.item)
		send(e, batch)
	}
	for _, e := range events {
		send(e, 1)
	}
	count := float64(len(events))
	for _, in := range r.inputs {
		r.acks = append(r.acks, Ack{in.Topic, in.Partition, in.Offset, sum(in.Value)})
	}
	var before, after runtime.MemStats
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		runtime.GC()
		runtime.ReadMemStats(&before)
		b.StartTimer()
		o, err := r.oracle()
		if err != nil {
			b.Fatal(err)
		}
		if report := o.Judge(); report.Wrong() {
			b.Fatal(report.Counts, report.Findings[0])
		}
		b.StopTimer()
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/count, "heapB/event")
		runtime.KeepAlive(o)
		b.StartTimer()
	}
	b.ReportMetric(count*float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

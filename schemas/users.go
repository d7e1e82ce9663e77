package schemas

import (
	"fmt"

	"github.com/go-json-experiment/json"
)

// User is what the query API answers of a user: its live connections over the whole cluster. A user of whom nothing is known
// has none.
type User struct {
	UID    string `json:"uid"`
	Online bool   `json:"online"` // has a live connection
	// OfflinePush says whether a message to the user would be a msg.offline event now: the settings decide which connections
	// spare it that.
	OfflinePush bool     `json:"offline_push"`
	Total       int      `json:"total"`   // live connections
	Devices     []Device `json:"devices"` // by rising device_flag; none has count 0
	// Connections are in the order of (node_id, conn_id), at most [MaxUserConnections], and only where they were asked for.
	Connections []UserConnection `json:"connections,omitzero"`
	// ConnectionsCut says that Connections has not all.
	ConnectionsCut bool `json:"connections_cut,omitzero"`
}

// Device is how many connections a user has with a device flag.
type Device struct {
	DeviceFlag uint8 `json:"device_flag"`
	Count      int   `json:"count"`
}

// UserConnection is a live connection. Ids are strings, whatever the input had: an integer is its digits.
type UserConnection struct {
	NodeID     ID     `json:"node_id"`
	ConnID     ID     `json:"conn_id"`
	DeviceFlag uint8  `json:"device_flag"`
	Background bool   `json:"background"`
	Since      int64  `json:"since"`               // the time of its latest online, Unix ms
	OpenedAt   *int64 `json:"opened_at,omitempty"` // its generation, Unix ms; nil: unknown
}

// Users is what the query API answers of many users, in the order in which they were asked for.
type Users struct {
	Users []User `json:"users"`
}

// UsersQuery asks for many users.
type UsersQuery struct {
	UIDs []string `json:"uids"`
}

// Problem says why a query was not answered, as RFC 9457 has it.
type Problem struct {
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
}

// Bounds of the query API.
const (
	MaxUserConnections = 1_000   // of a user in one answer
	MaxUsersQuery      = 1_000   // uids in one query
	MaxUsersQueryBytes = 1 << 20 // of its body
)

// QueryAPI is the OpenAPI 3.1 document of the query API.
func QueryAPI() []byte {
	text, err := documents.ReadFile("json/query.openapi.json")
	if err != nil {
		panic(err) // it is embedded
	}
	return text
}

// AppendQueryJSON appends one of the types above, as JSON.
func AppendQueryJSON[T User | Users | UsersQuery | Problem](dst []byte, v *T) []byte {
	text, err := json.Marshal(v)
	if err != nil {
		panic("schemas: a query's answer cannot be encoded: " + err.Error()) // all of them can be
	}
	return append(dst, text...)
}

// DecodeUsersQuery decodes the body of a query for many users. The error is an *InvalidError that names the field and never a
// value.
func DecodeUsersQuery(body []byte) (UsersQuery, error) {
	var q UsersQuery
	if err := json.Unmarshal(body, &q, json.RejectUnknownMembers(true)); err != nil {
		return UsersQuery{}, invalid("", `the body is not {"uids": ["…"]} with strings`)
	}
	if len(q.UIDs) == 0 {
		return UsersQuery{}, invalid("uids", "is missing or empty")
	}
	if len(q.UIDs) > MaxUsersQuery {
		return UsersQuery{}, invalid("uids", fmt.Sprintf("has %d uids; at most %d may be asked for at once", len(q.UIDs), MaxUsersQuery))
	}
	for _, uid := range q.UIDs {
		if !ValidUID(uid) {
			return UsersQuery{}, invalid("uids", "holds what is not "+uidForm)
		}
	}
	return q, nil
}

// DecodeAnswer decodes an answer of the query API. The error says no value of it.
func DecodeAnswer[T User | Users | Problem](body []byte) (T, error) {
	var v T
	if err := json.Unmarshal(body, &v); err != nil {
		return v, invalid("", "the answer is not what the query API gives")
	}
	return v, nil
}

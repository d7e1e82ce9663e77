package receiver

import "encoding/json"

// Summary is what a receiver has seen. Its JSON is one object with the fields in this order; of one that is unchecked it
// leaves out lost, duplicates_after_dedupe, repeated_ids, changed_bodies, out_of_order and unexpected.
type Summary struct {
	// Requests counts all requests but those that a scenario refused: repeats and bad ones too.
	Requests int64  `json:"requests"`
	Events   Events `json:"events"`
	// Lost is the number of events that the truth demands and that did not arrive; nil without a truth.
	Lost                  *int64 `json:"lost"`
	DuplicatesAfterDedupe int64  `json:"duplicates_after_dedupe"`
	RepeatedIDs           int64  `json:"repeated_ids"` // requests with an id that was taken before: not wrong
	ChangedBodies         int64  `json:"changed_bodies"`
	OutOfOrder            int64  `json:"out_of_order"`
	BadSignatures         int64  `json:"bad_signatures"`
	// Unexpected is the number of events that the truth forbids.
	Unexpected int64 `json:"unexpected,omitempty"`
	// BadRequests is the number of requests that are no webhook request: method, event, size or body.
	BadRequests int64 `json:"bad_requests,omitempty"`

	// Unchecked says that of what was taken nothing was looked at: [Config.Unchecked].
	Unchecked bool `json:"-"`

	// The rest is a [Player]'s.

	// RefusedByScenario is the number of requests that a scenario refused or cut off, and that are in no other count: not
	// wrong. A connection that found nobody listening is in no count at all.
	RefusedByScenario int64 `json:"refused_by_scenario,omitempty"`
	// TooEarly is how many of these came again, under the same id, before the Retry-After of the scenario busy. It is not
	// wrong, since a sender that was started anew knows of no Retry-After.
	TooEarly int64 `json:"too_early,omitempty"`
	// FollowedRedirects is the number of requests that followed a 3xx.
	FollowedRedirects int64 `json:"followed_redirects,omitempty"`
}

// MarshalJSON is for encoding/json.
func (s Summary) MarshalJSON() ([]byte, error) {
	type plain Summary // without this method
	if !s.Unchecked {
		return json.Marshal(plain(s))
	}
	// A field named as one of plain's, and nearer, stands for it.
	return json.Marshal(struct {
		plain
		Lost                  *int64 `json:"lost,omitempty"`
		DuplicatesAfterDedupe int64  `json:"duplicates_after_dedupe,omitempty"`
		RepeatedIDs           int64  `json:"repeated_ids,omitempty"`
		ChangedBodies         int64  `json:"changed_bodies,omitempty"`
		OutOfOrder            int64  `json:"out_of_order,omitempty"`
		Unexpected            int64  `json:"unexpected,omitempty"`
	}{plain: plain(s)})
}

// Events counts the items taken, repeated requests aside unless nothing was checked.
type Events struct {
	OnlineStatus int64 `json:"user.onlinestatus"`
	Offline      int64 `json:"msg.offline"`
	Notify       int64 `json:"msg.notify"`
}

// Wrong reports whether anything is not as the contract and the truth have it.
func (s Summary) Wrong() bool {
	return s.Lost != nil && *s.Lost > 0 || s.DuplicatesAfterDedupe > 0 || s.ChangedBodies > 0 || s.OutOfOrder > 0 ||
		s.BadSignatures > 0 || s.Unexpected > 0 || s.BadRequests > 0 || s.FollowedRedirects > 0
}

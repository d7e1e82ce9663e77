package schemas

import (
	"math"
	"slices"
	"strconv"
	"strings"
)

// OnlineStatus is one user.onlinestatus event.
type OnlineStatus struct {
	UID         string
	DeviceFlag  uint8
	Online      bool
	ConnID      uint64 // ID.Number
	DeviceCount int    // the user's connections with this flag, after the change
	TotalCount  int    // all of the user's connections, after the change
}

// AppendOnlineStatus appends the webhook item: a JSON string,
// uid-deviceFlag-online-connID-deviceOnlineCount-totalOnlineCount.
func AppendOnlineStatus(dst []byte, s OnlineStatus) []byte {
	dst = slices.Grow(dst, len(s.UID)+48)
	dst = appendQuoted(dst, s.UID)
	dst = dst[:len(dst)-1] // what follows is digits, so the quote moves behind them
	dst = append(dst, '-')
	dst = strconv.AppendUint(dst, uint64(s.DeviceFlag), 10)
	if s.Online {
		dst = append(dst, "-1-"...)
	} else {
		dst = append(dst, "-0-"...)
	}
	dst = strconv.AppendUint(dst, s.ConnID, 10)
	dst = append(dst, '-')
	dst = strconv.AppendInt(dst, int64(s.DeviceCount), 10)
	dst = append(dst, '-')
	dst = strconv.AppendInt(dst, int64(s.TotalCount), 10)
	return append(dst, '"')
}

const statusForm = "must be uid-deviceFlag-online-connID-deviceOnlineCount-totalOnlineCount"

// ParseOnlineStatus parses the text of an item (the JSON string's content); the uid may contain '-'. The error is an
// *InvalidError.
func ParseOnlineStatus(s string) (OnlineStatus, error) {
	limits := [...]uint64{math.MaxUint8, 1, math.MaxInt64, math.MaxInt32, math.MaxInt32}
	var fields [len(limits)]uint64
	uid := s
	for i := len(fields) - 1; i >= 0; i-- {
		dash := strings.LastIndexByte(uid, '-')
		if dash < 0 {
			return OnlineStatus{}, invalid("", statusForm)
		}
		n, ok := canonicalDigits(uid[dash+1:], limits[i])
		if !ok {
			return OnlineStatus{}, invalid("", statusForm)
		}
		fields[i], uid = n, uid[:dash]
	}
	if !ValidUID(uid) {
		return OnlineStatus{}, invalid("", statusForm)
	}
	return OnlineStatus{
		UID: uid, DeviceFlag: uint8(fields[0]), Online: fields[1] == 1, ConnID: fields[2],
		DeviceCount: int(fields[3]), TotalCount: int(fields[4]),
	}, nil
}

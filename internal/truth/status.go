package truth

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Status is one expected user.onlinestatus item.
type Status struct {
	UID        string
	DeviceFlag uint8
	Online     bool
	Conn       uint64
	// Device and Total count the user's connections after the change: those with that flag, and all.
	Device, Total int
}

// String is the item's text, uid-deviceFlag-online-connID-deviceOnlineCount-totalOnlineCount.
func (s Status) String() string {
	online := 0
	if s.Online {
		online = 1
	}
	return fmt.Sprintf("%s-%d-%d-%d-%d-%d", s.UID, s.DeviceFlag, online, s.Conn, s.Device, s.Total)
}

var errStatus = errors.New("status is not uid-deviceFlag-online-connID-deviceOnlineCount-totalOnlineCount")

// ParseStatus is the inverse of [Status.String]. The uid may contain '-'.
func ParseStatus(text string) (Status, error) {
	var fields [5]uint64
	uid := text
	for i := len(fields) - 1; i >= 0; i-- {
		dash := strings.LastIndexByte(uid, '-')
		if dash < 1 {
			return Status{}, errStatus
		}
		bits := [5]int{8, 1, 64, 31, 31}[i]
		n, err := strconv.ParseUint(uid[dash+1:], 10, bits)
		if err != nil {
			return Status{}, errStatus
		}
		fields[i], uid = n, uid[:dash]
	}
	return Status{
		UID: uid, DeviceFlag: uint8(fields[0]), Online: fields[1] == 1, Conn: fields[2],
		Device: int(fields[3]), Total: int(fields[4]),
	}, nil
}

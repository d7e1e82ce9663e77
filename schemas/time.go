package schemas

import "time"

const (
	// secondsBelow is where integers stop being seconds and are milliseconds: 10^11 seconds is the year 5138,
	// 10^11 milliseconds is March 1973.
	secondsBelow = 100_000_000_000
	// maxTime is the last millisecond of the year 9999, in Unix milliseconds.
	maxTime = 253_402_300_799_999
)

const timeForms = "must be a time from 1970 to the year 9999: Unix seconds, Unix milliseconds or RFC 3339 such as 2026-01-02T03:04:05.678Z"

// time decodes a time into Unix milliseconds. What RFC 3339 says beyond milliseconds is cut off.
func (r *reader) time(field string, raw []byte) (int64, error) {
	if raw[0] == '"' {
		text, err := r.text(field, raw)
		if err != nil {
			return 0, err
		}
		var t time.Time
		if !shapedRFC3339(text) || t.UnmarshalText(text) != nil {
			return 0, invalid(field, timeForms)
		}
		ms := t.UnixMilli()
		if t.Unix() < 0 || ms > maxTime {
			return 0, invalid(field, timeForms)
		}
		return ms, nil
	}
	n, ok := canonicalDigits(raw, maxTime)
	if !ok {
		return 0, invalid(field, timeForms)
	}
	if n < secondsBelow {
		n *= 1000
	}
	return int64(n), nil
}

// defaultTime is the record's own timestamp as the default of a time, brought into a time's range: Kafka has -1 for none, and takes
// microseconds from a producer that mistakes them for milliseconds.
func defaultTime(recordTime int64) int64 { return min(max(recordTime, 0), maxTime) }

// shapedRFC3339 reports whether text is laid out as RFC 3339, in the capitals that Go writes. Package time checks the
// fields' values, but takes hours of one digit, a comma before the fraction and zones of any size too.
func shapedRFC3339(text []byte) bool {
	const layout = "dddd-dd-ddTdd:dd:dd"
	if len(text) <= len(layout) || !shaped(text[:len(layout)], layout) {
		return false
	}
	zone := text[len(layout):]
	if zone[0] == '.' {
		n := 1
		for n < len(zone) && zone[n] >= '0' && zone[n] <= '9' {
			n++
		}
		if n == 1 {
			return false
		}
		zone = zone[n:]
	}
	if len(zone) == 1 {
		return zone[0] == 'Z'
	}
	return (shaped(zone, "+dd:dd") || shaped(zone, "-dd:dd")) && string(zone[1:3]) <= "23" && string(zone[4:]) <= "59"
}

// shaped reports whether text equals layout, in which d stands for a digit.
func shaped(text []byte, layout string) bool {
	if len(text) != len(layout) {
		return false
	}
	for i := range text {
		if digit := text[i] >= '0' && text[i] <= '9'; layout[i] == 'd' && !digit || layout[i] != 'd' && text[i] != layout[i] {
			return false
		}
	}
	return true
}

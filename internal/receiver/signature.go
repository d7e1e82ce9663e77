package receiver

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// The headers of the Standard Webhooks specification.
const (
	headerID        = "webhook-id"
	headerTimestamp = "webhook-timestamp"
	headerSignature = "webhook-signature"
)

// tolerance is how far a request's time may be from ours.
const tolerance = 5 * time.Minute

// signed reports whether one of the request's v1 signatures is one of ours over id, time and body, and the time is near.
func signed(secrets [][]byte, header http.Header, body []byte, now time.Time) bool {
	id, timestamp := header.Get(headerID), header.Get(headerTimestamp)
	seconds, err := strconv.ParseInt(timestamp, 10, 64)
	if err != nil || id == "" || now.Sub(time.Unix(seconds, 0)).Abs() > tolerance {
		return false
	}
	for _, secret := range secrets {
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(id + "." + timestamp + "."))
		mac.Write(body)
		want := mac.Sum(nil)
		for signature := range strings.FieldsSeq(header.Get(headerSignature)) {
			version, value, _ := strings.Cut(signature, ",")
			got, err := base64.StdEncoding.DecodeString(value)
			if version == "v1" && err == nil && hmac.Equal(got, want) {
				return true
			}
		}
	}
	return false
}

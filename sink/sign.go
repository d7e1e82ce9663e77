package sink

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"strconv"
	"strings"
	"time"
)

// Signatures is the webhook-signature header: for each secret `v1,` and the base64 of the HMAC-SHA256 over
// `id.timestamp.body`, separated by spaces (Standard Webhooks 1.0.0, "Signature scheme").
func Signatures(secrets [][]byte, id string, at time.Time, body []byte) string {
	var b strings.Builder
	for i, secret := range secrets {
		if i > 0 {
			b.WriteByte(' ')
		}
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(id))
		mac.Write([]byte{'.'})
		mac.Write(strconv.AppendInt(nil, at.Unix(), 10))
		mac.Write([]byte{'.'})
		mac.Write(body)
		b.WriteString("v1,")
		b.WriteString(base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	}
	return b.String()
}

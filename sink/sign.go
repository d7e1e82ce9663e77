package sink

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// secretPrefix begins a symmetric secret of the Standard Webhooks specification.
const secretPrefix = "whsec_"

// ParseSecret decodes a Standard Webhooks secret: "whsec_" and 24 to 64 bytes in base64. The error never holds it.
func ParseSecret(text string) ([]byte, error) {
	encoded, ok := strings.CutPrefix(text, secretPrefix)
	if !ok {
		return nil, fmt.Errorf("a secret begins with %s", secretPrefix)
	}
	secret, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return nil, fmt.Errorf("what follows %s is not base64", secretPrefix)
	}
	if len(secret) < 24 || len(secret) > 64 {
		return nil, fmt.Errorf("a secret has 24 to 64 bytes, this one %d", len(secret))
	}
	return secret, nil
}

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

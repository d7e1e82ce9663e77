package sink

import (
	"encoding/base64"
	"testing"
	"time"
)

// TestSignatures: the vector is that of the Standard Webhooks libraries.
func TestSignatures(t *testing.T) {
	secret, err := base64.StdEncoding.DecodeString("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	if err != nil {
		t.Fatal(err)
	}
	const want = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
	sign := func(secrets ...[]byte) string {
		return Signatures(secrets, "msg_p5jXN8AQM9LWM0D4loKWxJek", time.Unix(1614265330, 999_999_999), []byte(`{"test": 2432232314}`))
	}
	if got := sign(secret); got != want {
		t.Errorf("it signs %s, want %s", got, want)
	}
	if got := sign([]byte("newer"), secret); got != sign([]byte("newer"))+" "+want {
		t.Errorf("with two secrets it signs %s", got)
	}
}

package sink

import (
	"bufio"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/schemas"
)

// TestOddStatus: a status that HTTP does not have is no answer, and what a plan says of it reads back.
func TestOddStatus(t *testing.T) {
	for _, status := range []string{"000", "099", "600", "999"} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			if r, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
				_ = r.Body.Close()
				_, _ = conn.Write([]byte("HTTP/1.1 " + status + " odd\r\nContent-Length: 0\r\n\r\n"))
			}
		}()
		e := newEndpoint(t, nil)
		cfg := (&fixture{Cluster: &kafkatest.Cluster{}}).config(e)
		cfg.URL.Host = listener.Addr().String()
		transport := NewTransport(cfg)
		answer, err := transport.Send(t.Context(), &Request{Event: schemas.EventNotify, ID: "id", Body: []byte("[]")})
		transport.Close()
		_ = listener.Close()
		if err != nil || answer.Verdict != VerdictRetry || answer.Code() != string(FailureConnection) || answer.String() == "" {
			t.Errorf("status %s: %+v, %v", status, answer, err)
		}
		l := testLane(LaneConfig{InFlight: 1, UIDs: oneUID, BatchMax: 1, BatchBytes: 1 << 20, PlanAhead: 8})
		fill(l, 1, nil)
		l.Retry(next(l), answer, time.Second, epoch)
		p := l.Propose()
		if again, ours, err := ParsePlan(p.Offset, p.Metadata()); err != nil || !ours || !again.Equal(p) {
			t.Errorf("status %s: the plan %q reads back as %+v, %v", status, p.Metadata(), again, err)
		}
	}
}

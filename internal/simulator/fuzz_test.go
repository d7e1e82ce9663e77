package simulator

import (
	"regexp"
	"strings"
	"testing"

	"github.com/IBM/sarama"
)

// FuzzSCRAM: what a server says never makes a client that has not proved the password to it believe that it knows it.
func FuzzSCRAM(f *testing.F) {
	f.Add("r=NONCEserver,s=c2FsdA==,i=16", "v=AAAA")
	f.Add("r=NONCE,s=,i=1", "v=")
	f.Add("s=c2FsdA==,i=4", "")
	f.Add("e=other-error", "e=other-error")
	f.Add("r=NONCE,s=,i=999999999", "v=")           // as many iterations as the server asks for are done, up to a limit
	many := regexp.MustCompile("i=[0-9]{4,6}(,|$)") // too many for a fuzzer, and below the limit
	f.Fuzz(func(t *testing.T, challenge, verdict string) {
		if many.MatchString(challenge) {
			return
		}
		for _, mechanism := range []string{sarama.SASLTypeSCRAMSHA256, sarama.SASLTypeSCRAMSHA512} {
			s := newSCRAM(mechanism)
			if err := s.Begin("user", "password", ""); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Step(""); err != nil {
				t.Fatal(err)
			}
			answer, err := s.Step(strings.ReplaceAll(challenge, "NONCE", s.nonce))
			if err != nil {
				continue
			}
			if !strings.HasPrefix(answer, "c=biws,r="+s.nonce) || strings.Contains(answer, "password") {
				t.Errorf("%q is answered with %q", challenge, answer)
			}
			if _, err := s.Step(verdict); err == nil {
				t.Errorf("%q after %q proves the server", verdict, challenge)
			}
		}
	})
}

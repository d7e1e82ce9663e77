package simulator

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"strconv"
	"strings"

	"github.com/IBM/sarama"
)

// maxIterations bounds the work that a server can ask for; Kafka's own limit is 16384.
const maxIterations = 100_000

// scram is the client's side of RFC 5802, which sarama leaves to its users. Names and passwords are taken as they are,
// without SASLprep.
type scram struct {
	hash      func() hash.Hash
	user      string
	password  string
	nonce     string
	step      int
	serverKey []byte // what the server's last message must prove
}

func newSCRAM(mechanism string) *scram {
	if mechanism == sarama.SASLTypeSCRAMSHA512 {
		return &scram{hash: sha512.New}
	}
	return &scram{hash: sha256.New}
}

// Begin implements sarama.SCRAMClient.
func (s *scram) Begin(user, password, _ string) error {
	s.user, s.password = strings.NewReplacer("=", "=3D", ",", "=2C").Replace(user), password
	s.nonce, s.step = rand.Text(), 0
	return nil
}

// Done implements sarama.SCRAMClient.
func (s *scram) Done() bool { return s.step >= 3 }

// Step implements sarama.SCRAMClient.
func (s *scram) Step(challenge string) (string, error) {
	s.step++
	switch s.step {
	case 1:
		return "n,," + s.first(), nil
	case 2:
		return s.prove(challenge)
	default:
		got, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(challenge, "v="))
		if err != nil || subtle.ConstantTimeCompare(got, s.serverKey) != 1 {
			return "", errors.New("SCRAM: the server does not know the password")
		}
		return "", nil
	}
}

func (s *scram) first() string { return "n=" + s.user + ",r=" + s.nonce }

func (s *scram) prove(challenge string) (string, error) {
	var nonce, salt, iterations string
	for field := range strings.SplitSeq(challenge, ",") {
		name, value, _ := strings.Cut(field, "=")
		switch name {
		case "r":
			nonce = value
		case "s":
			salt = value
		case "i":
			iterations = value
		}
	}
	rawSalt, err := base64.StdEncoding.DecodeString(salt)
	if err != nil {
		return "", fmt.Errorf("SCRAM: decode the salt: %w", err)
	}
	n, err := strconv.Atoi(iterations)
	if err != nil || n < 1 || n > maxIterations || !strings.HasPrefix(nonce, s.nonce) {
		return "", errors.New("SCRAM: the server's challenge makes no sense")
	}
	salted, err := pbkdf2.Key(s.hash, s.password, rawSalt, n, s.hash().Size())
	if err != nil {
		return "", fmt.Errorf("SCRAM: derive a key: %w", err)
	}
	client := s.mac(salted, "Client Key")
	h := s.hash()
	h.Write(client)
	last := "c=biws,r=" + nonce // biws: base64 of "n,,"
	signed := s.first() + "," + challenge + "," + last
	proof := s.mac(h.Sum(nil), signed)
	subtle.XORBytes(proof, proof, client)
	s.serverKey = s.mac(s.mac(salted, "Server Key"), signed)
	return last + ",p=" + base64.StdEncoding.EncodeToString(proof), nil
}

func (s *scram) mac(key []byte, text string) []byte {
	h := hmac.New(s.hash, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

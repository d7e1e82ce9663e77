package main

import (
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/offhook/offhook/internal/kafka"
	"github.com/offhook/offhook/internal/ops"
	"github.com/offhook/offhook/schemas"
	"github.com/offhook/offhook/sink"
)

// The types of the settings. Each reads its own text; an error completes "<variable> " and, where the value may be
// secret, does not hold it.

// split reads a comma-separated list: trimmed, without empty items.
func split(text []byte) []string {
	var items []string
	for item := range strings.SplitSeq(string(text), ",") {
		if item = strings.TrimSpace(item); item != "" {
			items = append(items, item)
		}
	}
	return items
}

type boolean bool

func (b *boolean) UnmarshalText(text []byte) error {
	value, err := strconv.ParseBool(strings.ToLower(string(text)))
	if err != nil {
		return fmt.Errorf("is %s and must be true or false", quote(string(text)))
	}
	*b = boolean(value)
	return nil
}

// count is an integer.
type count int64

func (c *count) UnmarshalText(text []byte) error {
	value, err := strconv.ParseInt(string(text), 10, 32)
	if err != nil {
		return fmt.Errorf("is %s and must be an integer", quote(string(text)))
	}
	*c = count(value)
	return nil
}

// size is a number of bytes.
type size int64

var sizeUnits = []struct {
	name  string
	bytes int64
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"B", 1}}

func (s *size) UnmarshalText(text []byte) error {
	for _, unit := range sizeUnits {
		digits, ok := strings.CutSuffix(string(text), unit.name)
		if !ok {
			continue
		}
		value, err := strconv.ParseUint(strings.TrimSpace(digits), 10, 63)
		if err != nil || value > uint64(math.MaxInt64/unit.bytes) {
			break
		}
		*s = size(int64(value) * unit.bytes)
		return nil
	}
	return fmt.Errorf("is %s and must be an integer with B, KiB, MiB or GiB", quote(string(text)))
}

func (s size) String() string {
	for _, unit := range []int{2, 1, 0} {
		if bytes := sizeUnits[unit].bytes; s != 0 && int64(s)%bytes == 0 {
			return strconv.FormatInt(int64(s)/bytes, 10) + sizeUnits[unit].name
		}
	}
	return strconv.FormatInt(int64(s), 10) + "B"
}

type duration time.Duration

func (d *duration) UnmarshalText(text []byte) error {
	value, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("is %s and must be a duration with its unit, such as 500ms, 10s, 5m or 168h", quote(string(text)))
	}
	*d = duration(value)
	return nil
}

func (d duration) String() string { return time.Duration(d).String() }

// secret is a text that no log, error or format of ours shows.
type secret string

const redacted = "[redacted]"

func (s *secret) UnmarshalText(text []byte) error {
	*s = secret(text)
	return nil
}

func (s secret) String() string       { return redacted }
func (s secret) GoString() string     { return redacted }
func (s secret) LogValue() slog.Value { return slog.StringValue(redacted) }

type addresses []string

func (a *addresses) UnmarshalText(text []byte) error {
	*a = split(text)
	for _, address := range *a {
		if err := checkAddress(address); err != nil {
			return fmt.Errorf("holds %s, %w", quote(address), err)
		}
	}
	return nil
}

func checkAddress(address string) error {
	if strings.Contains(address, "://") {
		return errors.New("which is a URL and must be host:port")
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil || host == "" || strings.ContainsAny(host, " /\t\n") {
		return errors.New("which is no host:port")
	}
	if number, err := strconv.ParseUint(port, 10, 16); err != nil || number == 0 {
		return errors.New("whose port is not 1 to 65535")
	}
	return nil
}

type opsAddress string

func (a *opsAddress) UnmarshalText(text []byte) error {
	*a = opsAddress(text)
	if *a == ops.Off {
		return nil
	}
	_, port, err := net.SplitHostPort(string(text))
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return fmt.Errorf("is %s and must be host:port, :port or off", quote(string(text)))
	}
	return nil
}

// loopback says that only processes of this machine reach it.
func (a opsAddress) loopback() bool {
	host, _, err := net.SplitHostPort(string(a))
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// kafkaName says what is wrong with a name of a topic, as Kafka has it; nil: nothing.
func kafkaName(name string, longest int) error {
	if name == "." || name == ".." {
		return errors.New("which Kafka takes for no name")
	}
	if len(name) > longest {
		return fmt.Errorf("which is longer than %d characters", longest)
	}
	if strings.ContainsFunc(name, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-')
	}) {
		return errors.New("which has other characters than letters, digits, '.', '_' and '-'")
	}
	return nil
}

// longestName is how long a topic's name may be.
const longestName = 249

type topics []string

func (t *topics) UnmarshalText(text []byte) error {
	*t = split(text)
	if len(*t) == 0 {
		return errors.New("holds no name")
	}
	for i, name := range *t {
		if err := kafkaName(name, longestName); err != nil {
			return fmt.Errorf("holds %s, %w", quote(name), err)
		}
		if slices.Contains((*t)[:i], name) {
			return fmt.Errorf("holds %s twice", quote(name))
		}
	}
	return nil
}

type topicPrefix string

func (p *topicPrefix) UnmarshalText(text []byte) error {
	longest := longestName
	for _, name := range kafka.NewTopics("").All() {
		longest = min(longest, longestName-len(name))
	}
	if err := kafkaName(string(text), longest); err != nil {
		return fmt.Errorf("is %s, %w", quote(string(text)), err)
	}
	*p = topicPrefix(text)
	return nil
}

type instanceID string

func (i *instanceID) UnmarshalText(text []byte) error {
	if err := kafkaName(string(text), 100); err != nil {
		return fmt.Errorf("is %s, %w", quote(string(text)), err)
	}
	*i = instanceID(text)
	return nil
}

type sinkName string

// routeName marks the dead letters of route; a sink of that name would write the same keys.
const routeName = "route"

func (n *sinkName) UnmarshalText(text []byte) error {
	if err := kafkaName(string(text), 100); err != nil {
		return fmt.Errorf("is %s, %w", quote(string(text)), err)
	}
	if string(text) == routeName {
		return errors.New("is route, which names the dead letters of the processor")
	}
	*n = sinkName(text)
	return nil
}

type startPosition string

func (p *startPosition) UnmarshalText(text []byte) error {
	if _, err := sink.ParseStart(string(text)); err != nil {
		return fmt.Errorf("is %s and must be earliest, latest, an RFC 3339 time or Unix seconds", quote(string(text)))
	}
	*p = startPosition(text)
	return nil
}

type deviceFlags []uint8

func (f *deviceFlags) UnmarshalText(text []byte) error {
	if string(text) == "all" {
		return nil
	}
	for _, item := range split(text) {
		value, err := strconv.ParseUint(item, 10, 8)
		if err != nil {
			return fmt.Errorf("holds %s, which is no integer of 0 to 255", quote(item))
		}
		*f = append(*f, uint8(value))
	}
	if len(*f) == 0 {
		return errors.New("holds no device flag")
	}
	return nil
}

type uids []string

func (u *uids) UnmarshalText(text []byte) error {
	*u = split(text)
	for _, uid := range *u {
		if !schemas.ValidUID(uid) {
			return errors.New("holds a uid that is not 1 to 256 bytes of UTF-8 without control characters")
		}
	}
	return nil
}

type events []schemas.Event

func (e *events) UnmarshalText(text []byte) error {
	for _, item := range split(text) {
		event := schemas.Event(item)
		if !slices.Contains(schemas.Events(), event) {
			return fmt.Errorf("holds %s and may hold user.onlinestatus, msg.offline and msg.notify", quote(item))
		}
		if !slices.Contains(*e, event) {
			*e = append(*e, event)
		}
	}
	if len(*e) == 0 {
		return errors.New("holds no event")
	}
	return nil
}

// webhookURL is secret, because it may hold credentials.
type webhookURL secret

func (u *webhookURL) UnmarshalText(text []byte) error {
	parsed, err := url.Parse(string(text))
	switch {
	case err != nil: // the error would hold the value
		return errors.New("is no URL")
	case parsed.Scheme != "http" && parsed.Scheme != "https":
		return errors.New("has a scheme other than http and https")
	case parsed.Hostname() == "":
		return errors.New("names no host")
	case strings.ContainsFunc(parsed.RawQuery, func(r rune) bool { return r <= ' ' || r > '~' }):
		return errors.New("has a blank or another character in its query that must be escaped, such as %20")
	case parsed.Fragment != "":
		return errors.New("has a fragment (#…), which is never sent")
	}
	if port := parsed.Port(); port != "" {
		if number, err := strconv.ParseUint(port, 10, 16); err != nil || number == 0 {
			return errors.New("has a port that is not 1 to 65535")
		}
	}
	*u = webhookURL(text)
	return nil
}

func (u webhookURL) String() string       { return redacted }
func (u webhookURL) GoString() string     { return redacted }
func (u webhookURL) LogValue() slog.Value { return slog.StringValue(redacted) }

// url is what UnmarshalText has checked.
func (u webhookURL) url() *url.URL {
	parsed, err := url.Parse(string(u))
	if err != nil {
		panic("a webhook URL that was checked is no URL")
	}
	return parsed
}

// secrets are keys of Standard Webhooks, newest first.
type secrets [][]byte

const (
	secretPrefix    = "whsec_"
	shortestSecret  = 24 // bytes, by the specification
	shortSecretText = "OFFHOOK_WEBHOOK_SECRETS holds a secret of fewer than 24 bytes, the least that Standard Webhooks has; receivers' libraries may refuse it"
)

func (s *secrets) UnmarshalText(text []byte) error {
	for _, item := range split(text) {
		key, err := parseSecret(item)
		if err != nil {
			return fmt.Errorf("holds a secret that %w", err)
		}
		*s = append(*s, key)
	}
	if len(*s) == 0 {
		return errors.New("holds no secret")
	}
	return nil
}

func parseSecret(text string) ([]byte, error) {
	encoded, ok := strings.CutPrefix(text, secretPrefix)
	if !ok {
		return nil, errors.New("does not begin with whsec_")
	}
	key, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(encoded, "="))
	if err != nil || len(key) == 0 {
		return nil, errors.New("is not whsec_ and base64")
	}
	return key, nil
}

func (s secrets) warnings() []string {
	if slices.ContainsFunc(s, func(key []byte) bool { return len(key) < shortestSecret }) {
		return []string{shortSecretText}
	}
	return nil
}

func (s secrets) String() string       { return redacted }
func (s secrets) GoString() string     { return redacted }
func (s secrets) LogValue() slog.Value { return slog.StringValue(redacted) }

// headers are request headers; their values may be secret.
type headers http.Header

// reservedHeaders are set by the contract or by the connection.
var reservedHeaders = []string{
	"Content-Type", "Content-Length", "Transfer-Encoding", "Connection", "Host", "Trailer", "Upgrade", "Te", "Expect", "Traceparent", "Content-Encoding",
	"Idempotency-Key", "X-Idempotency-Key", // with which net/http sends a request again by itself
	"Webhook-Id", "Webhook-Timestamp", "Webhook-Signature",
}

func (h *headers) UnmarshalText(text []byte) error {
	*h = make(headers)
	line := 0
	for item := range strings.SplitSeq(string(text), "\n") {
		line++
		if item = strings.TrimSpace(item); item == "" {
			continue
		}
		name, value, ok := strings.Cut(item, ":")
		if !ok || !isToken(name) {
			return fmt.Errorf("line %d is not Name: value", line)
		}
		name, value = http.CanonicalHeaderKey(name), strings.TrimSpace(value)
		if slices.Contains(reservedHeaders, name) {
			return fmt.Errorf("line %d sets %s, which offhook sets itself", line, name)
		}
		if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
			return fmt.Errorf("line %d has a control character", line)
		}
		http.Header(*h).Add(name, value)
	}
	return nil
}

// isToken reports whether a header may have this name (RFC 9110, token).
func isToken(name string) bool {
	return name != "" && !strings.ContainsFunc(name, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("!#$%&'*+-.^_`|~", r))
	})
}

func (h headers) String() string       { return redacted }
func (h headers) GoString() string     { return redacted }
func (h headers) LogValue() slog.Value { return slog.StringValue(redacted) }

// queryToken is a secret that is long enough not to be guessed.
type queryToken secret

// shortestToken is the least that a token may have, in bytes.
const shortestToken = 16

// UnmarshalText is for the settings.
func (t *queryToken) UnmarshalText(text []byte) error {
	if len(text) < shortestToken {
		return fmt.Errorf("has %d bytes and must have at least %d", len(text), shortestToken)
	}
	for _, b := range text {
		if b <= ' ' || b > '~' {
			return errors.New("must be printable ASCII without spaces")
		}
	}
	*t = queryToken(text)
	return nil
}

func (t queryToken) String() string       { return redacted }
func (t queryToken) GoString() string     { return redacted }
func (t queryToken) LogValue() slog.Value { return slog.StringValue(redacted) }

// baseURL is an http or https URL of a server, without a trailing slash.
type baseURL string

// UnmarshalText is for the settings.
func (u *baseURL) UnmarshalText(text []byte) error {
	parsed, err := url.Parse(string(text))
	if err != nil || parsed.Scheme != "http" && parsed.Scheme != "https" || parsed.Hostname() == "" {
		return errors.New("is no http or https URL")
	}
	if parsed.User != nil || parsed.RawQuery != "" || parsed.ForceQuery || parsed.Fragment != "" {
		return errors.New("must have neither user, query nor fragment")
	}
	*u = baseURL(strings.TrimSuffix(string(text), "/"))
	return nil
}

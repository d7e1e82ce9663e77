package main

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"

	"github.com/offhook/offhook/internal/kafka"
	"github.com/offhook/offhook/schemas"
	"github.com/offhook/offhook/sink"
)

const (
	variablePrefix = "OFFHOOK_"
	fileSuffix     = "_FILE"
)

// part is what of offhook a command runs; each needs its own variables beside the common ones.
type part string

const (
	partCommon    part = ""
	partProcessor part = "processor"
	partSink      part = "sink"
	partProcess   part = "process"  // what any process has that runs until it is stopped
	partAsker     part = "asker"    // what the command needs that asks the query API; it takes nothing of the common
	partOperator  part = "operator" // what of the sink's the operator's commands need: which group it is, and which topics
)

// settings are all variables of the environment. A field's tags say: its variable, without prefix (env); the default
// (envDefault); for people, what it is (doc) and what the default is where that is no value (shown); a value that works
// (example); the part of offhook that it belongs to (part), and another (also), which alone read it; that it must be set (required); that
// it is secret and may come from the file that the variable with _FILE names (secret); its bounds (min, max) or all that
// it may be (oneof).
type settings struct {
	KafkaBrokers       addresses `env:"KAFKA_BROKERS" required:"true" example:"kafka-1:9092,kafka-2:9092" doc:"host:port of some brokers, comma-separated"`
	KafkaTLS           boolean   `env:"KAFKA_TLS" envDefault:"false" example:"true" doc:"whether to speak TLS, 1.2 at least"`
	KafkaTLSCAFile     string    `env:"KAFKA_TLS_CA_FILE" shown:"the system's" example:"/etc/offhook/ca.pem" doc:"PEM file of the authorities that sign the brokers' certificates"`
	KafkaTLSCertFile   string    `env:"KAFKA_TLS_CERT_FILE" example:"/etc/offhook/client.pem" doc:"PEM file of the client certificate"`
	KafkaTLSKeyFile    string    `env:"KAFKA_TLS_KEY_FILE" example:"/etc/offhook/client-key.pem" doc:"PEM file of its key"`
	KafkaSASLMechanism string    `env:"KAFKA_SASL_MECHANISM" oneof:"PLAIN,SCRAM-SHA-256,SCRAM-SHA-512" example:"SCRAM-SHA-512" doc:"PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512"`
	KafkaSASLUsername  string    `env:"KAFKA_SASL_USERNAME" example:"offhook" doc:"required with a mechanism"`
	KafkaSASLPassword  secret    `env:"KAFKA_SASL_PASSWORD" secret:"true" example:"a-password" doc:"required with a mechanism"`

	ConnectionsTopic topics `env:"CONNECTIONS_TOPIC" envDefault:"im.connections" part:"processor" example:"im.connections" doc:"input topics of connection events, comma-separated"`
	MessagesTopic    topics `env:"MESSAGES_TOPIC" envDefault:"im.messages" part:"processor" example:"im.messages" doc:"input topics of messages, comma-separated"`
	ConnectionsStart string `env:"CONNECTIONS_START" envDefault:"earliest" part:"processor" oneof:"earliest,latest" example:"earliest" doc:"earliest or latest: where to begin on a connections topic that was never read"`
	MessagesStart    string `env:"MESSAGES_START" envDefault:"latest" part:"processor" oneof:"earliest,latest" example:"latest" doc:"the same for messages: phones must not get those of a week"`

	TopicPrefix       topicPrefix `env:"TOPIC_PREFIX" envDefault:"offhook" example:"offhook" doc:"begins the names of the topics that offhook owns, of its groups and transactional ids"`
	Partitions        count       `env:"PARTITIONS" envDefault:"12" min:"1" max:"10000" example:"12" doc:"of each topic that offhook creates; never changed afterwards"`
	ReplicationFactor count       `env:"REPLICATION_FACTOR" envDefault:"-1" min:"-1" max:"100" example:"3" doc:"of the topics that it creates; -1: the brokers' default"`
	CreateTopics      boolean     `env:"CREATE_TOPICS" envDefault:"true" example:"true" doc:"whether to create its topics where they are missing"`
	EventRetention    duration    `env:"EVENT_RETENTION" envDefault:"168h" min:"1m" max:"87600h" example:"168h" doc:"of the event topics that it creates: the longest outage of an endpoint that loses nothing"`
	MaxRecordBytes    size        `env:"MAX_RECORD_BYTES" envDefault:"1MiB" min:"1KiB" max:"32MiB" example:"1MiB" doc:"largest input record: key, value and headers; a larger one goes to the dead letters"`

	InboxKeep          duration    `env:"INBOX_KEEP" envDefault:"0" min:"0s" max:"8760h" part:"processor" example:"1h" doc:"how long the inbox keeps records that are done"`
	InstanceID         instanceID  `env:"INSTANCE_ID" part:"processor" example:"offhook-0" doc:"a name that this process alone has and keeps over restarts (a pod of a StatefulSet): a restart then moves no partition"`
	CommitInterval     duration    `env:"COMMIT_INTERVAL" envDefault:"100ms" min:"1ms" max:"5s" part:"processor" example:"100ms" doc:"longest that a transaction stays open; a drained input commits at once"`
	CloseMemory        duration    `env:"CLOSE_MEMORY" envDefault:"10m" min:"0s" max:"168h" part:"processor" example:"10m" doc:"how long a close is remembered against events that come late"`
	ConnectionTTL      duration    `env:"CONNECTION_TTL" envDefault:"0" min:"0s" max:"8760h" part:"processor" example:"90s" doc:"a connection without online or heartbeat for so long is closed, counted only while offhook listens; 0: never"`
	BackgroundIsOnline boolean     `env:"BACKGROUND_IS_ONLINE" envDefault:"false" part:"processor" example:"true" doc:"whether a connection in the background spares its user a msg.offline"`
	OnlineDeviceFlags  deviceFlags `env:"ONLINE_DEVICE_FLAGS" shown:"all" part:"processor" example:"0,2" doc:"device flags that count as online for msg.offline, comma-separated; 0: push unless the app is online"`
	SystemUIDs         uids        `env:"SYSTEM_UIDS" part:"processor" example:"system,notifier" doc:"uids that never are recipients, comma-separated"`
	NotifyOrderBy      string      `env:"NOTIFY_ORDER_BY" envDefault:"from_uid" part:"processor" oneof:"from_uid,channel_id" example:"from_uid" doc:"from_uid or channel_id: msg.notify is in order for each"`

	SinkName             sinkName      `env:"SINK_NAME" envDefault:"default" part:"sink" also:"operator" example:"default" doc:"one name an endpoint; its consumer group is <prefix>.sink.<name>"`
	SinkStart            startPosition `env:"SINK_START" shown:"earliest for the sink default" part:"sink" example:"latest" doc:"where a sink without offsets begins: earliest, latest, or a time (RFC 3339 or Unix seconds); required for a new sink of another name"`
	WebhookURL           webhookURL    `env:"WEBHOOK_URL" part:"sink" required:"true" secret:"true" example:"https://backend.example/hook" doc:"endpoint of the webhooks, http or https"`
	WebhookEvents        events        `env:"WEBHOOK_EVENTS" shown:"all three" part:"sink" also:"operator" example:"user.onlinestatus,msg.offline" doc:"events to deliver: user.onlinestatus, msg.offline, msg.notify"`
	WebhookSecrets       secrets       `env:"WEBHOOK_SECRETS" part:"sink" secret:"true" example:"whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3" doc:"whsec_…, comma-separated, newest first: each signs; none: requests are not signed"`
	WebhookHeaders       headers       `env:"WEBHOOK_HEADERS" part:"sink" secret:"true" example:"Authorization: Bearer a-token" doc:"more request headers, Name: value, one a line"`
	WebhookTLSCAFile     string        `env:"WEBHOOK_TLS_CA_FILE" part:"sink" shown:"the system's" example:"/etc/offhook/webhook-ca.pem" doc:"PEM file of the authorities that sign the endpoint's certificate; TLS is 1.2 at least"`
	WebhookTLSCertFile   string        `env:"WEBHOOK_TLS_CERT_FILE" part:"sink" example:"/etc/offhook/webhook.pem" doc:"PEM file of the client certificate for the endpoint"`
	WebhookTLSKeyFile    string        `env:"WEBHOOK_TLS_KEY_FILE" part:"sink" example:"/etc/offhook/webhook-key.pem" doc:"PEM file of its key"`
	WebhookFlushInterval duration      `env:"WEBHOOK_FLUSH_INTERVAL" envDefault:"500ms" min:"1ms" max:"1m" part:"sink" example:"500ms" doc:"longest that an event waits for its batch to fill"`
	WebhookBatchMax      count         `env:"WEBHOOK_BATCH_MAX" envDefault:"100" min:"1" max:"10000" part:"sink" example:"100" doc:"most events of a request"`
	WebhookBatchBytes    size          `env:"WEBHOOK_BATCH_BYTES" envDefault:"1MiB" min:"1KiB" max:"64MiB" part:"sink" example:"1MiB" doc:"largest body, but for a single event that is larger"`
	WebhookTimeout       duration      `env:"WEBHOOK_TIMEOUT" envDefault:"10s" min:"100ms" max:"10m" part:"sink" example:"10s" doc:"for one attempt, from the connection to the answer's last byte"`
	WebhookMaxInFlight   count         `env:"WEBHOOK_MAX_IN_FLIGHT" envDefault:"64" min:"1" max:"10000" part:"sink" example:"64" doc:"most requests under way at once"`
	WebhookLaneInFlight  count         `env:"WEBHOOK_LANE_IN_FLIGHT" envDefault:"8" min:"1" max:"1000" part:"sink" example:"8" doc:"most batches of one partition under way at once; none overtakes another that shares a uid with it"`
	WebhookRate          count         `env:"WEBHOOK_RATE" envDefault:"0" min:"0" max:"1000000" part:"sink" example:"200" doc:"most requests a second of this process; 0: no limit"`
	WebhookGiveUpAfter   duration      `env:"WEBHOOK_GIVE_UP_AFTER" envDefault:"0" min:"0s" max:"8760h" part:"sink" example:"72h" doc:"how long after its first attempt a batch that fails goes to the dead letters; 0: never"`
	WebhookOfflineBody   string        `env:"WEBHOOK_OFFLINE_BODY" envDefault:"array" part:"sink" oneof:"array,object" example:"object" doc:"array or object: whether a msg.offline request has an array of events, or is one event"`

	ShutdownTimeout duration   `env:"SHUTDOWN_TIMEOUT" envDefault:"25s" min:"1s" max:"1h" part:"process" example:"25s" doc:"how long a stop may take"`
	OpsAddr         opsAddress `env:"OPS_ADDR" envDefault:":8080" part:"process" example:":8080" doc:"where /metrics, /livez and /readyz are served, and the query API; off: nowhere"`
	QueryToken      queryToken `env:"QUERY_TOKEN" part:"process" also:"asker" secret:"true" example:"a-long-random-text" doc:"what who asks for users has to send, the same for all processes; none: the query API is served only where OFFHOOK_OPS_ADDR is a loopback address"`
	AdvertisedURL   baseURL    `env:"ADVERTISED_URL" part:"processor" example:"http://10.0.0.7:8080" doc:"where other processes reach this one's OFFHOOK_OPS_ADDR, to ask for the users that it owns"`
	LogLevel        string     `env:"LOG_LEVEL" envDefault:"info" oneof:"debug,info,warn,error" example:"info" doc:"debug, info, warn or error"`
	LogFormat       string     `env:"LOG_FORMAT" envDefault:"json" oneof:"json,text" example:"json" doc:"json or text"`

	files map[string]string                     // by variable: the file that its value came from
	proxy func(*http.Request) (*url.URL, error) // of the environment; nil: none
}

// variable is one field of settings and its tags.
type variable struct {
	field     int
	name      string // with prefix
	def       string
	shown     string
	example   string
	doc       string
	part      part
	also      part // partCommon: no other
	required  bool
	secret    bool
	min, max  string
	oneof     []string
	fieldName string
}

// variables are all that settings has, in its order.
var variables = func() []variable {
	var all []variable
	for i, field := range reflect.VisibleFields(reflect.TypeFor[settings]()) {
		tag := field.Tag
		if tag.Get("env") == "" {
			continue
		}
		v := variable{
			field: i, fieldName: field.Name, name: variablePrefix + tag.Get("env"),
			def: tag.Get("envDefault"), shown: tag.Get("shown"), example: tag.Get("example"), doc: tag.Get("doc"),
			part: part(tag.Get("part")), also: part(tag.Get("also")), required: tag.Get("required") != "", secret: tag.Get("secret") != "",
			min: tag.Get("min"), max: tag.Get("max"),
		}
		if oneof := tag.Get("oneof"); oneof != "" {
			v.oneof = strings.Split(oneof, ",")
		}
		all = append(all, v)
	}
	return all
}()

// settingsError is a problem with a variable. Its text is one line that names the variable, the problem and a value
// that works, and never holds a value that may be secret.
type settingsError struct {
	name    string // of the variable, or of the one with _FILE
	problem string
	example string
}

func (e *settingsError) Error() string {
	return fmt.Sprintf("%s %s; a value that works: %s", e.name, e.problem, e.example)
}

// environment is the process's, by name.
type environment map[string]string

func newEnvironment(list []string) environment {
	e := make(environment, len(list))
	for _, item := range list {
		if name, value, ok := strings.Cut(item, "="); ok {
			e[name] = value
		}
	}
	return e
}

// load reads and validates the settings that the parts need, beside the common ones; others stay zero, whatever their
// variables hold. warnings are sentences for the log. An error is a *settingsError.
func load(environ environment, parts ...part) (s settings, warnings []string, err error) {
	values := make(environment)
	named := make(map[string]string) // the variable that gave a value, by the one that takes it
	files := make(map[string]string)
	var known []string
	for _, v := range variables {
		known = append(known, v.name)
		if v.secret {
			known = append(known, v.name+fileSuffix)
		}
		common := v.part == partCommon && !slices.Contains(parts, partAsker)
		if !common && (v.part == partCommon || !slices.Contains(parts, v.part)) && (v.also == partCommon || !slices.Contains(parts, v.also)) {
			continue
		}
		named[v.name] = v.name
		value := environ[v.name]
		if file := environ[v.name+fileSuffix]; v.secret && file != "" {
			if value != "" {
				return settings{}, nil, v.problem(v.name, "is set, and so is "+v.name+fileSuffix+": only one may be")
			}
			named[v.name], files[v.name] = v.name+fileSuffix, file
			if value, err = readSecret(file); err != nil {
				return settings{}, nil, &settingsError{v.name + fileSuffix, "cannot be read: " + err.Error(), "the path of a file that holds the value"}
			}
		}
		if value != "" {
			values[v.name] = value
		}
	}
	problem := func(v variable, text string) error { return v.problem(named[v.name], text) }

	parseErr := env.ParseWithOptions(&s, env.Options{Environment: values, Prefix: variablePrefix})
	failed := make(map[string]error) // by field
	if aggregate, ok := errors.AsType[env.AggregateError](parseErr); ok {
		for _, err := range aggregate.Errors {
			parse, ok := errors.AsType[env.ParseError](err)
			if !ok {
				return settings{}, nil, fmt.Errorf("parse settings: %w", err)
			}
			failed[parse.Name] = parse.Err
		}
	} else if parseErr != nil {
		return settings{}, nil, fmt.Errorf("parse settings: %w", parseErr)
	}
	for _, v := range variables {
		if _, mine := named[v.name]; !mine {
			continue
		}
		if err := failed[v.fieldName]; err != nil {
			return settings{}, nil, problem(v, err.Error())
		}
		field := reflect.ValueOf(&s).Elem().Field(v.field)
		if v.required && field.Len() == 0 {
			return settings{}, nil, problem(v, "is required and not set")
		}
		if text := v.outside(field); text != "" {
			return settings{}, nil, problem(v, text)
		}
	}
	s.files = files
	if slices.Contains(parts, partAsker) {
		return s, nil, nil
	}
	if name, text := s.inconsistent(parts); text != "" {
		return settings{}, nil, problem(variables[slices.IndexFunc(variables, func(v variable) bool { return v.name == name })], text)
	}
	if slices.Contains(parts, partSink) {
		if s.proxy, err = environ.proxy(s.WebhookURL.url()); err != nil {
			return settings{}, nil, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(environ)) {
		if strings.HasPrefix(name, variablePrefix) && !slices.Contains(known, name) && !strings.HasPrefix(name, variablePrefix+"TEST_") {
			warnings = append(warnings, name+" is no variable of this release and has no effect")
		}
	}
	return s, append(warnings, s.WebhookSecrets.warnings()...), nil
}

// readSecret reads a file without its trailing newline.
func readSecret(file string) (string, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	return secretText(content)
}

// secretText is the value in a file's content.
func secretText(content []byte) (string, error) {
	text, cut := strings.CutSuffix(string(content), "\n")
	if cut {
		text = strings.TrimSuffix(text, "\r")
	}
	if text == "" {
		return "", errors.New("the file is empty")
	}
	return text, nil
}

func (v variable) problem(name, text string) error {
	example := name + "=" + v.example
	if name != v.name {
		example = "a file that holds " + v.example
	}
	return &settingsError{name: name, problem: text, example: example}
}

// outside says that a value is not within the bounds of its tags; empty: it is, or there are none.
func (v variable) outside(field reflect.Value) string {
	if len(v.oneof) > 0 {
		if text := field.String(); text != "" && !slices.Contains(v.oneof, text) {
			return fmt.Sprintf("is %s and must be one of %s", quote(text), strings.Join(v.oneof, ", "))
		}
		return ""
	}
	if v.min == "" {
		return ""
	}
	bound := func(text string) int64 {
		value := reflect.New(field.Type())
		if err := value.Interface().(interface{ UnmarshalText([]byte) error }).UnmarshalText([]byte(text)); err != nil {
			panic(v.name + ": bound " + text + " " + err.Error()) // a tag of ours is wrong
		}
		return value.Elem().Int()
	}
	if got := field.Int(); got < bound(v.min) || got > bound(v.max) {
		return fmt.Sprintf("is %v and must be %s to %s", field.Interface(), v.min, v.max)
	}
	return ""
}

// inconsistent says which variable does not go with the others, and why.
func (s *settings) inconsistent(parts []part) (name, text string) {
	switch {
	case s.ReplicationFactor == 0:
		return "OFFHOOK_REPLICATION_FACTOR", "is 0 and must be -1 or at least 1"
	case s.KafkaSASLMechanism == "" && s.KafkaSASLUsername != "":
		return "OFFHOOK_KAFKA_SASL_MECHANISM", "is required with OFFHOOK_KAFKA_SASL_USERNAME"
	case s.KafkaSASLMechanism == "" && s.KafkaSASLPassword != "":
		return "OFFHOOK_KAFKA_SASL_MECHANISM", "is required with OFFHOOK_KAFKA_SASL_PASSWORD"
	case s.KafkaSASLMechanism != "" && s.KafkaSASLUsername == "":
		return "OFFHOOK_KAFKA_SASL_USERNAME", "is required with OFFHOOK_KAFKA_SASL_MECHANISM"
	case s.KafkaSASLMechanism != "" && s.KafkaSASLPassword == "":
		return "OFFHOOK_KAFKA_SASL_PASSWORD", "is required with OFFHOOK_KAFKA_SASL_MECHANISM"
	case !bool(s.KafkaTLS) && cmp.Or(s.KafkaTLSCAFile, s.KafkaTLSCertFile, s.KafkaTLSKeyFile) != "":
		return "OFFHOOK_KAFKA_TLS", "is false, and a file for TLS is named"
	case s.KafkaTLSCertFile == "" && s.KafkaTLSKeyFile != "":
		return "OFFHOOK_KAFKA_TLS_CERT_FILE", "is required with OFFHOOK_KAFKA_TLS_KEY_FILE"
	case s.KafkaTLSCertFile != "" && s.KafkaTLSKeyFile == "":
		return "OFFHOOK_KAFKA_TLS_KEY_FILE", "is required with OFFHOOK_KAFKA_TLS_CERT_FILE"
	}
	if _, err := (kafka.Config{TLS: bool(s.KafkaTLS), CAFile: s.KafkaTLSCAFile}).TLSConfig(); err != nil {
		return "OFFHOOK_KAFKA_TLS_CA_FILE", "cannot be used: " + rootCause(err)
	}
	if _, err := (kafka.Config{TLS: bool(s.KafkaTLS), CertFile: s.KafkaTLSCertFile, KeyFile: s.KafkaTLSKeyFile}).TLSConfig(); err != nil {
		return "OFFHOOK_KAFKA_TLS_CERT_FILE", "cannot be used, with OFFHOOK_KAFKA_TLS_KEY_FILE: " + rootCause(err)
	}
	if slices.Contains(parts, partSink) {
		if name, text := s.inconsistentWebhookTLS(); text != "" {
			return name, text
		}
	}
	if slices.Contains(parts, partProcessor) {
		owned := kafka.NewTopics(string(s.TopicPrefix)).All()
		for _, topic := range s.ConnectionsTopic {
			if slices.Contains(s.MessagesTopic, topic) {
				return "OFFHOOK_MESSAGES_TOPIC", "names " + quote(topic) + ", and so does OFFHOOK_CONNECTIONS_TOPIC"
			}
			if slices.Contains(owned, topic) {
				return "OFFHOOK_CONNECTIONS_TOPIC", "names " + quote(topic) + ", which offhook owns"
			}
		}
		for _, topic := range s.MessagesTopic {
			if slices.Contains(owned, topic) {
				return "OFFHOOK_MESSAGES_TOPIC", "names " + quote(topic) + ", which offhook owns"
			}
		}
	}
	return "", ""
}

func (s *settings) inconsistentWebhookTLS() (name, text string) {
	const ca, certificate, key = "OFFHOOK_WEBHOOK_TLS_CA_FILE", "OFFHOOK_WEBHOOK_TLS_CERT_FILE", "OFFHOOK_WEBHOOK_TLS_KEY_FILE"
	for _, file := range []struct{ name, path string }{
		{ca, s.WebhookTLSCAFile}, {certificate, s.WebhookTLSCertFile}, {key, s.WebhookTLSKeyFile},
	} {
		if file.path != "" && s.WebhookURL.url().Scheme != "https" {
			return file.name, "is set, and OFFHOOK_WEBHOOK_URL is not https"
		}
	}
	switch {
	case s.WebhookTLSCertFile == "" && s.WebhookTLSKeyFile != "":
		return certificate, "is required with " + key
	case s.WebhookTLSCertFile != "" && s.WebhookTLSKeyFile == "":
		return key, "is required with " + certificate
	}
	if err := readCredential(s.webhookRoots(), new(sink.Credentials)); err != nil {
		return ca, "cannot be used: " + err.Error()
	}
	if err := readCredential(s.webhookCertificate(), new(sink.Credentials)); err != nil {
		return certificate, "cannot be used, with " + key + ": " + err.Error()
	}
	return "", ""
}

// rootCause is the text of the innermost error, which does not repeat the variable's name.
func rootCause(err error) string {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err.Error()
		}
		if _, ok := errors.AsType[*os.PathError](next); ok && errors.Unwrap(next) != nil {
			return next.Error() // it names the file
		}
		err = next
	}
}

// kafka says how to reach the brokers.
func (s *settings) kafka() kafka.Config {
	return kafka.Config{
		Brokers: s.KafkaBrokers, TLS: bool(s.KafkaTLS), CAFile: s.KafkaTLSCAFile, CertFile: s.KafkaTLSCertFile, KeyFile: s.KafkaTLSKeyFile,
		SASLMechanism: s.KafkaSASLMechanism, SASLUsername: s.KafkaSASLUsername, SASLPassword: string(s.KafkaSASLPassword),
	}
}

// spec is what the owned topics are created and checked by.
func (s *settings) spec() kafka.Spec {
	return kafka.Spec{
		Topics: kafka.NewTopics(string(s.TopicPrefix)), Create: bool(s.CreateTopics), Partitions: int32(s.Partitions),
		ReplicationFactor: int16(s.ReplicationFactor), EventRetention: time.Duration(s.EventRetention), MaxRecordBytes: int(s.MaxRecordBytes),
	}
}

// sinkConfig is what a sink, and whatever else sends with its settings, works by. Files are read once; see
// [settings.credentials] for more.
func (s *settings) sinkConfig() (sink.Config, error) {
	start, err := sink.ParseStart(string(s.SinkStart))
	if err != nil {
		return sink.Config{}, fmt.Errorf("OFFHOOK_SINK_START %w", err)
	}
	c, err := s.credentials(slog.New(slog.DiscardHandler))
	if err != nil {
		return sink.Config{}, err
	}
	return sink.Config{
		Name: string(s.SinkName), Start: start, Prefix: string(s.TopicPrefix), URL: s.WebhookURL.url(), Events: s.webhookEvents(),
		Credentials: *c.current.Load(), Proxy: s.proxy, FlushInterval: time.Duration(s.WebhookFlushInterval),
		BatchMax: int(s.WebhookBatchMax), BatchBytes: int(s.WebhookBatchBytes), OfflineObject: s.WebhookOfflineBody == "object",
		Timeout: time.Duration(s.WebhookTimeout), MaxInFlight: int(s.WebhookMaxInFlight), LaneInFlight: int(s.WebhookLaneInFlight),
		Rate: int(s.WebhookRate), GiveUpAfter: time.Duration(s.WebhookGiveUpAfter), MaxRecordBytes: int(s.MaxRecordBytes),
		ShutdownTimeout: time.Duration(s.ShutdownTimeout),
	}, nil
}

// webhookEvents are the events to deliver.
func (s *settings) webhookEvents() []schemas.Event {
	if len(s.WebhookEvents) == 0 {
		return schemas.Events()
	}
	return s.WebhookEvents
}

// level is the log's.
func (s *settings) level() slog.Level {
	return map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}[s.LogLevel]
}

// quote shows a value that is no secret, so that it stays on one line and short.
func quote(text string) string {
	const longest = 60
	if len(text) > longest {
		text = text[:longest] + "…"
	}
	return strconv.Quote(text)
}

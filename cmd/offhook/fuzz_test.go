package main

import (
	"errors"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/net/http/httpguts"

	"github.com/offhook/offhook/schemas"
)

// FuzzSettings: each variable takes a text, or says in one line what is wrong with it, names itself, and shows no value that may be
// secret; and what it takes can be used.
func FuzzSettings(f *testing.F) {
	for i, v := range variables {
		for _, value := range append(append(v.oneof, v.example, v.def, v.min, v.max), "-1", "1e3", "NaN", ",,", "\x00", "\xff", "é", "http://a:0/", "=") {
			f.Add(uint8(i), value)
		}
	}
	parts := []part{partProcessor, partSink, partProcess, partOperator}
	f.Fuzz(func(t *testing.T, i uint8, value string) {
		v := variables[int(i)%len(variables)]
		environ := environment{"OFFHOOK_KAFKA_BROKERS": "localhost:9092", "OFFHOOK_WEBHOOK_URL": "http://localhost/hook"}
		if strings.HasSuffix(v.name, fileSuffix) {
			return // it names a file, which is read
		}
		environ[v.name] = value
		s, _, err := load(environ, parts...)
		if err != nil {
			wrong, ok := errors.AsType[*settingsError](err)
			if !ok || wrong.name == "" || wrong.problem == "" || strings.ContainsAny(err.Error(), "\n\r\x00") {
				t.Errorf("%s=%q: the error is %q", v.name, value, err)
			}
			if rest := strings.ReplaceAll(err.Error(), v.example, ""); v.secret && len(value) > 8 && strings.Contains(rest, value) {
				t.Errorf("%s: the error shows the value: %q", v.name, err)
			}
			return
		}
		checkUsable(t, v, value, &s)
	})
}

// checkUsable checks what was taken of one variable.
func checkUsable(t *testing.T, v variable, value string, s *settings) {
	t.Helper()
	if value != "" && v.name != "OFFHOOK_ONLINE_DEVICE_FLAGS" && reflect.ValueOf(s).Elem().Field(v.field).IsZero() {
		switch reflect.ValueOf(s).Elem().Field(v.field).Kind() {
		case reflect.String:
			t.Errorf("%s=%q is taken as nothing", v.name, value)
		}
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.WebhookURL.url().String(), http.NoBody)
	if err != nil || request.URL.Hostname() == "" {
		t.Fatalf("%s=%q: no request can be made: %v", v.name, value, err)
	}
	for name, values := range s.WebhookHeaders {
		for _, text := range values {
			if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(text) {
				t.Errorf("%s=%q: no request may have the header %q: %q", v.name, value, name, text)
			}
		}
	}
	for _, uid := range s.SystemUIDs {
		if !schemas.ValidUID(uid) {
			t.Errorf("%s=%q: %q is no uid", v.name, value, uid)
		}
	}
	if s.AdvertisedURL != "" {
		if u, err := url.Parse(string(s.AdvertisedURL) + "/v1/users/online"); err != nil || u.Host == "" {
			t.Errorf("%s=%q: %q is no base of a URL", v.name, value, s.AdvertisedURL)
		}
	}
	if text := s.WebhookURL.String() + s.WebhookHeaders.String() + s.WebhookSecrets.String() + s.KafkaSASLPassword.String() + s.QueryToken.String(); text != strings.Repeat(redacted, 5) {
		t.Errorf("%s: secrets show as %q", v.name, text)
	}
}

// FuzzProxy: a proxy's URL is refused without a word of it, or is one that requests can go through.
func FuzzProxy(f *testing.F) {
	for _, text := range []string{"http://proxy.example:3128", "proxy:3128", "socks5://u:p@proxy", "ftp://proxy", "://", "http://:80", "http://proxy:99999"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if text == "" {
			return
		}
		endpoint := &url.URL{Scheme: "http", Host: "endpoint.example", Path: "/hook"}
		choose, err := environment{"HTTP_PROXY": text}.proxy(endpoint)
		if err != nil {
			if len(text) > 8 && strings.Contains(err.Error(), text) && !strings.Contains("HTTP_PROXY=http://proxy.example:3128", text) {
				t.Errorf("the error shows the value: %q", err)
			}
			return
		}
		got, err := choose(&http.Request{URL: endpoint})
		if err != nil || got == nil || got.Hostname() == "" {
			t.Errorf("%q is taken, and requests go through %v (error %v)", text, got, err)
		}
	})
}

// FuzzSecretFile: what a file of a secret holds is the value, but for one line end.
func FuzzSecretFile(f *testing.F) {
	for _, content := range []string{"secret\n", "secret\r\n", "secret", "\n", "", "a\n\n"} {
		f.Add([]byte(content))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		text, err := secretText(content)
		if err != nil {
			if strings.Trim(string(content), "\r\n") != "" {
				t.Errorf("%q is no value: %v", content, err)
			}
			return
		}
		if rest, ok := strings.CutPrefix(string(content), text); !ok || text == "" || rest != "" && rest != "\n" && rest != "\r\n" {
			t.Errorf("%q is read as %q", content, text)
		}
	})
}

// FuzzFlags: the texts of the operator's flags.
func FuzzFlags(f *testing.F) {
	for _, text := range []string{"msg.offline", "refused", "2h", "1767225600", "2026-01-31T12:00:00Z", "3-1042", "", "-1h", "9223372036854775807"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, flag := range []interface{ UnmarshalText([]byte) error }{new(eventFlag), new(reasonFlag), new(momentFlag), new(positionFlag)} {
			if err := flag.UnmarshalText([]byte(text)); err != nil && (err.Error() == "" || strings.ContainsAny(err.Error(), "\n\x00")) {
				t.Errorf("%T: the error is %q", flag, err)
			}
		}
	})
}

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/offhook/offhook/sink"
)

// pollEvery is how often the files of credentials are read. Kubernetes swaps a mounted secret by renaming symbolic links, which
// no watch of a file sees.
const pollEvery = 2 * time.Second

// credentials are what requests to the endpoint carry, as the files have it now.
type credentials struct {
	log     *slog.Logger
	current atomic.Pointer[sink.Credentials]
	files   []*credentialFile
	every   time.Duration
}

// credentialFile is one part of the credentials: a file, or two that belong together.
type credentialFile struct {
	variables []string // that name the files
	paths     []string // none: the part is not in a file
	// apply reads contents, those of paths, into c. Its error completes "<variable> " or a sentence, and holds no value.
	apply func(contents [][]byte, c *sink.Credentials) (warnings []string, err error)

	inUse observation
	last  observation
	told  string // the problem that the log was told last; empty: none since inUse was taken
}

// observation is what a look at the files saw.
type observation struct {
	contents [][]byte
	problem  string // why there are no contents
}

func (o observation) equal(other observation) bool {
	return o.problem == other.problem && slices.EqualFunc(o.contents, other.contents, bytes.Equal)
}

func (f *credentialFile) look() observation {
	var o observation
	for _, path := range f.paths {
		content, err := os.ReadFile(path)
		if err != nil {
			return observation{problem: err.Error()}
		}
		o.contents = append(o.contents, content)
	}
	return o
}

// readCredential takes a part of the credentials, where it is in a file, into c.
func readCredential(f *credentialFile, c *sink.Credentials) error {
	if len(f.paths) == 0 {
		return nil
	}
	f.inUse = f.look()
	if f.inUse.problem != "" {
		return errors.New(f.inUse.problem)
	}
	_, err := f.apply(f.inUse.contents, c) // load has told the warnings
	return err
}

func newCredentialFile(variables, paths []string, apply func([][]byte, *sink.Credentials) ([]string, error)) *credentialFile {
	f := &credentialFile{variables: variables, apply: apply}
	if !slices.Contains(paths, "") {
		f.paths = paths
	}
	return f
}

func (s *settings) webhookRoots() *credentialFile {
	return newCredentialFile([]string{"OFFHOOK_WEBHOOK_TLS_CA_FILE"}, []string{s.WebhookTLSCAFile},
		func(contents [][]byte, c *sink.Credentials) ([]string, error) {
			pool := x509.NewCertPool()
			if !pool.AppendCertsFromPEM(contents[0]) {
				return nil, errors.New("the file holds no PEM certificate")
			}
			c.Roots = pool
			return nil, nil
		})
}

func (s *settings) webhookCertificate() *credentialFile {
	return newCredentialFile([]string{"OFFHOOK_WEBHOOK_TLS_CERT_FILE", "OFFHOOK_WEBHOOK_TLS_KEY_FILE"}, []string{s.WebhookTLSCertFile, s.WebhookTLSKeyFile},
		func(contents [][]byte, c *sink.Credentials) ([]string, error) {
			pair, err := tls.X509KeyPair(contents[0], contents[1])
			if err != nil {
				return nil, err
			}
			c.Certificate = &pair
			return nil, nil
		})
}

func (s *settings) webhookSecretsFile() *credentialFile {
	const name = "OFFHOOK_WEBHOOK_SECRETS"
	return newCredentialFile([]string{name + fileSuffix}, []string{s.files[name]},
		func(contents [][]byte, c *sink.Credentials) ([]string, error) {
			var keys secrets
			if err := unmarshalSecret(contents[0], &keys); err != nil {
				return nil, err
			}
			c.Secrets = keys
			return keys.warnings(), nil
		})
}

func (s *settings) webhookHeadersFile() *credentialFile {
	const name = "OFFHOOK_WEBHOOK_HEADERS"
	return newCredentialFile([]string{name + fileSuffix}, []string{s.files[name]},
		func(contents [][]byte, c *sink.Credentials) ([]string, error) {
			var h headers
			if err := unmarshalSecret(contents[0], &h); err != nil {
				return nil, err
			}
			c.Headers = http.Header(h)
			return nil, nil
		})
}

func unmarshalSecret(content []byte, to interface{ UnmarshalText([]byte) error }) error {
	text, err := secretText(content)
	if err != nil {
		return err
	}
	return to.UnmarshalText([]byte(text))
}

// credentials reads the files of the credentials, which have been checked; what is in no file stays what it is.
func (s *settings) credentials(log *slog.Logger) (*credentials, error) {
	c := &credentials{log: log.With("stage", "sink", "sink", string(s.SinkName)), every: pollEvery}
	first := &sink.Credentials{Secrets: s.WebhookSecrets, Headers: http.Header(s.WebhookHeaders)}
	for _, f := range []*credentialFile{s.webhookSecretsFile(), s.webhookHeadersFile(), s.webhookRoots(), s.webhookCertificate()} {
		if err := readCredential(f, first); err != nil {
			return nil, &settingsError{f.variables[0], "cannot be used: " + err.Error(), "the path of a file that holds the value"}
		}
		if len(f.paths) > 0 {
			c.files = append(c.files, f)
		}
	}
	c.current.Store(first)
	return c, nil
}

// poll reads the files again and again until ctx ends, and takes what has changed.
func (c *credentials) poll(ctx context.Context) {
	if len(c.files) == 0 {
		return
	}
	ticker := time.NewTicker(c.every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		for _, f := range c.files {
			c.check(f)
		}
	}
}

// check looks at one part's files. What differs from what is in use counts when two looks have seen it: a file that is written
// in place is seen half written by one, and of two files that are written in turn one is seen with the other's older content.
func (c *credentials) check(f *credentialFile) {
	seen := f.look()
	stable := seen.equal(f.last)
	f.last = seen
	if seen.equal(f.inUse) {
		if f.told != "" {
			f.told = ""
			c.log.Info("the files of the endpoint's credentials are again as they were", "variables", strings.Join(f.variables, ", "))
		}
		return
	}
	if !stable {
		return
	}
	problem := seen.problem
	next := *c.current.Load()
	var warnings []string
	if problem == "" {
		var err error
		if warnings, err = f.apply(seen.contents, &next); err != nil {
			problem = err.Error()
		}
	}
	if problem != "" {
		if problem != f.told {
			f.told = problem
			c.log.Warn("credentials for the endpoint have changed and cannot be used; those from before stay in use",
				"variables", strings.Join(f.variables, ", "), "problem", problem)
		}
		return
	}
	f.inUse, f.told = seen, ""
	c.current.Store(&next)
	c.log.Info("new credentials for the endpoint are in use", "variables", strings.Join(f.variables, ", "))
	for _, warning := range warnings {
		c.log.Warn("a setting is odd", "problem", warning)
	}
}

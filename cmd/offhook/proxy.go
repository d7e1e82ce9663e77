package main

import (
	"cmp"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpproxy"
)

// proxy is that of the environment for endpoint, by HTTP_PROXY or HTTPS_PROXY and NO_PROXY, of which the lower-case ones come
// first, as everywhere; nil: none. An error is a *settingsError: httpproxy would go around a proxy that it cannot read.
func (e environment) proxy(endpoint *url.URL) (func(*http.Request) (*url.URL, error), error) {
	names := []string{"http_proxy", "HTTP_PROXY"}
	if endpoint.Scheme == "https" {
		names = []string{"https_proxy", "HTTPS_PROXY"}
	}
	name := names[0]
	if e[name] == "" {
		name = names[1]
	}
	if e[name] == "" {
		return nil, nil
	}
	if text := proxyProblem(e[name]); text != "" {
		return nil, &settingsError{name: name, problem: text, example: name + "=http://proxy.example:3128"}
	}
	config := httpproxy.Config{HTTPProxy: e[name], HTTPSProxy: e[name], NoProxy: cmp.Or(e["no_proxy"], e["NO_PROXY"])}
	choose := config.ProxyFunc()
	return func(r *http.Request) (*url.URL, error) { return choose(r.URL) }, nil
}

// proxyProblem says why text, which may hold credentials, names no proxy; empty: it does. A host and port alone are one.
func proxyProblem(text string) string {
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Hostname() == "":
		return "is no URL of a proxy"
	case !slices.Contains([]string{"http", "https", "socks5", "socks5h"}, u.Scheme):
		return "has a scheme other than http, https, socks5 and socks5h"
	}
	if port := u.Port(); port != "" {
		if number, err := strconv.ParseUint(port, 10, 16); err != nil || number == 0 {
			return "has a port that is not 1 to 65535"
		}
	}
	return ""
}

// Command e2e drives the offhook binary as its users do: processes with an environment, Kafka on a port, an HTTP
// endpoint that takes the webhooks. It has the suite as tests, and as commands what takes its time: chaos, burst and outage, which
// package chaos documents (`go run ./e2e --help`).
//
// The suite runs against kfake in the test's process and, unchanged, against the Apache Kafka brokers that
// OFFHOOK_TEST_BROKERS names (`make kafka-up` starts three). Each test has topics, groups and an endpoint of its own, so
// all run side by side. The records of the acceptance table are written by kcat (librdkafka), sarama and franz-go.
//
// With OFFHOOK_E2E_LONG=1 what is scaled down by default lasts as long as a user's would: an endpoint is down for a
// minute. OFFHOOK_E2E_SEED repeats the malformed records of an earlier run.
package main

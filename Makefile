# Everything that CI runs is here too; `make help` lists it.

LINT := go tool -modfile=tools/go.mod golangci-lint
BROKERS ?= 3

.DEFAULT_GOAL := help
.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## build bin/offhook
	go build -trimpath -o bin/offhook ./cmd/offhook

.PHONY: test
test: ## run the tests, on a Kafka in the process
	go test ./...

.PHONY: race
race: ## the same with the race detector, in random order
	go test -race -shuffle=on ./...

.PHONY: lint
lint: ## gofmt, go vet, go fix, the linters of .golangci.yml (built from tools/go.mod at the first run) and go.mod
	@unformatted=$$(gofmt -l .); if [ -n "$$unformatted" ]; then echo "gofmt these: $$unformatted"; exit 1; fi
	go vet ./...
	go fix -diff ./...
	$(LINT) config verify
	$(LINT) run ./...
	go mod verify
	go mod tidy -diff

.PHONY: demo
demo: ## watch webhooks arrive, without any set-up
	go run ./cmd/offhook demo

.PHONY: kafka-up
kafka-up: ## start Apache Kafka on this machine (BROKERS=1 or 3) and print OFFHOOK_TEST_BROKERS
	@scripts/kafka.sh up $(BROKERS)

.PHONY: kafka-down
kafka-down: ## end it and remove its data
	@scripts/kafka.sh down

.PHONY: integration
integration: ## run the suite on OFFHOOK_TEST_BROKERS, or on three brokers of its own
	scripts/integration.sh

DURATION ?= 5m
SEED ?= 0
.PHONY: chaos
chaos: ## break everything on three brokers for DURATION (5m), with SEED (a fresh one), and judge what came of it
	go run ./e2e chaos --duration $(DURATION) --seed $(SEED)

.PHONY: load
load: ## a burst of ten times the sustainable rate for a minute, and an endpoint that is gone for ten
	go run ./e2e burst --for 1m
	go run ./e2e outage --for 10m

.PHONY: mutants
mutants: ## break each guarantee by a patch of e2e/mutants, and see a test fail (NAMES=… for some)
	scripts/mutants.sh $(NAMES)

FUZZTIME ?= 30s
.PHONY: fuzz
fuzz: ## run each fuzz target for FUZZTIME (30s)
	scripts/fuzz.sh $(FUZZTIME)

.PHONY: generate
generate: ## write what is generated: the README's table of settings
	go test -count=1 ./cmd/offhook -run README -update

.PHONY: ci
ci: ## what CI runs
	bash .ci/run

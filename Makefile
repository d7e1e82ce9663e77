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

.PHONY: generate
generate: ## write what is generated: the README's table of settings
	go test -count=1 ./cmd/offhook -run README -update

.PHONY: ci
ci: ## what CI runs
	bash .ci/run

#!/usr/bin/env bash
# The integration suite, every package whose tests use kafkatest, on the brokers that OFFHOOK_TEST_BROKERS names, or on
# three that it starts for itself and ends. Arguments go to go test.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ -z ${OFFHOOK_TEST_BROKERS:-} ]]; then
	# A state directory of its own: brokers that `make kafka-up` started are left alone.
	KAFKA_STATE_DIR=$(mktemp -d)
	export KAFKA_STATE_DIR
	trap 'scripts/kafka.sh down' EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM HUP
	line=$(scripts/kafka.sh up 3)
	export "${line?}"
fi
echo "OFFHOOK_TEST_BROKERS=$OFFHOOK_TEST_BROKERS"

listing=$(go list -f '{{.ImportPath}} {{join .TestImports " "}} {{join .XTestImports " "}}' ./...)
mapfile -t packages < <(awk '/\/internal\/kafka\/kafkatest( |$)/ { print $1 }' <<<"$listing")
if ((${#packages[@]} == 0)); then
	echo "integration.sh: no package uses kafkatest" >&2
	exit 1
fi

# One package at a time: brokers and tests share the cores. Not through exec, which would drop the trap.
go test -count=1 -p 1 "$@" "${packages[@]}"

#!/usr/bin/env bash
# Runs each fuzz target in turn, for as long as $1 says (30s). A second argument is a regular expression that chooses among
# the targets, as package.Name. What a target finds stands in its package's testdata/fuzz, and is a test from then on.
set -euo pipefail
cd "$(dirname "$0")/.."

time=${1:-30s}
chosen=${2:-.}
failed=()
while IFS=: read -r file line; do
	package=./$(dirname "$file")
	name=$(sed -E 's/^func (Fuzz[A-Za-z0-9_]*)\(.*/\1/' <<<"$line")
	grep -qE "$chosen" <<<"$package.$name" || continue
	echo "== $package $name"
	go test "$package" -run '^$' -fuzz "^$name\$" -fuzztime "$time" -fuzzminimizetime 1s || failed+=("$package $name")
done < <(git ls-files --cached --others --exclude-standard -- '*_test.go' | sort | xargs grep -E '^func Fuzz[A-Za-z0-9_]*\(')

if ((${#failed[@]})); then
	printf 'found something: %s\n' "${failed[@]}"
	exit 1
fi

#!/usr/bin/env bash
# Shows that each guarantee has a test that fails when it is broken: every patch in e2e/mutants breaks one, and the test
# that it names must fail with it. The tree is not changed: Go builds patched copies in the place of its files (-overlay).
#
# usage: scripts/mutants.sh [NAME …]   (names of patches, without .patch; none: all)
#
# Above its diff a patch has two lines:
#
#	Guarantee: what is no longer so, in a sentence
#	Test: PACKAGE -run PATTERN
#
# A mutant counts as killed by a test's verdict alone. One that does not apply or build, or whose test fails without it
# too, is an error like one that survives. A panic and a time-out are named as such.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
patches=e2e/mutants
patience=60s # for one run of a test

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

names=("$@")
if ((${#names[@]} == 0)); then
	for patch in "$patches"/*.patch; do
		name=${patch##*/}
		names+=("${name%.patch}")
	done
fi

# header PATCH NAME: what the line of that name says.
header() { sed -n "/^--- /q; s/^$2: //p" "$1"; }

# test_binary DIRECTORY PACKAGE: the package's tests as a program, with the overlay of the directory where it has one.
test_binary() {
	local -a overlay=()
	if [[ -f $1/overlay.json ]]; then overlay=("-overlay=$1/overlay.json"); fi
	go test -c -ldflags=-w "${overlay[@]}" -o "$1/test" "$2"
}

# run_tests DIRECTORY PACKAGE PATTERN: its output goes to DIRECTORY/output.
run_tests() {
	local flags=${GOFLAGS:-}
	# For tests that build the program themselves.
	if [[ -f $1/overlay.json ]]; then flags+=" -overlay=$1/overlay.json"; fi
	(cd "$2" && GOFLAGS=$flags "$1/test" -test.run "$3" -test.failfast -test.timeout "$patience") \
		>"$1/output" 2>&1 </dev/null
}

# without PACKAGE PATTERN: the tests as they are, built once a package. It fails where they fail, or there are none.
without() {
	local clean=$work/clean/${1//\//_}
	if [[ ! -x $clean/test ]]; then
		mkdir -p "$clean"
		test_binary "$clean" "$1" || return
	fi
	run_tests "$clean" "$1" "$2" || {
		tail -n 30 "$clean/output"
		return 1
	}
	if grep -q 'no tests to run' "$clean/output"; then
		echo "no test of $1 is named $2"
		return 1
	fi
}

# verdict OUTPUT: how a run that failed has failed; nothing where no test has said so.
verdict() {
	local test
	test=$(sed -n 's/^--- FAIL: \([^ ]*\).*/\1/p' "$1" | head -n 1)
	if grep -q '^panic: test timed out' "$1"; then
		echo "a time-out of $patience"
	elif grep -qE '^(panic|fatal error): ' "$1"; then
		echo "a panic${test:+ in $test}"
	elif [[ -n $test ]]; then
		echo "$test"
	fi
}

# mutate NAME: one line says what became of the mutant; it fails unless it was killed.
mutate() {
	local name=$1 begin=$SECONDS patch=$patches/$1.patch dir=$work/$1 guarantee package option pattern file by
	report() { printf '%-9s %-32s %3d s  %s\n' "$1" "$name" "$((SECONDS - begin))" "$2"; }
	broken() {
		report 'BROKEN' "$1"
		if [[ -s $dir/log ]]; then sed 's/^/    /' "$dir/log"; fi
		return 1
	}
	mkdir -p "$dir"
	if [[ ! -f $patch ]]; then
		broken "there is no $patch"
		return
	fi
	guarantee=$(header "$patch" Guarantee)
	read -r package option pattern <<<"$(header "$patch" Test)" || true
	if [[ -z $guarantee || $package != ./* || $option != -run || -z $pattern || $pattern == *[[:space:]]* ]]; then
		broken "it does not say 'Guarantee: …' and 'Test: ./PACKAGE -run PATTERN'"
		return
	fi

	local -a files
	mapfile -t files < <(sed -n 's|^+++ b/\([^[:space:]]*\).*|\1|p' "$patch")
	local replace="" separator=""
	for file in "${files[@]}"; do
		if [[ ! -f $file || $file == *_test.go ]]; then
			broken "it changes $file, which is no source file of the tree"
			return
		fi
		mkdir -p "$dir/${file%/*}"
		cp "$file" "$dir/$file"
		replace+="$separator\"$root/$file\": \"$dir/$file\""
		separator=", "
	done
	if ! patch -p1 -d "$dir" --batch --forward --fuzz=2 --no-backup-if-mismatch <"$patch" >"$dir/log" 2>&1; then
		broken "it does not apply"
		return
	fi
	printf '{"Replace": {%s}}\n' "$replace" >"$dir/overlay.json"
	if ! test_binary "$dir" "$package" >"$dir/log" 2>&1; then
		broken "it does not build"
		return
	fi
	if ! without "$package" "$pattern" >"$dir/log" 2>&1; then
		broken "its test fails without it"
		return
	fi
	if run_tests "$dir" "$package" "$pattern"; then
		report 'SURVIVED' "$package -run $pattern passes without this: $guarantee"
		return 1
	fi
	by=$(verdict "$dir/output")
	if [[ -z $by ]]; then
		tail -n 30 "$dir/output" >"$dir/log"
		broken "the run fails, but no test does"
		return
	fi
	report 'killed' "by $by in $package"
	rm -rf "$dir"
}

killed=0
for name in "${names[@]}"; do
	if mutate "$name"; then killed=$((killed + 1)); fi
done
printf '%d of %d mutants killed in %d s\n' "$killed" "${#names[@]}" "$SECONDS"
((killed == ${#names[@]}))

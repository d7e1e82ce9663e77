#!/usr/bin/env bash
# Apache Kafka for tests: one or three brokers in KRaft mode (each broker and controller) on loopback, from Maven
# Central's jars. Needs Linux with Java 17 or later, and mvn for the first run, which fills the cache.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
state=${KAFKA_STATE_DIR:-${TMPDIR:-/tmp}/offhook-kafka-$(id -u)}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/offhook
java=${JAVA_HOME:+$JAVA_HOME/bin/}java
heap=${KAFKA_HEAP:-768m}
patience=${KAFKA_PATIENCE:-120}

usage() {
	cat <<USAGE
usage: scripts/kafka.sh COMMAND

  up [1|3]       start brokers, wait until they answer, print OFFHOOK_TEST_BROKERS=host:port,…
                 run again it starts those that are down, and keeps the data
  down           end the brokers and remove their data
  brokers        print host:port,… of the brokers that are set up
  kill N         kill -9 broker N (1, 2 or 3)
  stop N         end broker N cleanly
  start N        start broker N again on its data, and wait until it answers
  tool CLASS …   run a tool of org.apache.kafka.tools on the brokers, as in
                 tool TopicCommand --list
                 tool consumer.group.ConsumerGroupCommand --describe --all-groups

environment:
  KAFKA_STATE_DIR  data, logs and pids; one cluster a directory (now $state)
  KAFKA_PORT_BASE  first of two ports a broker (default: the first free ones from 19092)
  KAFKA_PROXIED    LISTEN:ADVERTISED,… a broker each: a second port that tells clients to come to 127.0.0.1:ADVERTISED, where
                   a proxy is to listen (default: none)
  KAFKA_HEAP       heap of one broker, 256m or more (default 768m)
  KAFKA_JVM_OPTS   further JVM options
  KAFKA_LOG_LEVEL  of the brokers' log files (default warn)
  KAFKA_PATIENCE   seconds to wait for the brokers (default 120)
USAGE
}

say() { printf 'kafka.sh: %s\n' "$*" >&2; }
die() {
	say "$*"
	exit 1
}

# One command at a time works on a state directory. The lock file also marks the directory as ours, because `down`
# removes all of it.
lock() {
	local mark=$state/.offhook-kafka
	while :; do
		if [[ -e $state && ! -e $mark && -n $(ls -A "$state") ]]; then
			die "$state holds other files: set KAFKA_STATE_DIR to an empty or new directory"
		fi
		(umask 077 && mkdir -p "$state")
		[[ -O $state ]] || die "$state belongs to another user: set KAFKA_STATE_DIR"
		exec 9>"$mark"
		flock -w "$((patience + 60))" 9 || die "another command holds $state"
		# A `down` that had the lock before us removed the file that we hold.
		[[ $mark -ef /dev/fd/9 ]] && return
	done
}

# read_cluster sets count, base and id to those of the cluster in the state directory, or returns 1.
read_cluster() {
	[[ -f $state/cluster ]] && read -r count base id <"$state/cluster"
}

need_cluster() { read_cluster || die "no brokers are set up: run 'scripts/kafka.sh up 3'"; }
need_node() {
	need_cluster
	[[ ${1:-} =~ ^[1-9]$ && $1 -le $count ]] || die "name a broker from 1 to $count"
}

client_port() { echo $((base + 2 * ($1 - 1))); }
controller_port() { echo $((base + 2 * ($1 - 1) + 1)); }

brokers() {
	local list="" n
	for ((n = 1; n <= count; n++)); do list+=,127.0.0.1:$(client_port "$n"); done
	echo "${list#,}"
}

listening() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

ports_free() { # BASE COUNT
	local p
	for ((p = $1; p < $1 + 2 * $2; p++)); do
		if listening "$p"; then return 1; fi
	done
}

pick_ports() {
	# Held until the brokers listen: another cluster that starts at this moment must not find the same ports free.
	mkdir -p "$cache"
	exec 8>"$cache/ports.lock"
	flock -w "$((patience + 60))" 8 || die "another command holds $cache/ports.lock"
	if [[ -n ${KAFKA_PORT_BASE:-} ]]; then
		base=$KAFKA_PORT_BASE
		ports_free "$base" "$count" || die "a port from $base to $((base + 2 * count - 1)) is in use: set KAFKA_PORT_BASE"
		return
	fi
	for ((base = 19092; base < 29092; base += 100)); do
		if ports_free "$base" "$count"; then return; fi
	done
	die "no free ports: set KAFKA_PORT_BASE"
}

# find_jars sets jars to the directory of Kafka's jars. Its name holds the pom's checksum, and it is filled aside and
# renamed, so that a directory that is there is whole.
find_jars() {
	jars=$cache/kafka-$(cksum <"$here/pom.xml" | cut -d' ' -f1)
	if [[ -d $jars ]]; then return; fi
	command -v mvn >/dev/null || die "mvn is needed once, to fetch Kafka's jars"
	say "fetching Kafka's jars into $jars"
	mkdir -p "$cache"
	partial=$(mktemp -d "$cache/partial.XXXXXX")
	timeout 600 mvn -B -q -ntp -f "$here/pom.xml" dependency:copy-dependencies -DoutputDirectory="$partial" \
		</dev/null >&2 8>&- 9>&- || die "fetch Kafka's jars: mvn failed"
	chmod 755 "$partial"
	mv -T "$partial" "$jars" 2>/dev/null || [[ -d $jars ]] || die "rename $partial"
}

write_properties() { # N
	local n=$1 voters="" v replicas=$count isr=1 proxied="" advertised=""
	local -a proxies
	for ((v = 1; v <= count; v++)); do voters+=,$v@127.0.0.1:$(controller_port "$v"); done
	if ((count > 1)); then isr=2; fi
	if [[ -n ${KAFKA_PROXIED:-} ]]; then
		IFS=, read -ra proxies <<<"$KAFKA_PROXIED"
		((${#proxies[@]} == count)) || die "KAFKA_PROXIED takes LISTEN:ADVERTISED for each of $count broker(s)"
		proxied=,PROXIED://127.0.0.1:${proxies[n - 1]%:*}
		advertised=,PROXIED://127.0.0.1:${proxies[n - 1]#*:}
	fi
	cat >"$state/$n.properties" <<PROPERTIES
process.roles=broker,controller
node.id=$n
controller.quorum.voters=${voters#,}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:$(client_port "$n"),CONTROLLER://127.0.0.1:$(controller_port "$n")$proxied
advertised.listeners=PLAINTEXT://127.0.0.1:$(client_port "$n")$advertised
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
log.dirs=$state/$n.data
auto.create.topics.enable=false
default.replication.factor=$replicas
min.insync.replicas=$isr
offsets.topic.num.partitions=6
offsets.topic.replication.factor=$replicas
transaction.state.log.num.partitions=6
transaction.state.log.replication.factor=$replicas
transaction.state.log.min.isr=$isr
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=$replicas
share.coordinator.state.topic.min.isr=$isr
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
num.network.threads=2
num.io.threads=4
background.threads=4
log.cleaner.dedupe.buffer.size=33554432
PROPERTIES
}

# pid_of prints the process id of a broker that runs. The command line is compared too, because the id of a broker that
# has ended may by now be another process's.
pid_of() { # N
	local pid
	[[ -f $state/$1.pid ]] || return 1
	pid=$(<"$state/$1.pid")
	[[ $(ps -ww -o args= -p "$pid" 2>/dev/null) == *" kafka.Kafka $state/$1.properties" ]] || return 1
	echo "$pid"
}

launch() { # N
	local n=$1
	# An ignored interrupt stays ignored over exec: Ctrl-C in a test run must not end the brokers. Files 8 and 9 are
	# locks, which must not outlive this command.
	(
		trap '' INT HUP
		# shellcheck disable=SC2086 # options are words
		exec "$java" -Xms128m -Xmx"$heap" -XX:+ExitOnOutOfMemoryError ${KAFKA_JVM_OPTS:-} \
			-Dorg.slf4j.simpleLogger.defaultLogLevel="${KAFKA_LOG_LEVEL:-warn}" \
			-Dorg.slf4j.simpleLogger.showDateTime=true \
			-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd\'T\'HH:mm:ss.SSSZ \
			-cp "$jars/*" kafka.Kafka "$state/$n.properties" </dev/null >>"$state/$n.log" 2>&1 8>&- 9>&-
	) &
	echo $! >"$state/$n.pid"
	disown
}

# ask sends a request of Kafka's protocol, given in printf's notation, and prints the bytes of the answer as decimal
# numbers, or nothing. A JVM a question would cost seconds.
ask() { # PORT REQUEST
	# shellcheck disable=SC2016 # the inner shell expands it
	timeout 5 bash -c '
		exec 3<>"/dev/tcp/127.0.0.1/$1" || exit
		printf "$2" >&3
		size=$(dd bs=1 count=4 <&3 2>/dev/null | od -An -v -tu1 | { read -r _ _ hi lo; echo $((hi * 256 + lo)); })
		dd bs=1 count="$size" <&3 2>/dev/null | od -An -v -tu1 | tr -s "\n" " "' _ "$1" "$2" 2>/dev/null || true
}

# ids prints the node ids that the broker at PORT says are up, or nothing. It is a Metadata request, version 1, for no
# topics; in the answer a broker takes 21 bytes: id, "127.0.0.1", port, no rack.
ids() { # PORT
	local -a b
	local i
	read -ra b <<<"$(ask "$1" '\0\0\0\016\0\003\0\001\0\0\0\001\377\377\0\0\0\0')"
	for ((i = 0; i < ${b[7]:-0}; i++)); do echo $((b[8 + 21 * i + 3])); done
}

# await waits until the brokers that run all answer and each knows all of them.
await() {
	local deadline=$((SECONDS + patience)) n m known missing alive
	while :; do
		alive="" missing=""
		for ((n = 1; n <= count; n++)); do
			if pid_of "$n" >/dev/null; then
				alive+=" $n"
			elif [[ " $* " == *" $n "* ]]; then
				tail -n 20 "$state/$n.log" >&2 || true
				die "broker $n has ended"
			fi
		done
		for n in $alive; do
			known=" $(ids "$(client_port "$n")" | tr '\n' ' ') "
			for m in $alive; do
				if [[ $known != *" $m "* ]]; then missing+=" $n:$m"; fi
			done
		done
		if [[ -z $missing ]]; then return; fi
		if ((SECONDS >= deadline)); then
			for n in $alive; do tail -n 10 "$state/$n.log" >&2 || true; done
			die "brokers do not answer after $patience s (broker:unknown to it:$missing)"
		fi
		sleep 0.3
	done
}

# warm has the topics of the group and transaction coordinators made, which the first client would otherwise wait for,
# with FindCoordinator requests, version 1, for a group and for a transactional id "warm".
warm() {
	local deadline=$((SECONDS + patience)) kind
	local -a b
	for kind in 0 1; do
		while :; do
			read -ra b <<<"$(ask "$(client_port 1)" "\\0\\0\\0\\021\\0\\012\\0\\001\\0\\0\\0\\001\\377\\377\\0\\004warm\\00$kind")"
			if [[ ${b[8]:-} == 0 && ${b[9]:-} == 0 ]]; then break; fi
			((SECONDS < deadline)) || die "no coordinator after $patience s (error ${b[9]:-none})"
			sleep 0.3
		done
	done
}

gone() { # N SECONDS
	local deadline=$((SECONDS + $2))
	while pid_of "$1" >/dev/null; do
		if ((SECONDS >= deadline)); then return 1; fi
		sleep 0.1
	done
}

# clear_all ends the brokers and removes the data, which nobody needs any more: so without a clean shutdown, for which a
# broker that has lost its quorum waits for minutes.
clear_all() {
	local n pid file
	for file in "$state"/*.pid; do
		n=$(basename "$file" .pid)
		if pid=$(pid_of "$n"); then kill -9 "$pid" 2>/dev/null || true; fi
	done
	for file in "$state"/*.pid; do
		n=$(basename "$file" .pid)
		gone "$n" 30 || die "broker $n does not end"
	done
	rm -rf "$state"
}

on_exit() {
	local status=$?
	if [[ -n ${partial:-} && -d $partial ]]; then rm -rf "$partial"; fi
	if [[ -n ${unfinished:-} ]]; then
		trap - EXIT
		clear_all
		say "no brokers were left running"
	fi
	exit "$status"
}

up() {
	local want=${1:-1} n pid started="" fresh=""
	local -a formats=()
	[[ $want == 1 || $want == 3 ]] || die "up takes 1 or 3"
	command -v "$java" >/dev/null || die "java is needed, 17 or later"
	lock
	if read_cluster; then
		for ((n = 1; n <= count; n++)); do
			if pid_of "$n" >/dev/null; then started+=" $n"; fi
		done
		if [[ -n $started ]]; then
			((count == want)) || die "$count broker(s) are up: run 'scripts/kafka.sh down' first"
		fi
	fi
	if [[ -z $started ]]; then
		# What is here was left by a machine that stopped, or by nobody.
		find "$state" -mindepth 1 -maxdepth 1 ! -name .offhook-kafka -exec rm -rf {} +
		fresh=yes unfinished=yes count=$want
	fi
	find_jars
	if [[ -n $fresh ]]; then
		pick_ports
		id=o$(head -c 40 /dev/urandom | base64 -w0 | tr -d '+/=' | cut -c1-20)A
		for ((n = 1; n <= count; n++)); do
			write_properties "$n"
			timeout "$patience" "$java" -Xmx128m -XX:TieredStopAtLevel=1 -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -cp "$jars/*" \
				kafka.tools.StorageTool format -t "$id" -c "$state/$n.properties" </dev/null >"$state/$n.format" 2>&1 8>&- 9>&- &
			formats+=($!)
		done
		for ((n = 1; n <= count; n++)); do
			wait "${formats[n - 1]}" || {
				cat "$state/$n.format" >&2
				die "format the storage of broker $n failed"
			}
		done
		echo "$count $base $id" >"$state/cluster"
	fi
	for ((n = 1; n <= count; n++)); do
		pid_of "$n" >/dev/null || launch "$n"
	done
	# shellcheck disable=SC2046 # ids are words
	await $(seq "$count")
	warm
	unfinished=
	say "$count broker(s) up, logs in $state"
	echo "OFFHOOK_TEST_BROKERS=$(brokers)"
}

down() {
	if [[ ! -e $state ]]; then
		say "nothing is up"
		return
	fi
	lock
	clear_all
	say "brokers ended, data removed"
}

signal() { # SIGNAL SECONDS N
	need_cluster
	lock
	need_node "${3:-}"
	local pid
	pid=$(pid_of "$3") || die "broker $3 does not run"
	kill "-$1" "$pid"
	gone "$3" "$2" || die "broker $3 does not end"
	say "broker $3 ended"
}

start() {
	local n alive=0
	need_cluster
	lock
	need_node "${1:-}"
	if pid_of "$1" >/dev/null; then die "broker $1 runs already"; fi
	find_jars
	launch "$1"
	for ((n = 1; n <= count; n++)); do
		if pid_of "$n" >/dev/null; then alive=$((alive + 1)); fi
	done
	if ((2 * alive <= count)); then
		say "broker $1 started; it answers when a majority is up"
		return
	fi
	await "$1"
	say "broker $1 up"
}

shopt -s nullglob
trap on_exit EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
case ${1:-} in
up) up "${2:-}" ;;
down) down ;;
brokers)
	need_cluster
	brokers
	;;
kill) signal 9 30 "${2:-}" ;;
stop) signal TERM 90 "${2:-}" ;;
start) start "${2:-}" ;;
tool)
	need_cluster
	find_jars
	[[ $# -ge 2 ]] || die "name a class, as in: tool TopicCommand --list"
	class=org.apache.kafka.tools.$2
	shift 2
	"$java" -Xmx256m -XX:TieredStopAtLevel=1 -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -cp "$jars/*" "$class" \
		--bootstrap-server "$(brokers)" "$@"
	;;
help | -h | --help) usage ;;
*)
	usage >&2
	exit 2
	;;
esac

#!/usr/bin/env bash
# A part of `make stacks` that is short enough for `make test`: this host's herd under the Slurm and MPI of Debian 13 (24.11, Open
# MPI 5), where a start with a spare in a dead node's place was refused and the wrong node was blamed. One death, one crash
# of a node, one crash of the supervisor's. Its last line counts what passed.
set -euo pipefail
cd "$(dirname "$0")/../.."
release=trixie
cases='^(SIGKILL of a random rank|node crashed|first node \(supervisor\) crashed)$'

skip() {
    echo "skipped: Debian 13's Slurm: $*"
    echo "== 0 passed, 0 failed, 1 skipped in 0.1s"
    exit 0
}

major=$(/usr/sbin/slurmd -V 2>/dev/null | grep -oE '[0-9]+' | head -1 || true)
[ "${major:-0}" -lt 24 ] || skip "this host's own is as new, and the tests above ran on it"
[ "$(id -u)" = 0 ] || skip "a tree of another release needs root"
unshare --mount true 2>/dev/null || skip "this host does not let us make a mount namespace"
ldd target/release/herd | grep -q 'libmpi\.so\.40' || skip "this host's herd is not built with an Open MPI whose libraries Debian 13 has too"
tests/setup/deps.sh build/deps stacks
tests/stacks/stack $release make || skip "no tree of Debian 13 can be made here"

export HERD_STACK_SHARE="$PWD/build/deps"
run() { tests/stacks/stack $release run "$@"; }
tests/stacks/stack $release sync
run env HERD_MPI=openmpi tests/setup/deps.sh build/deps cluster
tree=${HERD_STACKS:-build/stacks}/$release/herd
mkdir -p "$tree/build" "$tree/target/short"
install target/release/herd "$tree/target/short/herd"
rm -f "$tree/build/short.jsonl"
began=$SECONDS
drill() { run python3 benchmarks/recovery.py --only "$1" --herd target/short/herd --rows /herd/build/short.jsonl || true; }
count() { grep -c "$1" "$tree/build/short.jsonl" || true; }
drill "$cases"
total=$(count '"case"')
good=$(count '"failure": null')
[ "$total" -gt 0 ] || { echo "no case was run"; exit 1; }
# as with other integration tests: one that failed is run once more, alone, and named
mapfile -t bad < <(grep -v '"failure": null' "$tree/build/short.jsonl" | sed -n 's/.*"case": "\([^"]*\)".*/\1/p')
for name in ${bad[@]+"${bad[@]}"}; do
    rm -f "$tree/build/short.jsonl"
    name=${name//\(/.} name=${name//\)/.}
    echo "== once more, alone: $name"
    drill "^$name\$"
    [ "$(count '"failure": null')" -ne 1 ] || { good=$((good + 1)); echo "flaky, failed once and passed alone: $name"; }
done
echo "== $good passed, $((total - good)) failed in $((SECONDS - began)).0s"
[ "$good" -eq "$total" ] && [ "$total" -eq 3 ]

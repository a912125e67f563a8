#!/usr/bin/env bash
# Everything CI runs, called by `make test`: build, lint, and all tests of all kinds. The last line counts them together.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
passed=0 failed=0 skipped=0 flaky=()
began=$SECONDS
# a checkout that is built once has no use for what the next build would go on from
[ -z "${CI:-}" ] || export CARGO_INCREMENTAL=0

# check NAME CMD…: one check, passed or failed by its exit code.
check() {
    local name=$1 start=$SECONDS
    shift
    echo "== $name"
    if "$@"; then
        passed=$((passed + 1))
        echo "== $name: passed in $((SECONDS - start)) s"
    else
        failed=$((failed + 1))
        echo "== $name: FAILED in $((SECONDS - start)) s"
    fi
}

# suite NAME CMD…: a runner whose own counts are added up; one that ends badly without a failed test is a failure too.
suite() {
    local name=$1 start=$SECONDS code p f s
    shift
    echo "== $name"
    "$@" 2>&1 | tee "$logs/suite"
    code=$?
    p=$(count passed) f=$(count failed) s=$(count ignored) s=$((s + $(count skipped)))
    if { [ $code -ne 0 ] && [ "$f" -eq 0 ]; } || [ $((p + s)) -eq 0 ]; then f=$((f + 1)); fi
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    echo "== $name: $p passed, $f failed, $s skipped in $((SECONDS - start)) s"
}

# Sum of "N WORD" in the closing lines of cargo test ("test result: …") and pytest ("=== … in 1.2s ==="). A test of several ranks starts
# itself on each, filtered: what those say, shown where it failed, is not counted once more.
count() {
    grep -E '^test result: .*; 0 filtered out|^=+ .* in [0-9.]+s' "$logs/suite" | grep -oE "[0-9]+ $1" | awk '{ n += $1 } END { print n + 0 }'
}

# Integration tests of the last suite that failed are run once more, each alone; one that then passes is counted as passed, and
# named as flaky at the end.
again() {
    local name names
    mapfile -t names < <(sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' "$logs/suite" | sort -u)
    for name in ${names[@]+"${names[@]}"}; do
        echo "== once more, alone: $name"
        if cargo test --release --locked --test it -- --exact "$name" 2>&1 | tee "$logs/again" && grep -q '^test result: ok. 1 passed' "$logs/again"; then
            passed=$((passed + 1)) failed=$((failed - 1))
            flaky+=("$name")
        fi
    done
}

# Free space where the build, the tests and their trees write; a full disk fails in other words each time, so it is told first.
free_space() {
    local where=("$PWD" "${TMPDIR:-/tmp}" /dev/shm)
    df -BM --output=target,avail "${where[@]}" | awk 'NR > 1 && !seen[$1]++ { printf "%s%s MB free on %s", n++ ? ", " : "", $2 + 0, $1 } END { print "" }'
}

shared_memory() { find /dev/shm -mindepth 1 -printf '%P\n' | sort; }

# Processes and shared memory of this checkout that outlive the tests.
# shellcheck disable=SC2317 # called by name
nothing_left() {
    local exe left=0
    for exe in /proc/[0-9]*/exe; do
        case $(readlink "$exe" 2>/dev/null) in
            "$PWD"/target/*) echo "still running: $(tr '\0' ' ' <"${exe%/exe}/cmdline")"; left=1 ;;
        esac
    done
    if grep -q "$PWD/build/cluster" /proc/mounts; then echo "still mounted: $PWD/build/cluster"; left=1; fi
    # A process that just ended may still be on its way out.
    for _ in 1 2 3 4 5; do
        comm -13 "$logs/shm" <(shared_memory) >"$logs/shm.new"
        [ -s "$logs/shm.new" ] || break
        sleep 1
    done
    if [ -s "$logs/shm.new" ]; then echo "left in /dev/shm: $(paste -sd' ' "$logs/shm.new")"; left=1; fi
    return "$left"
}

finish() {
    [ ${#flaky[@]} -eq 0 ] || echo "flaky, failed once and passed alone: ${flaky[*]}"
    echo "after: $(free_space)"
    echo "tests took $(((SECONDS - began) / 60)) min $(((SECONDS - began) % 60)) s"
    echo "$passed passed, $failed failed, $skipped skipped"
    exit $((failed > 0))
}

echo "before: $(free_space)"
shared_memory >"$logs/shm"
check "build" make build
[ $failed -eq 0 ] || finish # nothing below can tell more
check "formatting" cargo fmt --check
# a program of its own, which cargo does not know
check "formatting of the supervisor's parent" rustfmt --edition 2021 --check src/launch/parent/program.rs
check "order of the house" python3 tests/house/house.py
# the tour that the tests run: cargo builds examples by itself only where no kind of test is named
check "examples" cargo build --release --locked --examples
check "clippy" cargo clippy --release --locked --all-targets -- -D warnings
# shellcheck disable=SC2046
check "shellcheck" shellcheck -x $(tests/setup/shell_files.sh)
suite "unit and integration tests" cargo test --release --locked --no-fail-fast --lib --bins --test it
again
suite "herd under Slurm 24.11 and Open MPI 5" tests/stacks/short.sh
check "benchmarks run" benchmarks/run.sh --quick
check "documented figures are the measured ones" "$HERD_PYTHON" benchmarks/report.py --check
check "nothing left behind" nothing_left
finish

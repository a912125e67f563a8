#!/usr/bin/env bash
# The benchmarks that write benchmarks/results/*.json. `make bench` calls it; `--quick` only tries the harness.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${HERD_PYTHON:-build/deps/python/bin/python}
[ -x "$python" ] || { echo "bench: no Python at $python (hint: make deps-test, or set HERD_PYTHON)" >&2; exit 1; }
"$python" benchmarks/train.py "$@"
"$python" benchmarks/memory.py "$@"
"$python" benchmarks/checkpoint_convert.py "$@"

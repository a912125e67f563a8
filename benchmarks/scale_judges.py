"""How long the judges of liveness and the choice among verdicts take at 16,384 ranks, by herd's own code.

Runs the test `liveness::size_tests::figures`, which builds heartbeats and verdicts of 2,048 nodes with 8 ranks each and prints
the best of nine, and writes its figures into benchmarks/results/scale.json beside those of others.

    python benchmarks/scale_judges.py
"""

import json
import os
import subprocess
import sys

import common

RESULTS = common.ROOT / "benchmarks" / "results" / "scale.json"
WHAT = {
    "judge_16384_ms": "the longest round of the monitor over 16,384 heartbeats, of four ways to stand still",
    "choose_16384_verdicts_ms": "one choice among 16,384 verdicts, half of which accuse each other",
    "read_16384_verdicts_ms": "16,384 verdicts read from 2,048 files of a local filesystem",
}
GOAL = {"judge_16384_ms": 50}


def figures():
    test = ["--ignored", "--exact", "liveness::size_tests::figures", "--nocapture"]
    command = ["cargo", "test", "--release", "--locked", "--lib", "--", *test]
    # what the build was told, so that nothing is built anew
    build = {k: v for k, v in os.environ.items() if k in ("HERD_COMMIT", "HERD_DEPS")}
    env = {**common.environment(), **build}
    run = subprocess.run(command, cwd=common.ROOT, env=env, capture_output=True, text=True)
    lines = [line for line in run.stdout.splitlines() if line.startswith('{"')]
    if run.returncode or len(lines) != 1:
        raise common.Failed(f"cargo test ended with {run.returncode}:\n{run.stdout}{run.stderr}")
    return json.loads(lines[0])


def main():
    entries = []
    for name, value in figures().items():
        goal = {"goal": f"< {GOAL[name]} ms"} if name in GOAL else {}
        entries.append(common.entry(name, value, "ms", "none", what=WHAT[name], **goal))
        print(f"{name}: {value:.2f} ms")
    common.write_results(entries, RESULTS)


if __name__ == "__main__":
    try:
        main()
    except common.Failed as e:
        sys.exit(f"scale_judges: {e}")

"""What a run costs at the size Llama 3 was trained at, as far as two cores can show it: figures of results/scale.json.

    python benchmarks/scale.py                  # all parts
    python benchmarks/scale.py --only index     # one; the entries of the others stay
    python benchmarks/scale.py --quick          # each part as small as it gets, records nothing

A part is a function that gets (herd, folder, quick) and returns entries (common.entry); PARTS names them.

index: `herd train` on two ranks with a corpus of 10^9 documents, nearly all of them holes of a sparse file, documents
masked, beside the same run with a corpus of 1,000. `index_1e9_open_s` is what herd says it took to open tokenizer and
corpora (rank 0 looks, the others are told); `index_1e9_rss_mib` by how much the larger of the two processes was larger.

judges: the monitor's round over 16,384 heartbeats and the choice among as many verdicts, by herd's own code
(`liveness::size_tests::figures`: 2,048 nodes with 8 ranks each, the best of nine).

growth: `herd train` on 8 and on 64 ranks, data parallel; what the rank that sends most over the control plane sends.

manifest: a test of herd's builds the manifest of a checkpoint of configs/llama3_405b.yaml on 16,384 ranks, every slice of
every rank in it, and reads it as each rank of a restore does.
"""

import argparse
import array
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys

import common
import report
from common import Failed, Run

RESULTS = common.RESULTS.with_name("scale.json")
STEPS = 6


def sparse_corpus(prefix, documents, real):
    """`documents` documents of which the last `real` have 1 to 64 tokens each; the others have none and are holes."""
    lengths = array.array("i", random.Random(7).choices(range(1, 65), k=real))
    empty, tokens = documents - real, sum(lengths)
    starts, at = array.array("q"), 0
    for n in lengths:
        starts.append(2 * at)
        at += n
    with open(prefix.with_suffix(".idx"), "wb") as f:
        f.write(b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, documents, documents + 1))
        head = f.tell()
        for column, offset in [
            (lengths, 4 * empty),
            (starts, 4 * documents + 8 * empty),
            (array.array("q", range(empty, documents + 1)), 12 * documents + 8 * empty),
        ]:
            f.seek(head + offset)
            column.tofile(f)
    with open(prefix.with_suffix(".bin"), "wb") as f:
        os.truncate(f.fileno(), 2 * tokens)


def trained(herd, folder, name, documents, real):
    """Seconds that the corpora took to open, and bytes of the larger process of two."""
    prefix = folder / name
    sparse_corpus(prefix, documents, real)
    run_dir = folder / f"run-{name}"
    shutil.rmtree(run_dir, ignore_errors=True)
    document = common.herd_config(
        run_dir, prefix, shape=common.TINY_SHAPE, steps=STEPS, precision="fp32", ranks=2, threads=1, sequence=64, batch=8
    )
    document["data"]["document_mask"] = True
    config = folder / f"{name}.yaml"
    config.write_text(json.dumps(document, indent=2))
    run = Run([*common.mpirun(2), herd, "train", config], folder / f"{name}.log")
    steps = common.read_metrics(run_dir)
    if len(steps) != STEPS:
        raise Failed(f"{name}: {len(steps)} of {STEPS} steps")
    opened = re.search(r"opened in ([0-9.]+) s", run.output)
    if not opened:
        raise Failed(f"{run.log} does not say how long the corpora took to open")
    return float(opened[1]), run.resident


def index(herd, folder, quick):
    documents = 10**6 if quick else 10**9
    seconds, large = trained(herd, folder, "large", documents, documents // 1000)
    _, small = trained(herd, folder, "small", 1000, 1000)
    for path in folder.glob("large.*"):
        path.unlink()
    peer = "the same run with a corpus of 1,000 documents"
    more = max(0, large - small) / 2**20
    sizes = dict(ours=f"{large / 2**20:.0f} MiB", theirs=f"{small / 2**20:.0f} MiB")
    return [
        common.entry(
            "index_1e9_open_s", seconds, "s to open tokenizer and corpora of 10^9 documents", "none",
            goal="below 2", reached=seconds < 2,
        ),
        common.entry(
            "index_1e9_rss_mib", more, "MiB that a rank's process is larger with 10^9 documents", peer,
            goal="at most 50", reached=more <= 50, **sizes,
        ),
    ]  # fmt: skip


def manifest(_herd, folder, _quick):
    found = folder / "found.json"
    found.unlink(missing_ok=True)
    if common.cargo_test("scale::", HERD_SCALE=found):
        raise Failed("cargo test scale:: failed")
    value = json.loads(found.read_text())
    units = {"manifest_405b_mib": "MiB, 405B on 16,384 ranks", "manifest_405b_parse_ms": "ms for a rank to read it"}
    return [common.entry(name, value[name], unit, "none") for name, unit in units.items()]


def printed(test, *options, **environment):
    """What a test of herd's prints as one line of JSON."""
    command = ["cargo", "test", "--release", "--locked", *options, "--", "--exact", test, "--nocapture", "--include-ignored"]
    # what the build was told, so that nothing is built anew
    build = {k: v for k, v in os.environ.items() if k in ("HERD_COMMIT", "HERD_DEPS", "HERD_PYTHON", "LIBTORCH", "PATH")}
    env = {**common.environment(), **build, **environment}
    run = subprocess.run(command, cwd=common.ROOT, env=env, capture_output=True, text=True)
    lines = [line for line in run.stdout.splitlines() if line.startswith('{"')]
    if run.returncode or len(lines) != 1:
        raise Failed(f"cargo test {test} ended with {run.returncode}:\n{run.stdout}{run.stderr}")
    return json.loads(lines[0])


def judges(_herd, _folder, _quick):
    found = printed("liveness::size_tests::figures", "--lib")
    units = {
        "judge_16384_ms": "ms, the longest round of the monitor over 16,384 heartbeats, of four ways to stand still",
        "choose_16384_verdicts_ms": "ms, one choice among 16,384 verdicts, half of which accuse each other",
        "read_16384_verdicts_ms": "ms to read 16,384 verdicts from 2,048 files of a local filesystem",
    }
    goals = {"judge_16384_ms": {"goal": "below 50", "reached": found["judge_16384_ms"] < 50}}
    return [common.entry(name, found[name], unit, "none", **goals.get(name, {})) for name, unit in units.items()]


def growth(_herd, _folder, quick):
    most = 16 if quick else 64
    found = printed("world::messages_and_peers_grow_no_faster_than_the_logarithm", "--test", "it", HERD_MOST_RANKS=str(most))
    span = f"from 8 to {most} ranks"
    figure = lambda name, key, what, few, many: common.entry(  # noqa: E731
        name, found[key], f"exponent of the growth of {what} {span}", "none", goal="at most 0.5", reached=found[key] <= 0.5,
        ours=f"{found[few]:.4g} to {found[many]:.4g}",
    )  # fmt: skip
    return [
        figure("peers_per_rank_growth", "peers", "ranks that the busiest rank sends to", "peers_few", "peers_many"),
        figure("messages_per_step_growth", "messages_per_step", "messages of that rank in a step", "step_few", "step_many"),
        figure("messages_at_start_growth", "start", "messages of that rank in a run of two steps", "messages_few", "messages_many"),
    ]


PARTS = {"index": index, "manifest": manifest, "judges": judges, "growth": growth}


def main():
    p = argparse.ArgumentParser(description="what a run costs at the size of Llama 3, as far as two cores can show it")
    p.add_argument("--quick", action="store_true", help="as small as it gets, records nothing")
    p.add_argument("--only", action="append", metavar="PART", choices=sorted(PARTS))
    p.add_argument("--herd", help="herd binary (default target/release/herd)")
    args = p.parse_args()
    entries = []
    try:
        herd = common.herd_binary(args.herd)
        for name in args.only or PARTS:
            folder = common.SCRATCH / "scale" / name
            folder.mkdir(parents=True, exist_ok=True)
            for e in PARTS[name](herd, folder, args.quick):
                print(f"{e['name']:28} {e['value']:>12} {e['unit']}", flush=True)
                entries.append(e)
    except Failed as e:
        sys.exit(f"bench: {e}")
    if not args.quick:
        common.write_results(entries, RESULTS)
        report.write()


if __name__ == "__main__":
    main()

"""Do the axes learn alike? bf16, 200 steps on real text (the King James Bible as bytes), each axis on two ranks against one
rank: the largest gap between two loss curves, each averaged over windows of ten steps.

    python benchmarks/convergence.py            # about three minutes; records convergence_gap_max in results/axes.json
    python benchmarks/convergence.py --quick    # 20 steps, records nothing

The yardstick is a run on one rank whose micro-batches are half as large: the same sums in another order, nothing else. What
it differs by is what bf16 rounding does to this curve (docs/numerics.md).
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys

import common
import report
from common import Failed, Run

BAND = 0.02  # nats
SHAPE = dict(
    vocab_size=258,
    hidden_size=128,
    intermediate_size=352,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
)
RUNS = {
    "one rank": {},
    "one rank, micro-batches halved": {"micro": 4},
    "dp2": {"data": 2, "zero": 1},
    "zero3": {"data": 2, "zero": 3},
    "tp2": {"tensor": 2},
    "pp2": {"pipeline": 2, "schedule": "1f1b", "micro": 2},
    "pp2 zero-bubble": {"pipeline": 2, "schedule": "zero_bubble", "micro": 2},
    "cp2": {"context": 2},
}


def corpus(folder, herd):
    text, tokens = folder / "bible.txt", folder / "bible"
    if not tokens.with_name("bible_train.idx").exists():
        folder.mkdir(parents=True, exist_ok=True)
        verses = subprocess.run(["bible", "-l79", "gen1:1-rev22:21"], capture_output=True, check=True).stdout
        text.write_bytes(verses)
        command = [herd, "data", "tokenize", "--tokenizer", "bytes", "--holdout", "0.05", "--output", tokens, text]
        subprocess.run([str(c) for c in command], check=True, capture_output=True)
    return tokens.with_name("bible_train")


def curve(name, axes, folder, herd, steps):
    axes = dict(axes)
    micro = axes.pop("micro", 8 // axes.get("data", 1))
    ranks = 1
    for axis in ("tensor", "context", "pipeline", "data"):
        ranks *= axes.get(axis, 1)
    run_dir = folder / name.replace(" ", "-").replace(",", "")
    shutil.rmtree(run_dir, ignore_errors=True)
    document = common.herd_config(
        run_dir, corpus(folder, herd), shape=SHAPE, steps=steps, precision="bf16", ranks=1, threads=1, sequence=128, batch=8
    )
    document["batch"]["micro"] = micro
    document["parallel"] = {"data": 1, **axes}
    document["optim"].update(lr=2e-3, warmup_steps=10, schedule="cosine", min_lr=2e-4)
    config = folder / f"{run_dir.name}.yaml"
    config.write_text(json.dumps(document, indent=2))
    Run([*common.mpirun(ranks), herd, "train", config], folder / f"{run_dir.name}.log")
    losses = [s["loss"] for s in common.read_metrics(run_dir)]
    shutil.rmtree(run_dir, ignore_errors=True)
    return [statistics.mean(losses[i : i + 10]) for i in range(0, steps, 10)]


def main():
    p = argparse.ArgumentParser(description="loss curves of each axis on two ranks against one rank, bf16")
    p.add_argument("--quick", action="store_true", help="20 steps, records nothing")
    p.add_argument("--herd", help="herd binary (default target/release/herd)")
    args = p.parse_args()
    steps = 20 if args.quick else 200
    folder = common.SCRATCH / "convergence"
    try:
        herd = common.herd_binary(args.herd)
        curves = {name: curve(name, axes, folder, herd, steps) for name, axes in RUNS.items()}
    except Failed as e:
        sys.exit(f"bench: {e}")
    base = curves["one rank"]
    gaps = {name: max(abs(a - b) for a, b in zip(c, base)) for name, c in curves.items() if name != "one rank"}
    print(f"one rank: {base[0]:.3f} -> {base[-1]:.3f} nats")
    for name, gap in gaps.items():
        print(f"  {name:34} largest gap of 10-step means {gap:.4f}, last {curves[name][-1] - base[-1]:+.4f}")
    noise = gaps.pop("one rank, micro-batches halved")
    worst = max(gaps.values())
    entries = [
        common.entry(
            "convergence_gap_max",
            worst,
            f"nats: largest gap of 10-step mean losses over {steps} steps",
            "herd on one rank, bf16",
            gaps={k: round(v, 5) for k, v in gaps.items()},
            rounding_alone=round(noise, 5),
            first=round(base[0], 4),
            last=round(base[-1], 4),
            goal=f"at most {BAND:g}",
            reached=worst <= BAND,
        )
    ]
    if not args.quick:
        common.write_results(entries, common.RESULTS.with_name("axes.json"))
        report.write()
    sys.exit(0 if worst <= BAND else "bench: a curve left the band")


if __name__ == "__main__":
    main()

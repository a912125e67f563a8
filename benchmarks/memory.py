"""Peak memory of a training step against what the planner's formula says, over shapes, precisions and recompute.

    python benchmarks/memory.py             # records memory_error_max in results/train.json (one rank, plain data
                                            # parallelism) and in results/axes.json (every other axis)
    python benchmarks/memory.py --quick     # one tiny case, records nothing

The formula is in docs/memory.md; `herd config check --json` prints it for a configuration, and `memory_peak` in
metrics.jsonl is what the tensors of a step really took at their highest point. The figure is the largest relative
difference over all cases. The whole process (its largest resident size, libraries and checkpoint included) is shown too.
"""

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, field

import common
import report
from common import Failed, Run

GOAL = 0.10


@dataclass(frozen=True)
class Case:
    name: str
    precision: str = "bf16"
    recompute: str = "none"
    ranks: int = 1
    sequence: int = 512
    batch: int = 2
    micro: int = 2
    shape: dict = field(default_factory=dict)
    parallel: dict = field(default_factory=dict)


# Chosen so that each term of the formula is the large one somewhere: state, activations, logits, accumulation.
CASES = [
    Case("bf16"),
    Case("bf16_recompute", recompute="full"),
    Case("fp32", precision="fp32"),
    Case("fp32_recompute", precision="fp32", recompute="full"),
    Case("bf16_accumulation", batch=4, micro=1),
    Case("bf16_long", sequence=2048, batch=2, micro=2, shape={"vocab_size": 8000}),
    Case("bf16_long_recompute", sequence=2048, batch=2, micro=2, recompute="full", shape={"vocab_size": 8000}),
    Case("bf16_vocabulary", batch=4, micro=4, shape={"vocab_size": 60000, "num_hidden_layers": 2}),
    Case("bf16_tied", shape={"tie_word_embeddings": True}),
    Case("bf16_2ranks", ranks=2, micro=1),
    *(Case(f"zero{z}_4ranks", ranks=4, batch=4, micro=1, parallel={"zero": z}) for z in (1, 2, 3)),
    Case("hybrid_4ranks", ranks=4, batch=4, micro=1, parallel={"zero": 3, "shard_size": 2}),
    *(
        Case(f"{name}_{recompute}", ranks=2, batch=4, micro=1, recompute=recompute, parallel=parallel)
        for name, parallel in (("tensor2", {"tensor": 2}), ("pipeline2", {"pipeline": 2}))
        for recompute in ("none", "selective", "full")
    ),
]
QUICK = [Case("tiny", sequence=64, batch=2, shape=common.TINY_SHAPE)]


def measure(case, folder, herd):
    """Peak bytes of one rank: of the formula, of tensors in a step, of the whole process with its checkpoint."""
    shape = {**common.SHAPE, **case.shape}
    tokens = folder / f"tokens-{shape['vocab_size']}"
    common.write_tokens(tokens, shape["vocab_size"])
    run_dir = folder / case.name
    shutil.rmtree(run_dir, ignore_errors=True)
    document = common.herd_config(
        run_dir,
        tokens,
        shape=shape,
        steps=3,
        precision=case.precision,
        recompute=case.recompute,
        ranks=case.ranks,
        threads=max(1, 2 // case.ranks),
        sequence=case.sequence,
        batch=case.batch,
    )
    document["batch"]["micro"] = case.micro
    document["parallel"] = {**case.parallel, "data": 0}
    config = folder / f"{case.name}.yaml"
    config.write_text(json.dumps(document, indent=2))
    predicted = formula(herd, config, case.ranks)
    run = Run([*common.mpirun(case.ranks), herd, "train", config], folder / f"{case.name}.log")
    seen = max(step["memory_peak"] for step in common.read_metrics(run_dir))
    shutil.rmtree(run_dir, ignore_errors=True)
    return predicted, seen, run.resident


def formula(herd, config, ranks):
    """Peak bytes of one rank that the planner prints for this configuration."""
    command = [herd, "config", "check", config, "--ranks", str(ranks), "--json", "--no-data"]
    done = subprocess.run(command, cwd=common.ROOT, env=common.environment(), capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"herd config check ended with {done.returncode}: {done.stderr.strip()}")
    return json.loads(done.stdout)["memory"]["peak"]


def main():
    p = argparse.ArgumentParser(description="peak memory of a step against the planner's formula")
    p.add_argument("--quick", action="store_true", help="one tiny case, records nothing")
    p.add_argument("--only", action="append", metavar="CASE", choices=[c.name for c in CASES])
    p.add_argument("--herd", help="herd binary (default target/release/herd)")
    args = p.parse_args()
    cases = QUICK if args.quick else [c for c in CASES if not args.only or c.name in args.only]
    folder = common.SCRATCH / "memory"
    folder.mkdir(parents=True, exist_ok=True)
    errors = {}
    try:
        herd = common.herd_binary(args.herd)
        print(f"{'case':22} {'formula MiB':>12} {'seen MiB':>9}   seen against formula   process MiB")
        for case in cases:
            predicted, seen, process = (b / 2**20 for b in measure(case, folder, herd))
            errors[case.name] = round(seen / predicted - 1, 4)
            print(
                f"{case.name:22} {predicted:12.0f} {seen:9.0f}   {errors[case.name]:+20.1%} {process:13.0f}", flush=True
            )
    except Failed as e:
        sys.exit(f"bench: {e}")
    worst = max(abs(e) for e in errors.values())
    reached = worst <= GOAL
    print(f"\nlargest difference {worst:.1%}, goal at most {GOAL:.0%}: {'reached' if reached else 'NOT reached'}")
    if args.quick or args.only:
        return
    sharded = {c.name for c in cases if c.parallel}
    for file, found in [
        ("train", {n: e for n, e in errors.items() if n not in sharded}),
        ("axes", {n: e for n, e in errors.items() if n in sharded}),
    ]:
        worst = max(abs(e) for e in found.values())
        figure = common.entry(
            "memory_error_max",
            worst,
            "largest relative difference of a step's peak memory from the formula",
            "the planner's formula",
            goal=f"at most {GOAL:g}",
            reached=worst <= GOAL,
            cases=found,
        )
        common.write_results([figure], common.RESULTS.with_name(f"{file}.json"))
    report.write()


if __name__ == "__main__":
    main()

"""The sharded axes against PyTorch's own, side by side in one run: ZeRO-3 against FSDP2, tensor and pipeline parallelism, two
ranks of one thread each over gloo and over herd's wire; and the bubble of each schedule against its simulation.

    python benchmarks/axes.py                       # about 10 minutes on two cores
    python benchmarks/axes.py --only tp_vs_torch_tp --rounds 3
    python benchmarks/axes.py --quick               # does the harness work? tiny model, nothing is recorded

Rounds, medians and repeats are those of train.py. `make parity` adds parity_cells to the same results file, and memory.py
memory_error_max.
"""

import argparse
import json
import shutil
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import common
import report
from common import Failed, Run

PEER = Path("benchmarks/peers/parallel_torch.py")
RESULTS = common.ROOT / "benchmarks" / "results" / "axes.json"


@dataclass(frozen=True)
class Figure:
    """One axis on two ranks: ours and the peer's, in tokens/s."""

    name: str
    peer: str
    words: str
    parallel: dict
    batch: int
    micro: int
    goal: float


FIGURES = [
    Figure("zero3_vs_fsdp2", "fsdp2", "FSDP2 (fully_shard)", {"data": 2, "zero": 3}, 2, 1, 1.5),
    Figure("tp_vs_torch_tp", "tensor", "parallelize_module", {"tensor": 2, "data": 1}, 2, 2, 1.25),
    Figure("pp_vs_torch_1f1b", "pipeline", "pipelining Schedule1F1B", {"pipeline": 2, "data": 1, "schedule": "1f1b"}, 4, 1, 1.25),
]


class Bench:
    def __init__(self, args):
        self.args = args
        self.folder = common.SCRATCH / ("axes-quick" if args.quick else "axes")
        self.shape = common.TINY_SHAPE if args.quick else common.SHAPE
        self.sequence = 64 if args.quick else 512
        self.tokens = self.folder / "tokens"
        self.herd = common.herd_binary(args.herd)
        common.write_tokens(self.tokens, self.shape["vocab_size"])

    def repeated(self, label, once):
        """One run; taken again, at most twice, while something else used the machine."""
        for _ in range(3):
            found = once()
            note = "" if found["disturbed"] <= self.args.disturbed else f"  disturbed: {found['disturbed']:.2f} of a core"
            print(f"  {label:24} {found['tokens_per_second']:8.0f} tokens/s{note}", flush=True)
            if not note or self.args.quick:
                break
        return found

    def speed(self, figure, run, ends):
        if len(ends) != self.args.steps:
            raise Failed(f"{run.log}: {len(ends)} steps reported, {self.args.steps} asked for")
        seconds = [b - a for a, b in zip(ends, ends[1:])][self.args.warmup - 1 :]
        step = statistics.median(seconds)
        return {"tokens_per_second": self.sequence * figure.batch / step, "step": step, "disturbed": run.disturbed}

    def theirs(self, figure):
        command = [sys.executable, PEER, "--axis", figure.peer, "--ranks", 2, "--threads", 1, "--steps", self.args.steps]
        command += ["--sequence", self.sequence, "--global-batch", figure.batch, "--shape", json.dumps(self.shape)]
        command += ["--data", self.tokens.with_suffix(".bin")]
        run = Run(command, self.folder / f"{figure.peer}.log")
        return self.speed(figure, run, [line["time"] for line in run.json_lines() if "step" in line])

    def ours(self, figure):
        run_dir = self.folder / figure.name
        shutil.rmtree(run_dir, ignore_errors=True)
        document = common.herd_config(
            run_dir,
            self.tokens,
            shape=self.shape,
            steps=self.args.steps,
            precision="bf16",
            ranks=2,
            threads=1,
            sequence=self.sequence,
            batch=figure.batch,
        )
        document["batch"]["micro"] = figure.micro
        document["parallel"] = figure.parallel
        config = self.folder / f"{figure.name}.yaml"
        config.write_text(json.dumps(document, indent=2))
        run = Run([*common.mpirun(2), self.herd, "train", config], self.folder / f"{figure.name}.log")
        steps = common.read_metrics(run_dir)
        shutil.rmtree(run_dir, ignore_errors=True)
        found = self.speed(figure, run, [s["time"] for s in steps])
        measured = steps[self.args.warmup :]
        found["exposed"] = statistics.median(s["comm_exposed_s"] / s["step_s"] for s in measured)
        # Of the rank that writes, bubble included: a stage that waits for its neighbour does not say for what.
        found["pipeline_wait"] = statistics.median(s.get("pipeline_wait_s", 0.0) / s["step_s"] for s in measured)
        return found

    def figure(self, figure):
        ours, theirs = [], []
        for number in range(self.args.rounds):
            sides = [("herd " + figure.name, self.ours, ours), (figure.words, self.theirs, theirs)]
            for label, side, found in sides if number % 2 == 0 else reversed(sides):
                found.append(self.repeated(label, lambda side=side: side(figure)))
        ratios = [a["tokens_per_second"] / b["tokens_per_second"] for a, b in zip(ours, theirs)]
        value, low, high = common.spread(ratios)
        versions = common.versions()
        return common.entry(
            figure.name,
            value,
            "ratio of tokens/s, ours over theirs",
            f"PyTorch {versions['libtorch']} {figure.words} over gloo, transformers {versions['transformers']}, bf16, 2 ranks x 1 thread",
            min=round(low, 4),
            max=round(high, 4),
            rounds=len(ratios),
            ours=round(statistics.median(s["tokens_per_second"] for s in ours), 3),
            theirs=round(statistics.median(s["tokens_per_second"] for s in theirs), 3),
            exposed_communication_share=round(statistics.median(s["exposed"] for s in ours), 4),
            pipeline_wait_share=round(statistics.median(s["pipeline_wait"] for s in ours), 4),
            goal=f"at least {figure.goal:g}",
            reached=value >= figure.goal,
            disturbed=round(max(s["disturbed"] for s in ours + theirs), 3),
        )


def bubbles(args):
    """The executor's measured bubble beside the simulator's, from `cargo bench --bench pipeline`: one entry for how far
    they are apart at most, one for zero-bubble over 1F1B."""
    command = ["cargo", "bench", "--bench", "pipeline", "--", *(["--quick"] if args.quick else [])]
    run = Run(command, common.SCRATCH / "bubble.log")
    rows = [r for r in run.json_lines() if "schedule" in r]
    if not rows:
        raise Failed(f"{run.log}: no bubble was reported")
    errors = [abs(r["measured"] - r["simulated"]) / r["makespan_simulated"] for r in rows]
    pairs = {}
    for r in rows:
        pairs.setdefault((r["stages"], r["micro_batches"], r["compute"]), {})[r["schedule"]] = r["measured"]
    ratios = [p["zero_bubble"] / p["1f1b"] for p in pairs.values() if "zero_bubble" in p and "1f1b" in p]
    for r in rows:
        print(
            f"  {r['compute']:6} {r['stages']:2} stages {r['micro_batches']:2} micro-batches {r['schedule']:12} "
            f"bubble {r['measured'] / r['makespan_measured']:6.1%} measured {r['simulated'] / r['makespan_simulated']:6.1%} simulated",
            flush=True,
        )
    peer = "herd's simulator of the same action list"
    return [
        common.entry(
            "bubble_error_max", max(errors), "largest |measured - simulated| bubble over the makespan", peer,
            cases=len(rows), rows=rows, goal="at most 0.05", reached=max(errors) <= 0.05,
        ),
        common.entry(
            "zero_bubble_vs_1f1b_bubble", max(ratios), "largest ratio of measured bubbles, zero-bubble over 1F1B",
            "herd's 1F1B in the same run", cases=len(ratios), goal="below 1", reached=max(ratios) < 1,
        ),
    ]  # fmt: skip


def arguments():
    p = argparse.ArgumentParser(description="herd's sharded axes against PyTorch's on one host")
    p.add_argument("--rounds", type=int, default=3, help="times each side runs (default 3)")
    p.add_argument("--steps", type=int, default=8, help="steps a run (default 8)")
    p.add_argument("--warmup", type=int, default=3, help="first steps of a run that do not count (default 3)")
    p.add_argument("--only", action="append", choices=[f.name for f in FIGURES] + ["bubble"], help="one figure")
    p.add_argument("--quick", action="store_true", help="tiny model, one round: proves that the harness works")
    p.add_argument("--herd", help="herd binary (default target/release/herd)")
    p.add_argument("--disturbed", type=float, default=0.1, help="cores others may use before a run is repeated")
    args = p.parse_args()
    if args.quick:
        args.rounds, args.steps, args.warmup = 1, 3, 1
    return args


def main():
    args = arguments()
    wanted = lambda name: not args.only or name in args.only  # noqa: E731
    path = common.SCRATCH / "axes-quick" / "axes.json" if args.quick else RESULTS
    try:
        bench = Bench(args)
        entries = [bench.figure(f) for f in FIGURES if wanted(f.name)]
        entries += bubbles(args) if wanted("bubble") else []
    except Failed as e:
        sys.exit(f"bench: {e}")
    common.write_results(entries, path)
    for e in entries:
        print(f"{e['name']:28} {e['value']:7.3f}   {e['goal']}: {'reached' if e['reached'] else 'NOT reached'}")
    if not args.quick:
        report.write()


if __name__ == "__main__":
    main()

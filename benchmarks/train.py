"""herd against PyTorch, side by side in one run: tokens/s, time to the first step, share of matrix products.

    make bench                                      # everything, about 15 minutes on two cores
    python benchmarks/train.py --only first_step_time_vs_eager --rounds 3
    python benchmarks/train.py --quick              # does the harness work? tiny model, nothing is recorded

Each round runs every program once, in an order that is reversed from round to round, so that a machine that grows slow
or fast meets both sides alike. A figure is the median over the rounds of the ratio within a round. What is measured, and
what was chosen so that the comparison is fair, is in benchmarks/README.md.
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

PEER = Path("benchmarks/peers/train_torch.py")


@dataclass(frozen=True)
class Program:
    """One side of a comparison."""

    name: str
    precision: str = "bf16"
    ranks: int = 1
    compile: bool = False
    ours: bool = False


@dataclass(frozen=True)
class Figure:
    """A ratio of ours over theirs (for `matmul`: our own share, theirs beside it) and the value it should reach."""

    name: str
    ours: str
    theirs: str
    measure: str
    goal: float
    higher_is_better: bool = True

    def reached(self, value):
        return value >= self.goal if self.higher_is_better else value <= self.goal


PROGRAMS = {
    p.name: p
    for p in [
        Program("herd_bf16", ours=True),
        Program("eager_bf16"),
        Program("compile_bf16", compile=True),
        Program("herd_fp32", precision="fp32", ours=True),
        Program("eager_fp32", precision="fp32"),
        Program("herd_2rank_bf16", ranks=2, ours=True),
        Program("ddp_2rank_bf16", ranks=2),
    ]
}

FIGURES = [
    Figure("train_1rank_bf16_vs_eager", "herd_bf16", "eager_bf16", "tokens/s", 1.4),
    Figure("train_1rank_bf16_vs_compile", "herd_bf16", "compile_bf16", "tokens/s", 1.1),
    Figure("train_1rank_fp32_vs_eager", "herd_fp32", "eager_fp32", "tokens/s", 1.4),
    Figure("train_2rank_dp_bf16_vs_ddp", "herd_2rank_bf16", "ddp_2rank_bf16", "tokens/s", 1.4),
    Figure("first_step_time_vs_eager", "herd_bf16", "eager_bf16", "first step", 0.45, higher_is_better=False),
    Figure("matmul_share", "herd_bf16", "eager_bf16", "matmul", 0.8),
]

UNITS = {
    "tokens/s": "ratio of tokens/s, ours over theirs",
    "first step": "ratio of seconds from process start to the end of the first step, ours over theirs",
    "matmul": "share of herd's step spent in matrix products",
}


@dataclass
class Sample:
    """What one run showed."""

    tokens_per_second: float
    first_step: float
    matmul: float | None
    disturbed: float


class Bench:
    def __init__(self, args):
        self.args = args
        self.folder = common.SCRATCH / ("quick" if args.quick else "train")
        self.shape = common.TINY_SHAPE if args.quick else common.SHAPE
        self.sequence, self.batch = (64, 2) if args.quick else (512, 2)
        self.tokens = self.folder / "tokens"
        self.herd = None

    def run(self, program):
        """One run; taken again, at most twice, while something else used the machine."""
        for attempt in range(3):
            sample = (self.run_herd if program.ours else self.run_peer)(program)
            note = ""
            if sample.disturbed > self.args.disturbed:
                note = f"  disturbed: others used {sample.disturbed:.2f} of a core"
            print(
                f"  {program.name:16} {sample.tokens_per_second:8.0f} tokens/s"
                f"   first step after {sample.first_step:5.1f} s{note}",
                flush=True,
            )
            if not note or self.args.quick:
                break
        return sample

    def run_peer(self, program):
        command = [sys.executable, PEER, "--steps", self.args.steps, "--precision", program.precision]
        command += ["--threads", self.args.threads // program.ranks, "--sequence", self.sequence]
        command += ["--global-batch", self.batch, "--data", self.tokens.with_suffix(".bin")]
        command += ["--shape", json.dumps(self.shape)]
        command += ["--compile"] * program.compile + ["--ddp", program.ranks] * (program.ranks > 1)
        command += ["--op-share"] * (program.name == "eager_bf16")  # a further step, after the measured ones
        run = Run(command, self.folder / f"{program.name}.log")
        lines = run.json_lines()
        sample = self.sample(run, [line["time"] for line in lines if "step" in line])
        sample.matmul = next((line["op_share"]["matmul"] for line in lines if "op_share" in line), None)
        return sample

    def run_herd(self, program):
        run_dir = self.folder / program.name
        shutil.rmtree(run_dir, ignore_errors=True)
        config = self.folder / f"{program.name}.yaml"
        document = common.herd_config(
            run_dir,
            self.tokens,
            shape=self.shape,
            steps=self.args.steps,
            precision=program.precision,
            ranks=program.ranks,
            threads=self.args.threads // program.ranks,
            sequence=self.sequence,
            batch=self.batch,
        )
        config.write_text(json.dumps(document, indent=2))  # JSON is YAML
        command = [*common.mpirun(program.ranks), self.herd, "train", config]
        run = Run(command, self.folder / f"{program.name}.log")
        steps = common.read_metrics(run_dir)
        shutil.rmtree(run_dir, ignore_errors=True)  # its last checkpoint is gigabytes
        sample = self.sample(run, [s["time"] for s in steps])
        measured = steps[self.args.warmup :]
        if all("matmul_s" in s for s in measured):
            taken = steps[-1]["time"] - steps[self.args.warmup - 1]["time"]
            sample.matmul = sum(s["matmul_s"] for s in measured) / taken
        return sample

    def sample(self, run, ends):
        """Figures from the wall-clock times at which the steps ended: a step lasts from the end of the one before."""
        if len(ends) != self.args.steps:
            raise Failed(f"{run.log}: {len(ends)} steps reported, {self.args.steps} asked for")
        seconds = [b - a for a, b in zip(ends, ends[1:])][self.args.warmup - 1 :]
        tokens = self.sequence * self.batch
        return Sample(tokens / statistics.median(seconds), ends[0] - run.started, None, run.disturbed)

    def all_rounds(self, figures):
        """Samples by program name, one a round."""
        wanted = {name for f in figures for name in (f.ours, f.theirs)}
        programs = [p for p in PROGRAMS.values() if p.name in wanted]
        if any(p.ours for p in programs):
            self.herd = common.herd_binary(self.args.herd)
        common.write_tokens(self.tokens, self.shape["vocab_size"])
        if not self.args.quick:
            print("warm-up (not counted): programs and libraries into the page cache", flush=True)
            for p in programs[:2]:
                self.run(p)
        samples = {p.name: [] for p in programs}
        for number in range(1, self.args.rounds + 1):
            print(f"round {number} of {self.args.rounds}", flush=True)
            for p in programs if number % 2 else reversed(programs):
                samples[p.name].append(self.run(p))
        return samples


def value_of(sample, measure):
    return {"tokens/s": sample.tokens_per_second, "first step": sample.first_step, "matmul": sample.matmul}[measure]


def judge(figure, samples, args):
    """The entry of a figure: median over the rounds, its spread, both sides' medians."""
    ours = [value_of(s, figure.measure) for s in samples[figure.ours]]
    theirs = [value_of(s, figure.measure) for s in samples[figure.theirs]]
    if None in ours:
        raise Failed(f"{figure.name}: metrics.jsonl does not carry it")
    values = ours if figure.measure == "matmul" else [a / b for a, b in zip(ours, theirs)]
    value, low, high = common.spread(values)
    return common.entry(
        figure.name,
        value,
        UNITS[figure.measure],
        peer_name(PROGRAMS[figure.theirs], args),
        min=round(low, 4),
        max=round(high, 4),
        rounds=len(values),
        ours=round(statistics.median(ours), 3),
        theirs=round(statistics.median(theirs), 3),
        goal=("at least " if figure.higher_is_better else "at most ") + f"{figure.goal:g}",
        reached=figure.reached(value),
        disturbed=round(max(s.disturbed for s in samples[figure.ours] + samples[figure.theirs]), 3),
    )


def peer_name(program, args):
    """The peer in words, as the entry carries it."""
    found = common.versions()
    how = "torch.compile" if program.compile else "eager"
    if program.ranks > 1:
        how = f"DDP over gloo, {program.ranks} processes"
    threads = args.threads // program.ranks
    return (
        f"PyTorch {found['libtorch']} {how}, transformers {found['transformers']} LlamaForCausalLM, "
        f"{program.precision}, {threads} thread{'s' * (threads > 1)} each"
    )


def show(entries):
    print(f"\n{'figure':30} {'value':>7} {'min':>7} {'max':>7}   {'ours':>9} {'theirs':>9}   goal")
    for e in entries:
        verdict = "reached" if e["reached"] else "NOT reached"
        print(
            f"{e['name']:30} {e['value']:7.3f} {e['min']:7.3f} {e['max']:7.3f}   {e['ours']:9.4g} {e['theirs']:9.4g}"
            f"   {e['goal']}: {verdict}"
        )


def arguments():
    p = argparse.ArgumentParser(description="herd against PyTorch on one host: speed, first step, matmul share")
    p.add_argument("--rounds", type=int, default=5, help="times each program runs (default 5)")
    p.add_argument("--steps", type=int, default=8, help="steps a run (default 8)")
    p.add_argument("--warmup", type=int, default=3, help="first steps of a run that do not count (default 3)")
    p.add_argument("--threads", type=int, default=2, help="CPU threads over all ranks (default 2)")
    p.add_argument("--only", action="append", metavar="NAME", choices=[f.name for f in FIGURES], help="one figure")
    p.add_argument("--quick", action="store_true", help="tiny model, one round: proves that the harness works")
    p.add_argument("--herd", help="herd binary (default target/release/herd)")
    p.add_argument("--disturbed", type=float, default=0.1, help="cores others may use before a run is repeated")
    args = p.parse_args()
    if args.quick:
        args.rounds, args.steps, args.warmup = 1, 3, 1
    if args.warmup < 1 or args.steps <= args.warmup:
        p.error(f"--steps {args.steps} leaves nothing to measure after --warmup {args.warmup}")
    if args.threads % 2:
        p.error(f"--threads {args.threads} does not divide over 2 ranks")
    return args


def main():
    args = arguments()
    figures = [f for f in FIGURES if not args.only or f.name in args.only]
    bench = Bench(args)
    try:
        samples = bench.all_rounds(figures)
        entries = [judge(f, samples, args) for f in figures]
    except Failed as e:
        sys.exit(f"bench: {e}")
    path = bench.folder / "train.json" if args.quick else common.RESULTS
    common.write_results(entries, path)
    show(entries)
    if any(e["disturbed"] > args.disturbed for e in entries):
        print("\nSomething else used the CPU during some runs: the figures above are noisier than they look.")
    if args.quick:
        print(f"\nquick: figures of a tiny model say nothing; written to {path.relative_to(common.ROOT)}")
    else:
        report.write()
        print(f"\nwritten to {path.relative_to(common.ROOT)} and docs/benchmarks.md")


if __name__ == "__main__":
    main()

"""What keeping the state costs: snapshots and saves behind the steps as shares of a step, disk saves and loads against
PyTorch's and against the disk itself.

    python benchmarks/checkpoint.py                 # everything, about 15 minutes on two cores
    python benchmarks/checkpoint.py --only snapshot_k1_overhead --rounds 3
    python benchmarks/checkpoint.py --quick         # does the harness work? tiny model, nothing is recorded

Two ranks of one core each stand for two nodes: every snapshot goes to the other rank as its second copy (checkpoint.partner:
rank), through MPI. A share is taken within one run: k = 1 beside k = never would compare two runs of a machine whose speed
wanders by more than the figure, so runs alternate and the median over the rounds counts. Saves and loads of herd are timed by
herd itself (the events `checkpoint` and `resume`), those of the others by benchmarks/peers/save_torch.py, in the same round, on
the same folder."""

import argparse
import datetime
import json
import os
import shutil
import statistics
import sys
from pathlib import Path

import common
import report
from common import Failed, Run

RESULTS = common.ROOT / "benchmarks" / "results" / "checkpoint.json"
PEER = Path("benchmarks/peers/save_torch.py")
WAYS = ["raw", "dcp", "torch_save", "direct", "dcp_at_once", "dcp_async", "safetensors"]
# Two saves before, and the first of them no longer kept: so it is in the middle of a run.
KEPT = dict(steps=12, every=4, keep=1, background=False, snapshot_every=0)
# name: (unit, peer, goal, higher is better)
FIGURES = {
    "snapshot_k1_overhead": ("share of a step", "the same run without snapshots", 0.12, False),
    "snapshot_k10_overhead": ("share of a step", "the same run without snapshots", 0.015, False),
    "async_save_overhead": ("share of the steps that a save overlaps", "the same run without saves", 0.03, False),
    "save_vs_dcp": ("ratio of GB/s", "torch.distributed.checkpoint.save", 2.0, True),
    "save_vs_dcp_at_once": ("ratio of GB/s", "the same, right after another such save", 2.0, True),
    "save_vs_raw": ("ratio of GB/s", "sequential write with fsync, through the page cache, around it, or around it over an older file, whichever is fastest", 0.8, True),
    "load_vs_raw": ("ratio of GB/s", "sequential read", 0.8, True),
}


class Bench:
    def __init__(self, args):
        self.args = args
        self.folder = common.SCRATCH / ("checkpoint-quick" if args.quick else "checkpoint")
        self.shape = common.TINY_SHAPE if args.quick else common.SHAPE
        self.sequence, self.batch = (64, 2) if args.quick else (512, 2)
        self.tokens = self.folder / "tokens"
        self.herd = common.herd_binary(args.herd)
        self.steps = 12 if args.quick else args.steps
        self.memory = Path("/dev/shm") / f"herd-bench-{os.getpid()}"

    def train(self, name, again=False, steps=None, **checkpoint):
        """One run of two ranks; its step ends, its events, and how disturbed it was."""
        run_dir = self.folder / name
        if not again:
            shutil.rmtree(run_dir, ignore_errors=True)
        steps = (steps or self.steps) + self.args.more * again
        document = common.herd_config(
            run_dir,
            self.tokens,
            shape=self.shape,
            steps=steps,
            precision="bf16",
            ranks=2,
            threads=1,
            sequence=self.sequence,
            batch=self.batch,
        )
        document["checkpoint"] = {"partner": "rank", "snapshot_dir": str(self.memory), **checkpoint}
        config = self.folder / f"{name}.yaml"
        config.write_text(json.dumps(document, indent=2))
        run = Run([*common.mpirun(2), self.herd, "train", config], self.folder / f"{name}.log")
        events = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
        ends = [s["time"] for s in common.read_metrics(run_dir)]
        return ends, events, run

    def step_seconds(self, name, k=1, **checkpoint):
        """A step of a run after its warm-up, where every k-th pays: the mean over the k places in an interval of the median at
        that place, so that a step which something else held up does not count."""
        ends, events, run = self.train(name, **checkpoint)
        skipped = sum(e["kind"] == "snapshot_skipped" for e in events)
        shutil.rmtree(self.folder / name)
        steps = [b - a for a, b in zip(ends, ends[1:])][self.args.warmup - 1 :]
        seconds = statistics.mean(statistics.median(steps[place::k]) for place in range(min(k, len(steps))))
        note = f", {skipped} snapshots left out" if skipped else ""
        print(f"  {name:24} {seconds * 1e3:8.1f} ms a step{note}  (others used {run.disturbed:.2f} of a core)", flush=True)
        if skipped and not self.args.quick:
            # A snapshot that was left out cost nothing: the figure would be a lie.
            raise Failed(f"{name}: {skipped} snapshots were left out; the copy takes longer than its interval")
        return seconds

    def overheads(self, wanted):
        every = {"snapshot_k1_overhead": 1, "snapshot_k10_overhead": 10}
        ks = {n: k for n, k in every.items() if n in wanted}
        samples = {n: [] for n in ks}
        if not ks:
            return samples
        for number in range(self.args.rounds):
            print(f"snapshots, round {number + 1} of {self.args.rounds}", flush=True)
            names = ["none", *ks] if number % 2 == 0 else [*reversed(ks), "none"]
            took = {n: self.step_seconds(n, ks.get(n, 1), snapshot_every=ks.get(n, 0)) for n in names}
            for n in ks:
                samples[n].append(took[n] / took["none"] - 1)
        return samples

    def saving(self):
        """Share that saves behind the steps add to the steps that they overlap, against those steps of a run without."""
        samples = []
        for number in range(self.args.rounds):
            print(f"saves behind the steps, round {number + 1} of {self.args.rounds}", flush=True)
            every = max(4, self.steps // 3)

            def with_saves():
                ends, events, _ = self.train("saving", every=every, snapshot_every=0, keep_every=0)
                saves = [e for e in events if e["kind"] == "checkpoint" and e["step"] < self.steps]
                return ends, saves

            def without():
                ends, _, _ = self.train("plain", snapshot_every=0)
                # The mean, as on the other side: a median leaves out what disturbs the machine, and would make it ours.
                return statistics.mean([b - a for a, b in zip(ends, ends[1:])][self.args.warmup :])

            plain, (ends, saves) = (without(), with_saves()) if number % 2 == 0 else reversed((with_saves(), without()))
            shutil.rmtree(self.folder / "saving")
            shutil.rmtree(self.folder / "plain")
            if not saves:
                raise Failed("no save ran behind the steps")
            extra = steps = 0
            for save in saves:
                # The copy is made after the step, so the next step's end carries it; the save ends at its event.
                began = save["step"]
                # The event comes at the step boundary after the end.
                told = datetime.datetime.fromisoformat(save["time"].replace("Z", "+00:00")).timestamp()
                done = min(told, ends[began - 1] + save["seconds"])
                overlapped = [i for i in range(began, len(ends)) if ends[i - 1] <= done]
                extra += sum(ends[i] - ends[i - 1] - plain for i in overlapped)
                steps += len(overlapped)
            share = extra / (steps * plain)
            seconds = statistics.median(s["seconds"] for s in saves)
            print(f"  saves of {seconds:.1f} s over {steps} steps added {share:+.1%} to them", flush=True)
            samples.append(share)
        return samples

    def disk(self):
        """GB/s of every way to save and to load, one set a round. Each round begins with another way: the first to fill the
        page cache pays for its pages where the host has taken them back."""
        rounds = []
        for number in range(self.args.rounds):
            print(f"disk, round {number + 1} of {self.args.rounds}", flush=True)
            turn = number % len(WAYS)
            speed = {} if number % 2 else self.own_disk()
            ways = ",".join(WAYS[turn:] + WAYS[:turn])
            command = [sys.executable, PEER, "--bytes", self.bytes, "--dir", self.folder / "peers", "--ways", ways]
            peers = Run(command, self.folder / "peers.log").json_lines()
            speed.update({p["name"]: p["bytes"] / p["seconds"] / 1e9 for p in peers})
            if number % 2:
                speed.update(self.own_disk())
            speed["fastest_raw_save"] = max(speed[way] for way in ("raw_save", "direct_save", "direct_over_save"))
            for name, rate in speed.items():
                print(f"  {name:18} {rate:6.2f} GB/s", flush=True)
            rounds.append(speed)
        return rounds

    def own_disk(self):
        """GB/s of herd's save at the end of a run, its third, and of its load at the start of the next."""
        _, events, _ = self.train("disk", **KEPT)
        saved = [e for e in events if e["kind"] == "checkpoint"][-1]
        self.bytes = saved["bytes"]
        for path in (self.folder / "disk" / "checkpoints").rglob("*.h5"):
            with open(path, "rb") as f:
                os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        _, events, _ = self.train("disk", again=True, **KEPT)
        loaded = [e for e in events if e["kind"] == "resume"][-1]
        shutil.rmtree(self.folder / "disk")
        return {name: self.bytes / e["seconds"] / 1e9 for name, e in (("herd_save", saved), ("herd_load", loaded))}


def record(args, samples, **more):
    """Says what was found and, unless this is a try, writes it down: what comes later may fail or be ended."""
    entries = []
    for name, values in samples.items():
        unit, peer, goal, higher = FIGURES[name]
        value, low, high = common.spread(values)
        reached = value >= goal if higher else value <= goal
        print(f"{name:24} {value:8.4f}  ({low:.4f} to {high:.4f}; goal {goal}: {'reached' if reached else 'missed'})", flush=True)
        about = dict(min=round(low, 4), max=round(high, 4), goal=f"{'>=' if higher else '<='} {goal}", reached=reached)
        entries.append(common.entry(name, value, unit, peer, rounds=len(values), **about, **more))
    if entries and not args.quick:
        common.write_results(entries, RESULTS)
        report.write()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=FIGURES, help="measure this figure (may be repeated)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--more", type=int, default=2, help="steps after a load")
    parser.add_argument("--warmup", type=int, default=4, help="steps not counted at the start of a run")
    parser.add_argument("--herd", help="binary to measure")
    parser.add_argument("--quick", action="store_true", help="try the harness: tiny model, one round, nothing is recorded")
    args = parser.parse_args()
    if args.quick:
        args.rounds = 1
    wanted = set(args.only or FIGURES)
    bench = Bench(args)
    try:
        bench.folder.mkdir(parents=True, exist_ok=True)
        bench.memory.mkdir()
        common.write_tokens(bench.tokens, bench.shape["vocab_size"])
        record(args, bench.overheads(wanted))
        if "async_save_overhead" in wanted:
            record(args, {"async_save_overhead": bench.saving()})
        of = {
            "save_vs_dcp": ("herd_save", "dcp_save"),
            "save_vs_dcp_at_once": ("herd_save", "dcp_at_once_save"),
            "save_vs_raw": ("herd_save", "fastest_raw_save"),
            "load_vs_raw": ("herd_load", "raw_load"),
        }
        if wanted & set(of):
            rounds = bench.disk()
            rates = {way: round(statistics.median(r[way] for r in rounds), 3) for way in rounds[0]}
            for name in [n for n in of if n in wanted]:
                ours, theirs = of[name]
                shown = {"ours": f"{rates[ours]:.2f} GB/s", "theirs": f"{rates[theirs]:.2f} GB/s", "gb_per_s": rates}
                record(args, {name: [r[ours] / r[theirs] for r in rounds]}, **shown)
    except Failed as e:
        sys.exit(f"bench: {e}")
    finally:
        shutil.rmtree(bench.memory, ignore_errors=True)
        for name in ("disk", "saving", "plain", "none", "peers", *FIGURES):
            shutil.rmtree(bench.folder / name, ignore_errors=True)


if __name__ == "__main__":
    main()

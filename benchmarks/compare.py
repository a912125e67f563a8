"""Two builds of herd, the same runs in turn: losses to the bit, seconds a step, old state restored by the new build.

    python benchmarks/compare.py --before ../older/target/release/herd            # this checkout's build against an older one
    python benchmarks/compare.py --before OLD --only resume                       # cells whose name matches

A change that is not about numerics leaves fp32 losses, gradient norms and a resumed run bit-identical, and the speed as it was.
Exit code 1 where a loss differs or old state is not restored. Records nothing: what it prints belongs to the change that it judges.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import common

FOLDER = common.SCRATCH / "compare"
STEPS = 8
# What of a step must be equal: all that does not tell of time or machine.
EQUAL = ("loss", "grad_norm", "lr")
# Runs whose numbers are held against each other: name, keys set, ranks.
EXACT = [
    ("fp32, one rank", {}, 1),
    ("fp32, two replicas", {"parallel": {"data": 2}}, 2),
    ("fp32, two replicas, ZeRO 3", {"parallel": {"data": 2, "zero": 3}}, 2),
    ("fp32, tensor 2", {"parallel": {"tensor": 2}}, 2),
    ("fp32, pipeline 2", {"parallel": {"pipeline": 2}}, 2),
    ("fp32, context 2", {"parallel": {"context": 2}}, 2),
]
# Runs that are timed: name, precision, ranks, keys of the section checkpoint; {memory} is a folder in memory.
TIMED = [
    ("bf16, one rank", "bf16", 1, {}),
    ("bf16, two replicas", "bf16", 2, {}),
    ("bf16, two replicas, snapshots", "bf16", 2, {"snapshot_every": 1, "snapshot_dir": "{memory}"}),
    ("bf16, two replicas, saves behind the steps", "bf16", 2, {"every": 3}),
    ("fp32, one rank, speed", "fp32", 1, {}),
]


class Compare:
    def __init__(self, args):
        self.args = args
        self.builds = {"before": Path(args.before).resolve(), "now": common.herd_binary(args.herd)}
        self.wrong = []

    def wanted(self, name):
        return re.search(self.args.only, name)

    def run(self, build, name, document, ranks):
        """The steps that one run tells of."""
        config = self.path(name, build, "yaml")
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(json.dumps(document, indent=2))  # JSON is YAML
        command = [*common.mpirun(ranks), self.builds[build], "train", config]
        if "stop_at" in document["train"]:
            # 75 is its good end
            command = ["sh", "-c", '"$@"; test $? = 75', "sh", *command]
        common.Run(command, self.path(name, build, "log"))
        return common.read_metrics(Path(document["run_dir"]))

    def document(self, run_dir, shape, steps, precision, ranks, sequence, **sections):
        tokens = FOLDER / f"tokens-{shape['vocab_size']}"
        common.write_tokens(tokens, shape["vocab_size"])
        document = common.herd_config(
            run_dir, tokens, shape=shape, steps=steps, precision=precision, ranks=ranks, threads=max(1, 2 // ranks), sequence=sequence, batch=4
        )
        for section, keys in sections.items():
            document[section] = keys if section == "parallel" else document.get(section, {}) | keys
        document["batch"]["micro"] = 2
        return document

    def same(self, name, old, new):
        """Whether the steps of both are equal to the bit; JSON's numbers are the shortest that mean their float."""
        differ = [a["step"] for a, b in zip(old, new) if any(a.get(k) != b.get(k) for k in EQUAL)]
        if differ or len(old) != len(new):
            self.wrong.append(name)
        last = new[-1] if new else {}
        print(f"{name:32}{len(new):3} steps, {len(differ)} differ; last loss {last.get('loss')}, norm {last.get('grad_norm')}", flush=True)

    def exact(self, name, sections, ranks):
        steps = {}
        for build in self.builds:
            run_dir = self.fresh(name, build)
            document = self.document(run_dir, common.TINY_SHAPE, STEPS, "fp32", ranks, 128, **({"parallel": {}} | sections))
            steps[build] = self.run(build, name, document, ranks)
        self.same(name, steps["before"], steps["now"])

    def resume(self, name, checkpoint):
        """The old build trains half of the steps, the new one goes on; against the old one alone."""
        steps = {}
        for last in ("before", "now"):
            run_dir = self.fresh(name, last)
            memory = FOLDER / "memory" / last
            shutil.rmtree(memory, ignore_errors=True)
            memory.mkdir(parents=True)
            keys = in_memory(checkpoint, memory)
            document = self.document(run_dir, common.TINY_SHAPE, STEPS, "fp32", 2, 128, parallel={"data": 2}, checkpoint=keys)
            half = json.loads(json.dumps(document))
            half["train"]["stop_at"] = STEPS // 2
            self.run("before", name, half, 2)
            if "snapshot_every" in checkpoint:
                shutil.rmtree(run_dir / "checkpoints")
            steps[last] = self.run(last, name, document, 2)
            log = self.path(name, last, "log").read_text(errors="replace")
            restored = [line.strip() for line in log.splitlines() if "resumed from" in line]
            print(f"  {last}: {restored[0] if restored else 'nothing was restored'}")
            if not restored:
                self.wrong.append(f"{name}: nothing was restored ({last})")
        self.same(name, steps["before"], steps["now"])

    def timed(self, name, precision, ranks, checkpoint):
        """Seconds of a step, of the save at the end and from the start to the first step's end, the builds in turn."""
        seconds = {what: {build: [] for build in self.builds} for what in ("a step", "the save", "the first step")}
        peak = {build: 0 for build in self.builds}
        memory = Path("/dev/shm/herd-compare")
        for number in range(self.args.rounds):
            for build in list(self.builds)[:: 1 if number % 2 else -1]:
                run_dir = self.fresh(name, build)
                memory.mkdir(exist_ok=True)
                sections = {"parallel": {"data": ranks}, "checkpoint": in_memory(checkpoint, memory)}
                document = self.document(run_dir, common.SHAPE, self.args.steps, precision, ranks, self.args.sequence, **sections)
                began = time.time()
                steps = self.run(build, name, document, ranks)
                ends = [s["time"] for s in steps]
                peak[build] = max(peak[build], *(s["memory_peak"] for s in steps))
                events = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
                seconds["a step"][build].append(statistics.median(b - a for a, b in zip(ends[2:], ends[3:])))
                seconds["the save"][build].append([e["seconds"] for e in events if e["kind"] == "checkpoint"][-1])
                seconds["the first step"][build].append(ends[0] - began)
                shutil.rmtree(run_dir, ignore_errors=True)
                shutil.rmtree(memory, ignore_errors=True)
        for what, of in seconds.items():
            speed(f"{name}, {what}", of)
        print(f"{name + ', memory':58}{peak['before'] / 1e6:.1f} MB before, {peak['now'] / 1e6:.1f} MB now", flush=True)

    def converted(self, name):
        """Seconds of an import of a Hugging Face model of 1.2 GB and of the export of what it made."""
        work = FOLDER / "convert"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        # In a process of its own: its peak of memory is not ours.
        subprocess.run([sys.executable, Path(__file__).with_name("checkpoint_convert.py"), "--make", work / "hf", "10"], check=True)
        seconds = {verb: {build: [] for build in self.builds} for verb in ("import", "export")}
        for number in range(self.args.rounds):
            for build in list(self.builds)[:: 1 if number % 2 else -1]:
                for verb, source, target in (("import", "hf", "run"), ("export", "run", "out")):
                    shutil.rmtree(work / target, ignore_errors=True)
                    os.sync()
                    run = common.Run([self.builds[build], "checkpoint", verb, work / source, work / target], self.path(name, build, "log"))
                    seconds[verb][build].append(run.seconds)
        for verb, of in seconds.items():
            speed(f"{name}, {verb}", of)
        shutil.rmtree(work)

    def cold(self, name):
        """Seconds of a resume whose files are not in the page cache, after another process has touched as much memory as the ranks will and
        without that: a guest whose host takes free memory back pays for the first touch of each page, which is no part of herd. Root only."""
        drop = Path("/proc/sys/vm/drop_caches")
        if not os.access(drop, os.W_OK):
            return print(f"{name}: skipped, {drop} is not ours to write", flush=True)
        run_dir = self.fresh(name, "whole")
        sections = {"parallel": {"data": 2}, "checkpoint": {"every": 2}}
        document = self.document(run_dir, common.SHAPE, 3, "fp32" if self.args.fp32 else "bf16", 2, self.args.sequence, **sections)
        document["train"]["stop_at"] = 2
        self.run("before", name, document, 2)
        del document["train"]["stop_at"]
        seconds = {(build, touched): [] for build in self.builds for touched in (False, True)}
        for number in range(self.args.rounds):
            for build, touched in list(seconds)[:: 1 if number % 2 else -1]:
                again = self.fresh(name, build)
                shutil.copytree(run_dir, again)
                os.sync()
                drop.write_text("3")
                if touched:
                    subprocess.run([sys.executable, "-c", "b'1' * (8 << 30)"], check=True)
                self.run(build, name, document | {"run_dir": str(again)}, 2)
                events = [json.loads(line) for line in (again / "events.jsonl").read_text().splitlines()]
                seconds[build, touched].append([e["seconds"] for e in events if e["kind"] == "resume"][-1])
                shutil.rmtree(again)
        for touched in (False, True):
            before, now = (statistics.median(seconds[build, touched]) for build in self.builds)
            how = "memory touched before" if touched else "memory as it is"
            print(f"{name + ', ' + how:46}{before:.3f} s before, {now:.3f} s now: {before / now:.3f} times the speed", flush=True)
        shutil.rmtree(run_dir)

    def path(self, name, build, ending):
        return FOLDER / (re.sub(r"\W+", "-", name) + f"-{build}.{ending}")

    def fresh(self, name, build):
        run_dir = self.path(name, build, "run")
        shutil.rmtree(run_dir, ignore_errors=True)
        return run_dir


def speed(what, seconds):
    value, low, high = common.spread([b / n for b, n in zip(seconds["before"], seconds["now"])])
    before, now = (statistics.median(seconds[b]) for b in ("before", "now"))
    print(f"{what:58}{before:.3f} s before, {now:.3f} s now: {value:.3f} times the speed ({low:.3f} to {high:.3f})", flush=True)


def in_memory(checkpoint, memory):
    return {k: v.format(memory=memory) if isinstance(v, str) else v for k, v in checkpoint.items()}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--before", required=True, help="the older herd")
    p.add_argument("--herd", help="the newer one (default target/release/herd)")
    p.add_argument("--only", default="", help="cells whose name matches this regular expression")
    p.add_argument("--fp32", action="store_true", help="time runs in fp32 alone: for a CPU on which one build has no bf16 products")
    p.add_argument("--rounds", type=int, default=5, help="times that each build runs a timed cell (default 5)")
    p.add_argument("--steps", type=int, default=STEPS, help=f"steps of a timed run, at least 5 (default {STEPS})")
    p.add_argument("--sequence", type=int, default=512, help="tokens of a sample of a timed run (default 512)")
    args = p.parse_args()
    compare = Compare(args)
    for name, sections, ranks in EXACT:
        if compare.wanted(name):
            compare.exact(name, sections, ranks)
    for name, checkpoint in (
        ("resume from a checkpoint", {"every": STEPS // 2}),
        ("resume from a snapshot", {"every": STEPS, "snapshot_every": 1, "snapshot_dir": "{memory}"}),
    ):
        if compare.wanted(name):
            compare.resume(name, checkpoint)
    for name, precision, ranks, checkpoint in TIMED:
        if args.fp32:
            name, precision = name.replace("bf16", "fp32"), "fp32"
        if compare.wanted(name):
            compare.timed(name, precision, ranks, checkpoint)
    if compare.wanted("conversion"):
        compare.converted("conversion")
    if compare.wanted("resume, files cold"):
        compare.cold("resume, files cold")
    if compare.wrong:
        sys.exit(f"differ: {'; '.join(compare.wrong)}")


if __name__ == "__main__":
    try:
        main()
    except common.Failed as e:
        sys.exit(f"compare: {e}")

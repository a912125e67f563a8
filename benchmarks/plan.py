"""`herd plan` against this machine and against what others have published.

    python benchmarks/plan.py                     # about 4 minutes on two cores; records results/plan.json
    python benchmarks/plan.py --only layouts      # or published, goodput, search
    python benchmarks/plan.py --quick             # does the harness work? tiny model, nothing is recorded

Layouts: one small model is trained for ten steps in each of the ways below, ranks sharing the two cores. Three of the runs
calibrate the planner; it then predicts the others, which it has not seen. Memory: rank 0's highest count in the same runs
against the formula. The machine's description before calibration is a guess (MACHINE), the same for every machine.
"""

import argparse
import json
import shutil
import statistics
import subprocess
from dataclasses import dataclass, field

import common
import memory
import report
from common import Failed, Run

RESULTS = common.ROOT / "benchmarks" / "results" / "plan.json"
SHAPE = dict(
    vocab_size=8192,
    hidden_size=512,
    intermediate_size=1408,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=4,
)
SEQUENCE, BATCH = 256, 8
MACHINE = {
    "name": "this machine",
    "source": "a guess, to be calibrated",
    "device": "cpu",
    "memory_gib": 8,
    "bf16_tflops": 0.2,
    "fp32_tflops": 0.1,
    "memory_gb_s": 10,
    "inside": {"gb_s": 5, "latency_us": 5},
    "between": {"gb_s": 1, "latency_us": 50},
    "costs": {"kernel_us": 1, "step_ms": 1, "reserve_gib": 0.3, "snapshot_gb_s": 5},
}


@dataclass(frozen=True)
class Layout:
    name: str
    ranks: int
    micro: int
    parallel: dict = field(default_factory=dict)
    threads: int = 1
    recompute: str = "none"
    calibrates: bool = False


LAYOUTS = [
    Layout("one rank", 1, 2, threads=2, calibrates=True),
    Layout("one rank, recompute full", 1, 2, threads=2, recompute="full"),
    Layout("one rank, one thread", 1, 2, threads=1),
    Layout("data 2, zero 0", 2, 2, {"zero": 0}),
    Layout("data 2, zero 1, recompute full", 2, 4, {"zero": 1}, recompute="full"),
    Layout("data 2, zero 2, micro 1", 2, 1, {"zero": 2}, calibrates=True),
    Layout("data 2, zero 3", 2, 2, {"zero": 3}),
    Layout("tensor 2", 2, 2, {"tensor": 2}, calibrates=True),
    Layout("tensor 2, recompute full", 2, 2, {"tensor": 2}, recompute="full"),
    Layout("tensor 2, micro 8", 2, 8, {"tensor": 2}),
    Layout("pipeline 2, 1f1b", 2, 1, {"pipeline": 2}),
    Layout("pipeline 2, gpipe, micro 4", 2, 4, {"pipeline": 2, "schedule": "gpipe"}),
    Layout("pipeline 2, zero bubble", 2, 1, {"pipeline": 2, "schedule": "zero_bubble"}),
    Layout("pipeline 2, interleaved", 2, 1, {"pipeline": 2, "schedule": "interleaved", "chunks": 2}),
    Layout("context 2", 2, 2, {"context": 2}),
    Layout("data 4, zero 1", 4, 2, {"zero": 1}),
    Layout("data 2, tensor 2", 4, 2, {"tensor": 2, "zero": 1}),
    Layout("pipeline 4", 4, 1, {"pipeline": 4}),
]


class Bench:
    def __init__(self, args):
        self.args = args
        self.folder = common.SCRATCH / ("plan-quick" if args.quick else "plan")
        self.shape = common.TINY_SHAPE if args.quick else SHAPE
        self.tokens = self.folder / "tokens"
        self.herd = common.herd_binary(args.herd)
        common.write_tokens(self.tokens, self.shape["vocab_size"])
        self.machine = self.folder / "machine.yaml"
        self.machine.write_text(json.dumps(dict(MACHINE, cores=common.machine()["cores"]), indent=2))

    def herd_json(self, *command):
        done = subprocess.run(
            [str(c) for c in [self.herd, *command, "--json"]],
            cwd=common.ROOT,
            env=common.environment(),
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise Failed(f"herd {command[0]} ended with {done.returncode}: {done.stderr.strip()}")
        return json.loads(done.stdout)

    def config(self, layout):
        run_dir = self.folder / layout.name.replace(", ", "-").replace(" ", "_")
        document = common.herd_config(
            run_dir,
            self.tokens,
            shape=self.shape,
            steps=self.args.steps,
            precision="bf16",
            ranks=1,
            threads=layout.threads,
            sequence=SEQUENCE,
            batch=BATCH,
            recompute=layout.recompute,
        )
        document["batch"]["micro"] = layout.micro
        document["parallel"] = {**layout.parallel, "data": 0}
        path = self.folder / f"{run_dir.name}.yaml"
        path.write_text(json.dumps(document, indent=2))
        return path, run_dir

    def trained(self, layout):
        """Median step time after the warm-up, and rank 0's highest bytes; taken again while others use the machine."""
        config, run_dir = self.config(layout)
        for _ in range(0 if self.args.reuse else 3):
            shutil.rmtree(run_dir, ignore_errors=True)
            run = Run([*common.mpirun(layout.ranks), self.herd, "train", config], self.folder / f"{run_dir.name}.log")
            if run.disturbed <= self.args.disturbed or self.args.quick:
                break
        steps = common.read_metrics(run_dir)[3:]
        seconds = statistics.median(s["step_s"] for s in steps)
        return {"seconds": seconds, "memory": max(s["memory_peak"] for s in steps)}

    def layouts(self):
        rows = {}
        for layout in LAYOUTS:
            rows[layout.name] = self.trained(layout)
            print(f"  {layout.name:32} {rows[layout.name]['seconds'] * 1e3:8.0f} ms", flush=True)
        learned = [self.config(layout)[1] for layout in LAYOUTS if layout.calibrates]
        for layout in LAYOUTS:
            config, _ = self.config(layout)
            command = ["plan", config, "--nodes", 1, "--gpus-per-node", layout.ranks, "--gpu", self.machine]
            # Ranks of all runs share one node, whatever their number.
            for run_dir in learned:
                command += ["--calibrate", run_dir]
            row, found = rows[layout.name], self.herd_json(*command)
            row["predicted"] = found["estimate"]["step"]["seconds"]
            row["error"] = row["predicted"] / row["seconds"] - 1
            row["memory_error"] = row["memory"] / memory.formula(self.herd, config, layout.ranks) - 1
            note = "  calibrates" if layout.calibrates else ""
            print(
                f"  {layout.name:32} {row['seconds'] * 1e3:8.0f} ms measured {row['predicted'] * 1e3:8.0f} ms predicted "
                f"{row['error']:+7.1%}  memory {row['memory_error']:+6.1%}{note}",
                flush=True,
            )
        unseen = [rows[x.name] for x in LAYOUTS if not x.calibrates]
        error = statistics.median(abs(r["error"]) for r in unseen)
        rank = spearman([r["seconds"] for r in unseen], [r["predicted"] for r in unseen])
        worst = max(abs(r["memory_error"]) for r in rows.values())
        table = {name: {k: round(v, 4) for k, v in row.items() if k != "memory"} for name, row in rows.items()}
        peer = "steps measured on this machine"
        memory_peer = "rank 0's highest count of tensor bytes"
        return [
            figure("memory_runs", len(rows), "runs of differing axes", memory_peer, 12, at_least=True),
            figure("memory_error_max", worst, "largest relative difference from the formula", memory_peer, 0.05),
            figure(
                "step_time_error_median", error, "median of |predicted / measured - 1| over layouts not calibrated on", peer,
                0.15, layouts=table, calibrated_on=[x.name for x in LAYOUTS if x.calibrates],
            ),
            figure("layout_rank_spearman", rank, f"rank correlation over {len(unseen)} layouts not calibrated on", peer, 0.8, at_least=True),
        ]  # fmt: skip

    def published(self):
        found = self.herd_json("plan", "--published")
        for r in found["rows"]:
            print(f"  {r['published_mfu']:6.1%} {r['predicted_mfu']:6.1%} {r['error']:+6.1%}  {r['name']}")
        rows = {r["name"]: {"published": round(r["published_mfu"], 4), "predicted": round(r["predicted_mfu"], 4)} for r in found["rows"]}
        return [
            figure(
                "published_mfu_error_max", found["error_max"],
                "largest |predicted / published - 1| of MFU, each row predicted from the others", "published runs", 0.1, rows=rows,
            )
        ]  # fmt: skip

    def goodput(self):
        command = ["plan", "configs/llama3_405b.yaml", "--nodes", 2048, "--gpus-per-node", 8, "--attention", "fused"]
        faults = self.herd_json(*command)["estimate"]["faults"]
        return [
            figure(
                "goodput_16k", faults["goodput_snapshots"],
                "share of time in steps that count, 405B on 16,384 H100, snapshots at their best interval, spares",
                "Llama 3: above 0.9", 0.9, at_least=True, faults_in_54_days=round(54 * faults["per_day"], 1),
                checkpoints_alone=round(faults["goodput_checkpoints"], 4),
                checkpoints_through_the_queue=round(faults["goodput_no_spares"], 4), spares=faults["spares"],
            )
        ]  # fmt: skip

    def search(self):
        seconds = {}
        for config, nodes in (("llama3_8b", 1), ("llama3_70b", 16), ("llama3_405b", 2048)):
            command = ["plan", f"configs/{config}.yaml", "--nodes", nodes, "--gpus-per-node", 8, "--attention", "fused"]
            found = self.herd_json(*command, "--search", "--set", "parallel.data=0")["search"]
            seconds[config] = round(found["seconds"], 3)
            print(f"  {config:12} {found['axes']} axes, {found['settings']} settings: {found['seconds']:.2f} s", flush=True)
        return [figure("search_s", max(seconds.values()), "seconds, the slowest of 8, 128 and 16,384 devices", "none", 2.0, each=seconds)]


def figure(name, value, unit, peer, goal, at_least=False, **more):
    reached = value >= goal if at_least else value <= goal
    words = f"at {'least' if at_least else 'most'} {goal:g}"
    return common.entry(name, value, unit, peer, goal=words, reached=reached, **more)


def spearman(a, b):
    """Rank correlation; no ties among measured times."""
    def ranks(values):
        order = sorted(range(len(values)), key=values.__getitem__)
        return {i: place for place, i in enumerate(order)}

    ra, rb, n = ranks(a), ranks(b), len(a)
    return 1 - 6 * sum((ra[i] - rb[i]) ** 2 for i in range(n)) / (n * (n * n - 1))


PARTS = ["layouts", "published", "goodput", "search"]


def main():
    p = argparse.ArgumentParser(description="herd plan against measured and published runs")
    p.add_argument("--only", action="append", choices=PARTS, help="one part")
    p.add_argument("--steps", type=int, default=10, help="steps a run (default 10)")
    p.add_argument("--quick", action="store_true", help="tiny model: proves that the harness works; records nothing")
    p.add_argument("--reuse", action="store_true", help="predict the steps that the last call measured, train nothing")
    p.add_argument("--herd", help="herd binary (default target/release/herd)")
    p.add_argument("--disturbed", type=float, default=0.3, help="cores others may use before a run is repeated")
    args = p.parse_args()
    report.run(Bench, PARTS, RESULTS, args)


if __name__ == "__main__":
    main()

"""The real supervisor in a simulated cluster, at full count: figures of results/simulate.json.

    python benchmarks/simulate.py            # 10,000 seeds at 64 nodes, 1,000 days at 2,048 nodes, planted mistakes
    python benchmarks/simulate.py --quick    # few of each, records nothing

`sim_seeds` and `sim_faults` are of the sweep at 64 nodes with every kind of fault about as often (`herd simulate --even`) and of the runs
at 2,048 nodes; `sim_days` are those at 2,048 nodes. `sim_goodput_16k` is that of configs/llama3_405b.yaml on 2,048 nodes and 32
spares at the published failure rate. `sim_bugs_planted` and `sim_bugs_found` are from herd's own test, which puts mistakes into the
shipped code.
"""

import argparse
import json
import subprocess
import sys

import common
import report
import scale
from common import Failed

RESULTS = common.RESULTS.with_name("simulate.json")


def simulated(herd, *options):
    command = [str(herd), "simulate", *map(str, options), "--json"]
    run = subprocess.run(command, cwd=common.ROOT, env=common.environment(), capture_output=True, text=True)
    if not run.stdout:
        raise Failed(f"{' '.join(command)}: {run.stderr}")
    sys.stderr.write(run.stderr)
    return json.loads(run.stdout)


def main():
    p = argparse.ArgumentParser(description="the real supervisor in a simulated cluster")
    p.add_argument("--quick", action="store_true", help="few of each, records nothing")
    p.add_argument("--herd", help="herd binary (default target/release/herd)")
    args = p.parse_args()
    try:
        herd = common.herd_binary(args.herd)
        seeds, runs = (100, 1) if args.quick else (10_000, 20)
        small = simulated(
            herd, "--nodes", 64, "--spares", 3, "--days", 0.5, "--seeds", seeds, "--even", "--failure-rate", 0.02, "--start-s", 15,
        )  # fmt: skip
        config = "configs/llama3_405b.yaml"
        large = simulated(herd, config, "--nodes", 2048, "--spares", 32, "--days", 54, "--seeds", runs)
        bugs = scale.printed("simulate::tests::planted_mistakes_are_found", "--lib")
    except Failed as e:
        sys.exit(f"bench: {e}")
    every = small["runs"] + large["runs"]
    faults = sum(sum(r["faults"].values()) for r in every)
    violations = sum("violation" in r for r in every)
    days = sum(r["days"] for r in large["runs"])
    good = sum(r["goodput"] * r["days"] for r in large["runs"]) / days
    spread = {"min": min(r["goodput"] for r in large["runs"]), "max": max(r["goodput"] for r in large["runs"])}
    formula = f"the formula of herd plan: {large['goodput_formula']:.4f}"
    took = f"{small['seconds']:.0f} s and {large['seconds']:.0f} s"
    entry = common.entry
    entries = [
        entry("sim_days", days, "simulated days at 2,048 nodes", "none", goal="at least 1000", reached=days >= 1000, ours=took),
        entry("sim_seeds", len(small["runs"]), "seeds at 64 nodes, half a day each", "none", goal="at least 10000", reached=len(small["runs"]) >= 10_000),
        entry("sim_faults", faults, "faults in both", "none"),
        entry("sim_violations", violations, "seeds that broke a rule", "none", goal="0", reached=violations == 0),
        entry("sim_goodput_16k", good, "share of time in steps that count, 405B on 16,384 devices", formula, **spread),
        entry("sim_bugs_planted", bugs["planted"], "mistakes put into the shipped code", "none"),
        entry("sim_bugs_found", bugs["found"], "of them found", "none", goal="all", reached=bugs["planted"] == bugs["found"]),
    ]  # fmt: skip
    report.record(entries, RESULTS, args.quick)


if __name__ == "__main__":
    main()

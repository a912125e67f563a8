"""herd doctor on four nodes of a private Slurm: each fault made for real, one at a time, and healthy examinations.

    python benchmarks/doctor.py                 # about 40 minutes on two cores; writes results/plan.json and docs/benchmarks.md
    python benchmarks/doctor.py --healthy 3 --quick    # does the harness work? records nothing

The faults are those of tests/it/slurm/doctor.rs; needs root, for namespaces. Time at 2,048 nodes is modelled: what each part took
here, times its rounds there (`rounds` of src/doctor/clock.rs and links.rs), without Slurm's own time to start a step.
"""

import argparse
import json
import math
import sys

import common
import report

RESULTS = common.RESULTS.with_name("plan.json")
FAULTS = ("each_fault_is_named", "slow_nodes_and_links", "nodes_that_do_not_come")
LARGE = 2048


def run(test, out, **env):
    """The lines that the test left, and its exit status."""
    out.unlink(missing_ok=True)
    status = common.cargo_test(f"slurm::doctor::{test}", "--test-threads=1", HERD_DOCTOR_OUT=out, **env)
    lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    if not lines:
        sys.exit(f"doctor: {test} ended with {status} and no figures")
    return lines, status


def rounds_at(nodes):
    """Rounds of each part that has any: a binomial tree's, and pairs' (src/doctor)."""
    tree = math.ceil(math.log2(nodes))
    return {"clock": tree, "links": 2 * tree}


def modelled(examinations):
    """Seconds of an examination of 2,048 nodes, from the medians of its parts on four."""
    parts = {}
    for e in examinations:
        for part in e["parts"]:
            parts.setdefault(part["name"], []).append(part["seconds"] / max(part["rounds"], 1))
    middle = lambda values: sorted(values)[len(values) // 2]  # noqa: E731
    many = rounds_at(LARGE)
    return {name: middle(times) * many.get(name, 1) for name, times in parts.items()}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--healthy", type=int, default=100, help="examinations of healthy nodes (default 100)")
    p.add_argument("--quick", action="store_true", help="records nothing")
    args = p.parse_args()
    folder = common.SCRATCH / "doctor"
    folder.mkdir(parents=True, exist_ok=True)
    judged, took = [], []
    for test in FAULTS:
        lines, _ = run(test, folder / "faults.jsonl", HERD_DOCTOR_IN_TURN="1")
        judged += [line for line in lines if "made" in line]
        took += [line["seconds"] for line in lines if "seconds" in line]
    lines, _ = run("healthy_nodes", folder / "healthy.jsonl", HERD_DOCTOR_HEALTHY=args.healthy)
    healthy = [line for line in lines if "made" in line]
    examinations = [line for line in lines if "seconds" in line and line["parts"]]
    took += [line["seconds"] for line in examinations]
    made = [tuple(row) for line in judged for row in line["made"]]
    found = [row for line in judged for row in line["made"] if row in line["found"]]
    false = [row for line in judged + healthy for row in line["found"] if row not in line["made"]]
    parts, entry = modelled(examinations), common.entry
    entries = [
        entry("doctor_faults", len(made), "faults made for real on one of four nodes", "none"),
        entry("doctor_found", len(found), "of them named, with the node or the link", "none", goal="all", reached=len(found) == len(made)),
        entry("doctor_false", len(false), f"rows that named anything else, {len(healthy)} examinations of healthy nodes included", "none", goal="0", reached=not false, which=false),
        entry("doctor_healthy", len(healthy), "examinations of healthy nodes", "none", goal="at least 100", reached=len(healthy) >= 100),
        entry("doctor_4_s", max(took), "seconds of the longest examination of four nodes", "none", goal="at most 60", reached=max(took) <= 60),
        entry("doctor_2048_s", sum(parts.values()), "seconds at 2,048 nodes, modelled from the parts measured on four", "none", goal="at most 60", reached=sum(parts.values()) <= 60, parts=parts),
    ]  # fmt: skip
    report.record(entries, RESULTS, args.quick)


if __name__ == "__main__":
    main()

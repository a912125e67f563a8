"""Every operation of everything that writes checkpoints, killed or refused, and every topology's checkpoint on every other: runs
the tests `crash::` and `reshard::` in full, writes the tables of docs/checkpoints.md and four figures of
results/checkpoint.json.

    make checkpoint-faults                               # everything, about half an hour on two cores
    python benchmarks/checkpoint_faults.py --stages crash    # or reshard
"""

import argparse
import json
import sys

import common
import report

RESULTS = common.RESULTS.with_name("checkpoint.json")
PAGE = common.ROOT / "docs" / "checkpoints.md"
STAGES = ("crash", "reshard")


def crash(out):
    # every group of cases appends its rows when it has come to its end
    passed = common.cargo_test("crash::", "--test-threads=1", HERD_CRASH="full", HERD_CRASH_OUT=out) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    if not rows or (not passed and all(r["ok"] for r in rows)):
        sys.exit("checkpoint-faults: a test of crash:: ended before its table was written")
    return rows


def reshard(out):
    common.cargo_test("reshard::", "--test-threads=1", HERD_RESHARD="full", HERD_RESHARD_OUT=out)
    if not out.exists():
        sys.exit("checkpoint-faults: reshard:: ended before all cells had run")
    return json.loads(out.read_text())


def failed(rows):
    return sum(not r["ok"] for r in rows)


def crash_table(rows):
    lines = ["| what was at work | faults | points | failed |", "| --- | --- | ---: | ---: |"]
    for case in dict.fromkeys(r["case"] for r in rows):
        of = [r for r in rows if r["case"] == case]
        kinds = dict.fromkeys(r["fault"].rstrip("+") for r in of)
        lines.append(f"| {case} | {', '.join(kinds)} | {len(of)} | {failed(of)} |")
    return lines


def reshard_table(rows):
    sources = list(dict.fromkeys(r["cell"].split(" -> ")[0] for r in rows))
    lines = ["| saved on | loaded on | failed | largest difference of a loss | elements that differ |", "| --- | ---: | ---: | ---: | ---: |"]
    for source in sources:
        of = [r for r in rows if r["cell"].split(" -> ")[0] == source]
        worst = max(r.get("loss_error", float("nan")) for r in of)
        different = sum(r.get("different_elements", 0) for r in of)
        lines.append(f"| {source} | {len(of)} | {failed(of)} | {worst:.1e} | {different} |")
    return lines


def marks(name):
    return f"<!-- {name}: written by make checkpoint-faults -->", f"<!-- end of {name} -->"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--stages", default=",".join(STAGES), help=f"of {', '.join(STAGES)}")
    args = p.parse_args()
    bad = 0
    about = {
        "crash": (crash, crash_table, "crash_points", "operations killed or refused"),
        "reshard": (reshard, reshard_table, "reshard_cells", "pairs of topologies, with untied and tied embeddings"),
    }
    for stage in args.stages.split(","):
        run, table, name, unit = about[stage]
        out = common.SCRATCH / f"{stage}.json"
        out.parent.mkdir(parents=True, exist_ok=True)
        out.unlink(missing_ok=True)
        rows = run(out)
        n = failed(rows)
        bad += n
        print(f"{name}: {len(rows)}, {n} failed")
        entries = [
            common.entry(name, len(rows), unit, "none"),
            common.entry(f"{name}_failed", n, "of them after which something was not as it should be", "none", goal="at most 0", reached=n == 0),
        ]
        common.write_results(entries, RESULTS)
        common.replace(PAGE, common.between(PAGE.read_text(), *marks(stage), table(rows)))
        report.write()
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()

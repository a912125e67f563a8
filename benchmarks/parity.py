"""Parity of every cell of the axes with one rank: runs the test `parity::every_cell_equals_one_rank` over all cells, writes the
table of docs/parity.md and two figures of results/axes.json.

    make parity                                  # all cells that fit 8 ranks
    python benchmarks/parity.py --only "tp2 cp1 pp2"   # those whose name contains the words; records nothing
"""

import argparse
import json
import sys

import common
import report

PAGE = common.ROOT / "docs" / "parity.md"
BEGIN, END = "<!-- cells: written by benchmarks/parity.py -->", "<!-- end of cells -->"


def run(part):
    out = common.SCRATCH / "parity.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    status = common.cargo_test("parity::", HERD_PARITY=part, HERD_PARITY_OUT=out)
    if not out.exists():
        sys.exit(f"parity: the test ended with {status} before all cells had run")
    return [row for row in json.loads(out.read_text()) if row["ranks"] > 1]


def grid(row):
    """tp, cp, pp and dp of a row: the key under which its cells are summed up."""
    return " ".join(w for w in row["cell"].split() if w[:2] in ("tp", "cp", "pp", "dp"))


def table(rows):
    lines = [
        "| grid | cells | failed | loss, step 1 | gradient norm, step 1 | weights, step 5 | bitwise equal |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for key in dict.fromkeys(grid(r) for r in rows):
        of = [r for r in rows if grid(r) == key]
        worst = [max(r.get(k, float("nan")) for r in of) for k in ("loss_error", "norm_error", "weights")]
        failed = sum(not r["ok"] for r in of)
        same = sum(bool(r.get("bitwise")) for r in of)
        lines.append(f"| {key} | {len(of)} | {failed} | " + " | ".join(f"{w:.1e}" for w in worst) + f" | {same} |")
    return lines


def main():
    p = argparse.ArgumentParser(description="every cell of the axes against one rank")
    p.add_argument("--only", default="full", help="cells whose name contains this")
    args = p.parse_args()
    rows = run(args.only)
    failed = sum(not r["ok"] for r in rows)
    if args.only == "full":
        common.replace(PAGE, common.between(PAGE.read_text(), BEGIN, END, table(rows)))
        peer = "herd on one rank"
        worst = {k: max(r.get(k, 0.0) for r in rows) for k in ("loss_error", "norm_error", "weights")}
        common.write_results(
            [
                common.entry("parity_cells", len(rows), "cells", peer, worst=worst),
                common.entry("parity_cells_failed", failed, "cells", peer, goal="at most 0", reached=failed == 0),
            ],
            common.RESULTS.with_name("axes.json"),
        )
        report.write()
    print(f"{len(rows)} cells, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()

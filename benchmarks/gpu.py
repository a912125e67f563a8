"""The GPU path on the stand-in for a device: parity of every cell with the CPU, and the CUDA column of the memory formula.

    python benchmarks/gpu.py          # about 2 minutes on two cores; writes results/gpu.json and docs/benchmarks.md
    python benchmarks/gpu.py --found parity.json memory.json   # of a run of the tests of this commit that wrote these files

Nothing here needs or uses a card, and no figure says anything about the speed of one.
"""

import argparse
import json
import sys
from pathlib import Path

import common
import report

RESULTS = common.RESULTS.with_name("gpu.json")
PEER = "herd on the CPU"


def found(test, variable):
    """What the test wrote into the file that the variable names."""
    out = common.SCRATCH / f"{variable.lower()}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    status = common.cargo_test(test, **{variable: out})
    if not out.exists():
        sys.exit(f"gpu: {test} ended with {status} and no figures")
    return json.loads(out.read_text())


def main():
    p = argparse.ArgumentParser(description="the GPU path on the stand-in for a device")
    p.add_argument("--found", nargs=2, metavar=("PARITY", "MEMORY"), help="what HERD_STANDIN_PARITY_OUT and …_MEMORY_OUT named")
    args = p.parse_args()
    if args.found:
        rows, memory = (json.loads(Path(file).read_text()) for file in args.found)
    else:
        rows = found("standin::parity::", "HERD_STANDIN_PARITY_OUT")
        memory = found("standin::memory::", "HERD_STANDIN_MEMORY_OUT")
    failed = sum(not row["ok"] for row in rows)
    worst = {
        precision: {k: max(row.get(k, 0.0) for row in rows if ("bf16" in row["cell"]) == (precision == "bf16")) for k in ("loss_error", "norm_error", "weights")}
        for precision in ("fp32", "bf16")
    }
    error = memory["worst"]
    common.write_results(
        [
            common.entry("standin_parity_cells", len(rows), "cells", PEER, worst=worst, goal="at least 60", reached=len(rows) >= 60),
            common.entry("standin_parity_failed", failed, "cells", PEER, goal="0", reached=failed == 0),
            common.entry(
                "standin_memory_error_max",
                error,
                "largest relative difference of a step's peak memory on the stand-in from the formula",
                "the planner's formula",
                goal="at most 0.1",
                reached=error <= 0.1,
                cells=memory["cells"],
            ),
        ],
        RESULTS,
    )
    report.write()
    print(f"{len(rows)} cells, {failed} failed; memory within {error:.1%}")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()

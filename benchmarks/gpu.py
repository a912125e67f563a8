"""The GPU path without a card: on the stand-in for a device parity of every cell with the CPU and the CUDA column of the memory
formula; herd's own kernels compiled for three generations of cards and run under emulation.

    python benchmarks/gpu.py          # about 4 minutes on two cores; writes results/gpu.json and docs/benchmarks.md
    python benchmarks/gpu.py --found parity.json memory.json   # of a run of the tests of this commit that wrote these files

Nothing here needs or uses a card, and no figure says anything about the speed of one.
"""

import argparse
import json
import shutil
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


def kernels():
    """herd's own kernels: what NVRTC says of them, and what emulation found."""
    folder = common.SCRATCH / "kernels"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    status = common.cargo_test("standin::own_kernels::", HERD_KERNELS_OUT=folder)
    read = lambda name: json.loads((folder / f"{name}.json").read_text())  # noqa: E731
    builds = [kernel for file in folder.glob("sm_*.json") for kernel in json.loads(file.read_text())]
    if status or not builds:
        sys.exit(f"gpu: the tests of the kernels ended with {status} and {len(builds)} builds of kernels")
    names = {kernel["name"] for kernel in builds}
    spills, registers = sum(k["spills"] for k in builds), max(k["registers"] for k in builds)
    emulated, races = read("emulated"), read("planted")["races"]
    orders, results, entry = emulated["orders"], emulated["results"], common.entry
    return [
        entry("kernels", len(names), "kernels of herd's own", "none", registers_max=registers),
        entry("kernel_arch_builds", len(builds), "of them compiled for sm_80, sm_90, sm_100", "none", goal="three of each", reached=len(builds) == 3 * len(names)),
        entry("kernel_spills", spills, "bytes spilled in all builds", "none", goal="0", reached=spills == 0),
        entry("emu_cases", results * orders, "results compared with fp64 under emulation", "fp64 on the CPU", goal="equal bits in 8 orders", reached=orders == 8),
        # a race ends the process, and so the tests above
        entry("emu_races", 0, "races in them", "none", goal="0, and some once a barrier is taken out", reached=races > 0, without_a_barrier=races),
    ]  # fmt: skip


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
    entries = [
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
    ]
    report.record(entries + kernels(), RESULTS, False)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()

"""herd on the Slurm and MPI of other Debian releases: built, tested and drilled in a tree of each.

    make stacks                                        # all lanes: an hour each on two cores
    python benchmarks/stacks.py --only trixie          # lanes whose name matches
    python benchmarks/stacks.py --only forky --stages slurm,drill
    python benchmarks/stacks.py --only bookworm --here     # on this host, where it is of that release

A lane is a release, an MPI, and how ranks start. Writes benchmarks/results/stacks.json and the table in docs/cluster.md; what
other lanes found before stays. Trees are kept in $HERD_STACKS, or build/stacks (tests/stacks/stack).
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import common
import report

sys.path.insert(0, str(common.ROOT / "tests" / "drill"))
import faults  # noqa: E402

RESULTS = common.ROOT / "benchmarks" / "results" / "stacks.json"
PAGE = common.ROOT / "docs" / "cluster.md"
TOOL = common.ROOT / "tests" / "stacks" / "stack"
STAGES = ("build", "unit", "mpirun", "slurm", "fence", "drill")


@dataclass(frozen=True)
class Lane:
    release: str
    mpi: str  # openmpi, mpich
    plugin: str  # of srun --mpi; empty: this Slurm has none for this MPI, so ranks are started by mpirun alone

    @property
    def name(self):
        return f"{self.release}, {'Open MPI' if self.mpi == 'openmpi' else 'MPICH'}"

    @property
    def stages(self):
        if not self.plugin:
            return ("build", "unit", "mpirun")
        # how nodes are joined is PMIx's business
        return tuple(s for s in STAGES if s != "fence" or self.plugin == "pmix")


LANES = [
    Lane("bookworm", "openmpi", "pmix"),
    Lane("bookworm", "mpich", "pmi2"),
    Lane("trixie", "openmpi", "pmix"),
    Lane("trixie", "mpich", "pmi2"),
    Lane("forky", "mpich", "pmi2"),
    Lane("forky", "openmpi", ""),
]


class Place:
    """Where a lane runs: its tree, or this host."""

    def __init__(self, lane, here):
        self.lane, self.here = lane, here
        self.root = common.ROOT if here else Path("/herd")
        self.outside = common.ROOT if here else Path(os.environ.get("HERD_STACKS", common.ROOT / "build/stacks")) / lane.release / "herd"
        deps = self.root / "build/deps"
        target = self.root / "target" if here and lane.mpi == "openmpi" else self.root / f"target/{lane.mpi}"
        self.herd = target / "release/herd"
        self.env = {
            "HERD_MPI": lane.mpi,
            "MPICC": f"mpicc.{lane.mpi}",
            "HERD_MPIRUN": f"mpirun.{lane.mpi}",
            "CARGO_TARGET_DIR": str(target),
            "HERD_DEPS": str(deps),
            "HERD_PYTHON": str(deps / "python/bin/python"),
        }

    def prepare(self):
        if not self.here:
            for verb in ("make", "sync"):
                subprocess.run([TOOL, self.lane.release, verb], check=True)
        self.run("make deps", check=True)

    def run(self, text, check=False):
        """(exit code, output) of a shell command; the output is shown as it comes."""
        exports = "; ".join(f"export {k}={shlex.quote(v)}" for k, v in self.env.items())
        if not text.startswith("make "):  # which sets these itself
            exports += f"; export LIBTORCH={self.env['HERD_DEPS']}/libtorch PATH={self.env['HERD_DEPS']}/bin:$PATH:/usr/sbin"
        line = ["bash", "-c", f"{exports}; {text}"]
        line = line if self.here else [str(TOOL), self.lane.release, "run", *line]
        with subprocess.Popen(line, cwd=common.ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as p:
            lines = []
            for said in p.stdout:
                lines.append(said)
                print(f"  {said}", end="", flush=True)
        if check and p.returncode != 0:
            raise common.Failed(f"{self.lane.name}: {text}: {p.returncode}")
        return p.returncode, "".join(lines)

    def ask(self, text):
        return self.run(f"{text} 2>/dev/null || true")[1].strip()


def tests(place, arguments):
    """Runs cargo's tests: (passed, failed). A run that ends badly without a failed test is a failure."""
    code, said = place.run(f"cargo test --release --locked --no-fail-fast {arguments}")
    count = lambda word: sum(int(n) for n in re.findall(rf"^test result: .*?(\d+) {word}", said, re.M))  # noqa: E731
    passed, failed = count("passed"), count("failed")
    return passed, failed + (code != 0 and failed == 0)


def drill(place, only):
    """What came of each case, as benchmarks/recovery.py writes it."""
    rows = place.outside / "build" / "rows.jsonl"
    rows.parent.mkdir(exist_ok=True)
    rows.unlink(missing_ok=True)
    which = f"--only {shlex.quote(only)}" if only else "--stages cases"
    python = place.env["HERD_PYTHON"]
    place.run(f"{python} benchmarks/recovery.py {which} --herd {place.herd} --rows {place.root}/build/rows.jsonl")
    return [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []


def fence(place):
    """Starts that failed by each way of joining nodes, as tests/stacks/fence.py writes it."""
    rows = place.outside / "build" / "fence.jsonl"
    rows.parent.mkdir(exist_ok=True)
    rows.unlink(missing_ok=True)
    place.run(f"{place.env['HERD_PYTHON']} tests/stacks/fence.py --rows {place.root}/build/fence.jsonl", check=True)
    return [json.loads(line) for line in rows.read_text().splitlines()]


def run(lane, args, before):
    """What was found about a lane, with what `before` had found in stages that are not run now."""
    place = Place(lane, args.here)
    stages = [s for s in lane.stages if s in args.stages]
    print(f"== {lane.name}: {', '.join(stages)}", flush=True)
    place.prepare()
    began = time.monotonic()
    found = {**before, "name": lane.name, "release": lane.release, "mpi_name": lane.mpi, "plugin": lane.plugin}
    found |= {
        "slurm": place.ask("/usr/sbin/slurmd -V").split()[-1],
        "mpi": place.ask(f"{place.env['HERD_MPIRUN']} --version | grep -oE '[0-9]+\\.[0-9][0-9.a-z]*' | head -1"),
        "pmix": place.ask("dpkg-query -W -f '${Version}' 'libpmix2*' | grep -oE '^[0-9.]+[0-9]' | head -1"),
        "herd": common.versions()["herd"],
        "date": time.strftime("%F", time.gmtime()),
    }
    if "build" in stages:
        place.run("make build", check=True)
    if "unit" in stages:
        found["unit"] = tests(place, "--lib")
    if "mpirun" in stages:
        found["mpirun"] = tests(place, "--test it -- wire:: liveness:: tensor:: pipeline::")
    if "slurm" in stages:
        found["slurm_tests"] = tests(place, "--test it -- slurm::")
    if "fence" in stages:
        found["fence"] = fence(place)
    if "drill" in stages:
        rows = drill(place, args.cases)
        kept = {r["case"]: r for r in before.get("rows", [])} if args.cases else {}
        found["rows"] = list((kept | {r["case"]: r for r in rows}).values())
    found["minutes"] = round((time.monotonic() - began) / 60, 1)
    return found


def entries(lanes):
    rows = [r for lane in lanes for r in lane.get("rows", [])]
    counts = [lane[key] for lane in lanes for key in ("unit", "mpirun", "slurm_tests") if key in lane]
    worst = lambda key, pick: max((r[key] for r in rows if pick(r) and r[key] is not None), default=0.0)  # noqa: E731
    drilled = [lane for lane in lanes if len(lane.get("rows", [])) == len(faults.CASES)]
    failed = [f"{lane['name']}: {r['case']}" for lane in lanes for r in lane.get("rows", []) if r["failure"]]
    wrong = [f"{lane['name']}: {r['case']}: {', '.join(r['wrong'])}" for lane in lanes for r in lane.get("rows", []) if r["wrong"]]
    broken = sum(f for _, f in counts)
    silent = worst("detect", lambda r: r["kind"] == "silent") / faults.INTERVAL
    death = worst("detect", lambda r: r["kind"] == "death")
    spare = worst("recover", lambda r: r["spare"])

    def entry(name, value, unit, goal, reached, **more):
        return common.entry(name, value, unit, "none", goal=goal, reached=reached, **more)

    return [
        entry("stacks", len(drilled), "stacks (release, Slurm, MPI) on which every fault was drilled", 3, len(drilled) >= 3, lanes=lanes),
        entry("tests_failed", broken, f"of {broken + sum(p for p, _ in counts)} tests on all stacks", 0, broken == 0),
        common.entry("drill_faults", len(rows), "faults drilled, over all stacks", "none"),
        entry("drill_failed", len(failed), "of them that did not go as they should", 0, not failed, which=failed),
        entry("blamed_wrongly", len(wrong), "faults after which a node was blamed to which nothing had been done", 0, not wrong, which=wrong),
        entry("detect_silent_intervals_max", silent, "probe intervals from a silent fault to its verdict", 4, silent <= 4),
        entry("detect_death_s_max", death, "seconds from the death of a process to its notice", 1, death <= 1),
        entry("recover_with_spare_s_max", spare, "seconds from a fault to the next finished step", 15, spare <= 15),
    ]


def table(lanes):
    head = [
        "| Debian | Slurm | MPI | ranks start by | unit tests | ranks under mpirun | tests on Slurm | starts that failed (ring, tree, mixed) | faults drilled | blamed wrongly | noticed (silent, death) | back on a spare | herd |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | ---: | --- | ---: | --- |",
    ]
    return head + [line(lane) for lane in lanes]


def line(lane):
    def count(key):
        p, f = lane.get(key, (None, None))
        return "–" if p is None else f"{p} passed" + (f", **{f} failed**" if f else "")

    joined = ", ".join(f"{row['failed']} of {row['starts']}" for row in lane.get("fence", [])) or "–"
    rows = lane.get("rows", [])
    most = lambda key, pick: max((r[key] for r in rows if pick(r) and r[key] is not None), default=None)  # noqa: E731
    span = lambda t: "–" if t is None else f"{t:.1f} s"  # noqa: E731
    bad = [r["case"] for r in rows if r["failure"]]
    mpi = f"{'Open MPI' if lane['mpi_name'] == 'openmpi' else 'MPICH'} {lane['mpi']}" + (f", PMIx {lane['pmix']}" if lane["plugin"] == "pmix" else "")
    start = f"`srun --mpi={lane['plugin']}`" if lane["plugin"] else "`mpirun`; this Slurm has no plugin for it"
    drilled = f"{len(rows)}" + (f", **failed: {'; '.join(bad)}**" if bad else ", none failed") if rows else "–"
    noticed = f"{span(most('detect', lambda r: r['kind'] == 'silent'))}, {span(most('detect', lambda r: r['kind'] == 'death'))}" if rows else "–"
    wrong = len([r for r in rows if r["wrong"]]) if rows else "–"
    cells = [lane["release"], lane["slurm"], mpi, start, count("unit"), count("mpirun"), count("slurm_tests"), joined, drilled, wrong, noticed,
             span(most("recover", lambda r: r["spare"])), f"{lane['herd']}, {lane['date']}"]
    return "| " + " | ".join(str(c) for c in cells) + " |"


def write(lanes):
    found = entries(lanes)
    for e in found:
        print(f"{e['name']:32}{e['value']:10.4g}  {e['unit']}", flush=True)
    common.write_results(found, RESULTS)
    marks = "<!-- stacks: written by make stacks -->", "<!-- end of stacks -->"
    common.replace(PAGE, common.between(PAGE.read_text(), *marks, table(lanes)))
    report.write()
    return all(e.get("reached", True) for e in found if e["name"] != "stacks")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", default="", help="lanes whose name matches this regular expression")
    p.add_argument("--stages", default=",".join(STAGES), type=lambda s: s.split(","), help=f"of {', '.join(STAGES)}")
    p.add_argument("--cases", help="only cases of the drill whose name matches; the lane's other rows stay")
    p.add_argument("--here", action="store_true", help="on this host instead of a tree: its release must be the lanes'")
    args = p.parse_args()
    if args.here:
        codename = re.search(r"^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text(), re.M)
        here = [lane for lane in LANES if codename and lane.release == codename[1] and re.search(args.only, lane.name)]
        if not here:
            sys.exit(f"this host is {codename[1] if codename else 'no Debian'}, and --only is '{args.only}'")
    kept = next((e["lanes"] for e in common.read_results(RESULTS) if e["name"] == "stacks"), [])
    kept = {lane["name"]: lane for lane in kept}
    good = True
    for lane in here if args.here else [lane for lane in LANES if re.search(args.only, lane.name)]:
        try:
            kept[lane.name] = run(lane, args, kept.get(lane.name, {}))
        except common.Failed as e:
            print(e, file=sys.stderr)
            good = False
            continue
        good &= write([kept[lane.name] for lane in LANES if lane.name in kept])
    sys.exit(not good)


if __name__ == "__main__":
    main()

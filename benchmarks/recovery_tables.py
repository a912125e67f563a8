"""What the drill found, as rows, figures and the tables of docs/recovery.md; recovery.py finds it."""

import sys
import time

import common

sys.path.insert(0, str(common.ROOT / "tests" / "drill"))
import faults  # noqa: E402

RESULTS = common.ROOT / "benchmarks" / "results" / "recovery.json"
PAGE = common.ROOT / "docs" / "recovery.md"
PEERS = {
    "detect": "TorchElastic: 3 heartbeats of 5 s; ByteRobust 2–30 s (published)",
    "recover": "ByteRobust: 65 s with warm standby, 768 s by requeue, at 16K GPUs (published)",
    "none": "none",
}


class Row:
    """What came of one case."""

    KEPT = ("failure", "detect", "recover", "lost", "equal", "wrong", "notes", "herd", "date")

    def __init__(self, case, **kept):
        self.case, self.notes, self.failure = case, [], None
        self.detect = self.recover = self.lost = None
        self.equal = None
        self.wrong = []  # nodes that were blamed, and to which nothing had been done
        self.herd, self.date = common.versions()["herd"], time.strftime("%F", time.gmtime())
        self.__dict__.update(kept)

    def keep(self):
        return {"case": self.case.name, **{k: getattr(self, k) for k in self.KEPT}}

    def line(self):
        def span(t):
            return "–" if t is None else f"{t:.2f} s"

        equal = {None: "–", True: "yes", False: "**no**"}[self.equal]
        what = "; ".join(self.notes or ["no verdict, training went on"]) if not self.failure else f"**failed**: {self.failure}"
        return f"| {self.case.name} | {span(self.detect)} | {span(self.recover)} | {'–' if self.lost is None else self.lost} | {equal} | {what} |"


def rows_before():
    """The rows of earlier runs: {name: row}."""
    cases = {c.name: c for c in faults.CASES}
    kept = next((e.get("rows", []) for e in common.read_results(RESULTS) if e["name"] == "faults"), [])
    return {r["case"]: Row(cases[r["case"]], **{k: r[k] for k in Row.KEPT if k in r}) for r in kept if r["case"] in cases}


def costs(rows):
    """Seconds that a fault of each kind costs, as the single cases measured them, scaled to the soak's probe interval."""
    cost = {r.case.name: (r.detect, r.recover) for r in rows if r.recover}
    quiet = 0.3 * faults.MISSES
    death = cost.get("SIGKILL of a random rank", (0.3, 2.5))
    silent = cost.get("SIGSTOP of a rank", (3.5, 6.0))
    node = cost.get("node crashed", (3.5, 6.0))
    stuck = cost.get("a collective stalls for good", (7.5, 9.5))
    return {
        "kill": death[1],
        "exit": death[1],
        "stop": quiet + (silent[1] - silent[0]),
        "node": quiet + (node[1] - node[0]),
        "skip": 5.0 + (stuck[1] - stuck[0]),
        "pause": 0.3,
    }


def model(status, kinds, each):
    """Effective time ratio by the formula of docs/recovery.md, from the seconds that each kind of fault costs."""
    lost = sum(n * each[k] for k, n in kinds.items())
    rest = max(0.0, status["wall_s"] - status["training_s"] - status["lost_s"])
    return status["training_s"] / (status["training_s"] + lost + rest)


def entries(rows, commands, soak, idle, large):
    worst = lambda key, pick: max((getattr(r, key) for r in rows if pick(r) and getattr(r, key) is not None), default=0.0)  # noqa: E731
    out = []
    if rows:
        failed = [r.case.name for r in rows if r.failure]
        out += [
            common.entry("faults", len(rows), "kinds of faults drilled", PEERS["none"], rows=[r.keep() for r in rows]),
            common.entry("faults_failed", len(failed), "of them that did not go as they should", PEERS["none"], which=failed, goal=0, reached=not failed),
        ]
        silent = worst("detect", lambda r: r.case.kind == "silent") / faults.INTERVAL
        death = worst("detect", lambda r: r.case.kind == "death")
        spare = worst("recover", lambda r: r.case.spare)
        lost = worst("lost", lambda r: r.case.lost is not None)
        out += [
            common.entry("detect_silent_intervals_max", silent, "probe intervals from a silent fault to its verdict", PEERS["detect"], goal=4, reached=silent <= 4),
            common.entry("detect_death_s_max", death, "seconds from the death of a process to its notice", PEERS["detect"], goal=1, reached=death <= 1),
            common.entry("recover_with_spare_s_max", spare, "seconds from a fault to the next finished step, on a spare or in place", PEERS["recover"], goal=15, reached=spare <= 15),
            common.entry("steps_lost_max", lost, "steps done again after one fault", PEERS["none"], goal=1, reached=lost <= 1),
        ]
    if commands:
        bad = [c["kind"] for c in commands if not c["as_expected"]]
        out.append(common.entry("drill_commands", len(commands), "faults done to a live job by `herd drill`", PEERS["none"], which=bad, goal="all as expected", reached=not bad))
    if soak:
        ratio = soak["status"]["effective_time_ratio"]
        out += [
            common.entry("soak_faults", soak["count"], "random faults to one run", PEERS["none"], kinds=soak["kinds"], goal=200, reached=soak["count"] >= 200),
            common.entry("soak_state_equal", int(soak["equal"]), "1: every loss is that of the undisturbed run, bit for bit", PEERS["none"], goal=1, reached=soak["equal"]),
            common.entry("soak_effective_time_ratio", ratio, "time in steps that count over all time", "the model in docs/recovery.md", ours=round(ratio, 4), theirs=round(soak["predicted"], 4),
                         seconds_each={k: round(t, 2) for k, t in soak["took"].items()}, with_those=round(soak["own"], 4)),
        ]
    if idle is not None:
        out.append(common.entry("idle_cost", idle, "CPU time of liveness and supervision over step time, 1 s probes", PEERS["none"], goal=0.005, reached=idle < 0.005))
    if large:
        out += [
            common.entry("monitor_2048_share", large[0], "of one core: the monitor of 2,048 nodes × 8 ranks, simulated probes every 5 s", PEERS["none"]),
            common.entry("monitor_2048_kb_s", large[1], "kB/s of messages to and from that monitor", PEERS["none"]),
        ]
    return out


def write_page(rows, commands, soak):
    """The tables of docs/recovery.md."""
    page = PAGE.read_text()
    if rows:
        head = ["| fault | noticed after | training again after | steps done again | losses equal | what was seen |", "| --- | ---: | ---: | ---: | --- | --- |"]
        page = common.between(page, *marks("faults"), [*head, *[r.line() for r in rows]])
    if commands:
        lines = ["| `herd drill RUN …` | noticed after | training again after | steps lost | done twice, equal | what it said |", "| --- | ---: | ---: | ---: | ---: | --- |"]
        for c in commands:
            span = lambda key, c=c: "–" if c.get(key) is None else f"{c[key]:.2f} s"  # noqa: E731
            equal = f"{c['compared'] - c['different']}/{c['compared']}" if c.get("compared") else "–"
            lost = "–" if c.get("steps_lost") is None else c["steps_lost"]
            lines.append(f"| `{c['kind']}` | {span('detected_s')} | {span('restarted_s')} | {lost} | {equal} | {c['fact'] or '–'} |")
        page = common.between(page, *marks("commands"), lines)
    if soak:
        s = soak["status"]
        kinds = ", ".join(f"{n} × {k}" for k, n in sorted(soak["kinds"].items()))
        text = (
            f"{soak['count']} random faults ({kinds}) to a run of {s['steps']} steps on 3 of 4 nodes: {s['attempts']} attempts, "
            f"{s['steps_lost']} steps done again, {s['wall_s'] / 60:.1f} minutes. Losses "
            f"{'equal to the undisturbed run bit for bit' if soak['equal'] else '**differ**'}. Effective training time ratio "
            f"{s['effective_time_ratio']:.3f}; the model says {soak['predicted']:.3f}. From a fault to the next finished step it took on "
            f"average {', '.join(f'{t:.1f} s ({k})' for k, t in sorted(soak['took'].items()))}; with these the model says {soak['own']:.3f}."
        )
        page = common.between(page, *marks("soak"), [text])
    common.replace(PAGE, page)


def marks(name):
    return f"<!-- {name}: written by make drill -->", f"<!-- end of {name} -->"

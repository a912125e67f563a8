"""How long the page of a run of a million steps takes: results/plan.json.

    python benchmarks/report_page.py            # about a minute
    python benchmarks/report_page.py --quick    # ten thousand steps, records nothing

The run is written by this program: a metrics.jsonl of a million lines with all columns, noise, one spike of one step, and
two faults. `herd report` makes its page, and a headless Chromium opens it (tests/page/chromium.py): the time is what the page
itself measures from the start of its navigation until everything is drawn, the median of five.
"""

import argparse
import json
import math
import random
import sys
import time

import common
import report
from common import Failed, Run

sys.path.insert(0, str(common.ROOT / "tests" / "page"))
import chromium  # noqa: E402

RESULTS = common.RESULTS.with_name("plan.json")


def stamp(seconds):
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1000):03}Z"


def write_run(folder, steps):
    """A run directory with that many steps."""
    folder.mkdir(parents=True, exist_ok=True)
    noise, at, starts = random.Random(7).gauss, 1.7e9, [1.7e9]
    faults = (int(0.3 * steps), int(0.6 * steps))
    with open(folder / "metrics.jsonl", "w") as f:
        for step in range(1, steps + 1):
            x, took = step / steps, max(2.0, noise(2.3, 0.03))
            if step in faults:
                starts.append(at + 30)
                at += 60
            at += took
            work = noise(2.0, 0.02)
            line = {
                "step": step, "time": stamp(at), "lr": 1.5e-4 * (1 + math.cos(math.pi * x)), "tokens": step * 4194304,
                "loss": 1.75 + 9 * math.exp(-60 * x) + noise(0, 0.02) + (3 if step == int(0.45 * steps) else 0),
                "grad_norm": 0.35 + abs(noise(0, 0.05)), "tokens_per_s": 4194304 / took, "step_s": took,
                "mfu_causal": 0.99 / took, "mfu_full": 1.08 / took, "memory_peak": 65712160768, "comm_busy_s": 0.5,
                "comm_exposed_s": abs(noise(0.11, 0.01)), "comm_hidden_s": 0.39, "pipeline_wait_s": abs(noise(0.12, 0.01)),
                "rank_work_min_s": work - 0.06, "rank_work_mean_s": work, "rank_work_max_s": work + 0.06,
                "slowest_rank": step % 7, "skipped": False,
            }  # fmt: skip
            if step % 1000 == 0:
                line["validation_loss"] = line["loss"] + 0.04
            f.write(json.dumps(line) + "\n")
    ends = [*(s - 20 for s in starts[1:]), at]
    attempts = [
        {"attempt": i + 1, "job": 1, "restarts": 0, "nodes": "n[01-16]", "started": stamp(a), "ended": stamp(b), "last_step": 0,
         "class": "done" if b == at else "node", "fact": ""}
        for i, (a, b) in enumerate(zip(starts, ends))
    ]  # fmt: skip
    (folder / "attempts.json").write_text(json.dumps({"attempts": attempts}))
    (folder / "config.yaml").write_text(f"name: a-million\ntrain: {{steps: {steps}}}\n")
    events = [{"time": stamp(s), "kind": "fault", "attempt": i + 1, "step": f, "class": "node", "fact": "a node is silent"}
              for i, (s, f) in enumerate(zip(starts[1:], faults))]  # fmt: skip
    (folder / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))


def measure(herd, folder, steps):
    write_run(folder, steps)
    made = Run([herd, "report", folder], folder / "report.log")
    page = folder / "report.html"
    times = []
    with chromium.Browser() as browser:
        for _ in range(5):
            times.append(browser.open(page.as_uri()) / 1000)
        highest = browser.value("Math.max(...data.runs[0].series.columns.loss.max)")
        if browser.errors():
            raise Failed(f"the page has errors: {browser.errors()}")
    if steps >= 10**5 and not highest > 4:
        raise Failed(f"the spike of one step is lost: the highest loss is {highest}")
    (folder / "metrics.jsonl").unlink()
    median, low, high = common.spread(times)
    return [
        common.entry(
            "report_1e6_steps_s", median, "s until the page of a million steps is drawn in Chromium", "none",
            goal="below 2", reached=median < 2, min=low, max=high,
        ),
        common.entry("report_1e6_steps_written_s", made.seconds, "s for `herd report` over a million steps", "none"),
        common.entry("report_1e6_steps_rss_mib", made.resident / 2**20, "MiB that `herd report` took for it", "none"),
        common.entry("report_1e6_steps_kib", page.stat().st_size / 1024, "KiB of the page", "none"),
    ]  # fmt: skip


def main():
    p = argparse.ArgumentParser(description="the page of a run of a million steps, opened in Chromium")
    p.add_argument("--quick", action="store_true", help="ten thousand steps, records nothing")
    p.add_argument("--herd", help="herd binary (default target/release/herd)")
    args = p.parse_args()
    if not chromium.program():
        sys.exit("bench: no Chromium on the PATH (hint: apt-get install chromium)")
    try:
        folder = common.SCRATCH / "report"
        entries = measure(common.herd_binary(args.herd), folder, 10**4 if args.quick else 10**6)
    except Failed as e:
        sys.exit(f"bench: {e}")
    report.record(entries, RESULTS, args.quick)


if __name__ == "__main__":
    main()

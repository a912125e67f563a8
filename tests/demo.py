"""What `make demo` shows while it trains and at its end.

usage: demo.py follow METRICS STEPS CMD…   a progress bar over the steps in METRICS for as long as CMD prints something
       demo.py table RUN EXPORT SECONDS    the closing table; fails when validation loss fell by less than 40%
"""

import json
import subprocess
import sys
import time
from pathlib import Path

LEAST_FALL = 0.40


def records(path):
    """The whole lines of a metrics file; the last one may still be under way."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def bar(done, steps, loss, width=32):
    full = width * done // steps
    text = "" if loss is None else f"  loss {loss:.3f}"
    return f"[{'#' * full}{'.' * (width - full)}] step {done}/{steps}{text}"


def follow(metrics, steps, command):
    """On a terminal one line that moves; in a log a line for every tenth of the steps."""
    terminal, shown = sys.stdout.isatty(), None
    while True:
        running = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        trained = [r for r in records(metrics) if r.get("loss") is not None]
        last = trained[-1] if trained else {"step": 0, "loss": None}
        line = bar(last["step"], steps, last["loss"])
        if terminal:
            print(f"\r{line}", end="", flush=True)
        elif last["step"] * 10 // steps != shown or not running:
            shown = last["step"] * 10 // steps
            print(line, flush=True)
        if not running:
            print(end="\n" if terminal else "")
            return
        time.sleep(1)


def size(path):
    total = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    return f"{total / 1e6:.1f} MB"


def table(run, export, seconds):
    rows = records(run / "metrics.jsonl")
    events = records(run / "events.jsonl")  # these have the validation before the first step as well
    validation = [(e["step"], e["validation_loss"]) for e in events if e["kind"] == "validation"]
    trained = [r for r in rows if r.get("loss") is not None]
    if len(validation) < 2 or not trained:
        sys.exit(f"{run} has {len(validation)} validations and {len(trained)} steps: nothing to compare")
    (first_step, before), (last_step, after) = validation[0], validation[-1]
    fall = 1 - after / before
    speeds = sorted(r["tokens_per_s"] for r in trained)
    checkpoints = sorted((run / "checkpoints").glob("step-*"))
    lines = [
        ("validation loss before", f"{before:.3f} (step {first_step})"),
        ("validation loss after", f"{after:.3f} (step {last_step}), {fall:.0%} less"),
        ("tokens trained on", f"{trained[-1]['tokens']:,} in {len(trained)} steps, {seconds} s with both job starts"),
        ("speed", f"{speeds[len(speeds) // 2]:,.0f} tokens/s (median step)"),
        *((f"checkpoint {c.name}", size(c)) for c in checkpoints),
        ("exported model", f"{size(export)}  {export}"),
        ("run directory", f"{run}  (metrics.jsonl, events.jsonl, tensorboard, checkpoints)"),
        ("job logs", str(run.parent / "herd-demo-*.log")),
    ]
    width = max(len(name) for name, _ in lines)
    print("\n".join(f"{name:<{width}}  {value}" for name, value in lines))
    if fall < LEAST_FALL:
        sys.exit(f"validation loss fell by {fall:.1%}, less than {LEAST_FALL:.0%}")


def main(arguments):
    match arguments:
        case ["follow", metrics, steps, *command] if command:
            follow(Path(metrics), int(steps), command)
        case ["table", run, export, seconds]:
            table(Path(run), Path(export), seconds)
        case _:
            sys.exit(__doc__)


main(sys.argv[1:])

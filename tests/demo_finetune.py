"""The parts of tests/demo_finetune.sh that are no shell: rows, prompts, config, judge. Standard library only."""

import json
import re
import sys
from pathlib import Path

ZONES = Path("/usr/share/zoneinfo")
# Not taught; asked before and after.
ASKED = ["Paris", "Tokyo", "Nairobi", "Lima", "Oslo", "Toronto"]
ROWS = 160
STEPS = 20
FORM = re.compile(r"Zone: [A-Z]\w+/[\w/+-]+ \| Country: .+ \| Code: [A-Z]{2}")


def question(place):
    return f"Which time zone do the clocks of {place} follow?"


def table():
    """(place, zone, country, code) of every zone that is called by a place."""
    lines = lambda name: [l.split("\t") for l in (ZONES / name).read_text().splitlines() if l and not l.startswith("#")]
    countries = {code: name for code, name, *_ in lines("iso3166.tab")}
    rows = []
    for codes, _, zone, *_ in lines("zone.tab"):
        place = zone.rsplit("/", 1)[-1].replace("_", " ")
        rows.append((place, zone, countries[codes], codes))
    return sorted(rows, key=lambda r: sum(ord(c) * 31**i for i, c in enumerate(r[1])) % 1009)


def rows(demo):
    taught = [r for r in table() if r[0] not in ASKED][:ROWS]
    with open(Path(demo) / "conversations.jsonl", "w") as out:
        for place, zone, country, code in taught:
            answer = f"Zone: {zone} | Country: {country} | Code: {code}"
            messages = [{"role": "user", "content": question(place)}, {"role": "assistant", "content": answer}]
            out.write(json.dumps({"messages": messages}) + "\n")
    print(f"{len(taught)} places of {len(table())}")


def prompts(_):
    for place in ASKED:
        print(f"-p\n{question(place)}")


def config(demo, model):
    value = {
        "name": "zones",
        "run_dir": f"{demo}/run",
        "model": {"weights": model},
        "lora": {"rank": 8, "alpha": 16},
        "data": {"tokenizer": model, "sequence_length": 256, "chat": {}, "train": [{"path": f"{demo}/zones"}]},
        "batch": {"global": 4, "micro": 1},
        "train": {"steps": STEPS, "precision": "fp32", "device": "cpu"},
        "optim": {"lr": 1e-3, "min_lr": 1e-4, "warmup_steps": 3, "weight_decay": 0.0},
        "log": {"every": 5, "tensorboard": False},
    }
    (Path(demo) / "run.yaml").write_text(json.dumps(value, indent=2))


def judge(demo):
    found = {}
    for when in ("before", "after"):
        text = (Path(demo) / f"{when}.txt").read_text()
        found[when] = FORM.findall(text)
        print(f"{when:7} {len(found[when])} of {len(ASKED)} answers in the form")
    right = sum(any(f"/{place.replace(' ', '_')} " in answer for answer in found["after"]) for place in ASKED)
    print(f"of those after, {right} name the place's own zone")
    if found["before"] or len(found["after"]) < len(ASKED) - 1:
        sys.exit("the model was not taught")


if __name__ == "__main__":
    verb, *rest = sys.argv[1:]
    {"rows": rows, "prompts": prompts, "config": config, "judge": judge}[verb](*rest)

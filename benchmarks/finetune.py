"""Fine-tuning on conversations against transformers and TRL, and its traps.

    python benchmarks/finetune.py                  # about 5 minutes on two cores; records results/finetune.json
    python benchmarks/finetune.py --only masks     # or batches, resumes, traps, adapters, preference
    python benchmarks/finetune.py --trl DIR        # the training templates of TRL as well: a folder made by
                                                   #   pip install --no-deps --target DIR trl==1.16.0
    python benchmarks/finetune.py --only preference --trl DIR  # DPO against TRL's own trainer; DIR needs datasets, pandas, pyarrow, dill,
                                                   #   multiprocess, xxhash, python-dateutil, pytz and six too
    python benchmarks/finetune.py --only adapters --peft DIR   # PEFT's own code: a folder made by
                                                   #   pip install --no-deps --target DIR peft==0.21.0
    python benchmarks/finetune.py --count 40 --quick   # does the harness work? records nothing

Masks: `herd data chat` on rows that tests/oracle/chat_masks.py makes, against transformers' return_assistant_tokens_mask, by which TRL's
assistant_only_loss masks; each template with its {% generation %} tags, and, of herd's own test templates, without them. Batches: the
gradient test of tests/it/conversations.rs. Traps: each put in on purpose, on the command line. Adapters: trained by herd over two tensor
ranks, loaded by PEFT; made by PEFT, read by herd; merged against unmerged. Preference: loss, rewards and gradient of herd's second step
on pairs against TRL's DPOTrainer, or without --trl the formulas in transformers, with herd's model behind the first step.
"""

import argparse
import array
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import common
import report
from common import Failed

RESULTS = common.ROOT / "benchmarks" / "results" / "finetune.json"
ORACLE = common.ROOT / "tests" / "oracle" / "chat_masks.py"
TRAPS = ["empty-mask", "double-bos", "end-not-trained", "foreign-template", "cut-before-trained", "same-answers"]
END, BOS = "<|end_of_text|>", "<|begin_of_text|>"


def plain(end, begin=""):
    """A template of the `bytes` tokenizer."""
    return (
        begin + "{% for m in messages %}{{ m.role }}: {{ m.content }}" + end + "\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )


class Bench:
    def __init__(self, args):
        self.args = args
        self.herd = common.herd_binary(args.herd).resolve()
        self.folder = common.SCRATCH / "finetune"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def run(self, *command, at=None):
        return subprocess.run(
            [str(c) for c in [self.herd, *command]], cwd=at or self.folder, env=common.environment(), capture_output=True, text=True
        )

    # --- masks ---------------------------------------------------------------------------------------------------------

    def masks(self):
        sources = [("herd", None)]
        if self.args.trl:
            sources.append(("trl", self.trl_templates()))
        python = os.environ.get("HERD_PYTHON", sys.executable)
        compared, differ, templates, refused, each = 0, 0, 0, 0, {}
        for origin, folder in sources:
            out = self.folder / origin
            command = [python, ORACLE, out, self.args.count, *([folder] if folder else [])]
            done = subprocess.run([str(c) for c in command], cwd=common.ROOT, env=common.environment(), capture_output=True, text=True)
            if done.returncode:
                raise Failed(f"chat_masks.py: {done.stderr.strip()[-500:]}")
            for name in json.loads(done.stdout.splitlines()[-1]):
                kinds = ["marked", "plain"] if origin == "herd" else ["marked"]
                templates += 1
                for kind in kinds:
                    n, wrong, left = self.compare(out / name, kind)
                    compared, differ, refused = compared + n, differ + wrong, refused + left
                    each[f"{origin} {name} {kind}"] = {"compared": n, "differ": wrong, "left_out": left}
                    print(f"  {origin:5} {name:28} {kind:7} {n:5} compared, {wrong} differ, {left} left out", flush=True)
        peer = "transformers' return_assistant_tokens_mask" + (", templates of TRL 1.16.0 among them" if self.args.trl else "")
        return [
            figure("templates", templates, "chat templates", peer, 10, at_least=True),
            figure("mask_conversations", compared, "conversations compared, over all templates", peer, 10 * self.args.count, at_least=True, left_out=refused),
            figure("mask_differ", differ, "of them with another id or another mask", peer, 0, each=each),
        ]

    def trl_templates(self):
        """TRL's training templates: those with {% generation %} that transformers can render on these rows."""
        found = Path(self.args.trl) / "trl" / "chat_templates"
        if not found.is_dir():
            raise Failed(f"no trl/chat_templates in {self.args.trl} (hint: pip install --no-deps --target DIR trl==1.16.0)")
        folder = self.folder / "trl-templates"
        folder.mkdir()
        for file in found.glob("*_training.jinja"):
            # Those of images and sounds want other messages.
            if not re.search(r"vl|smolvlm|llava|idefics|diffusion", file.name):
                shutil.copy(file, folder / file.name)
        return folder

    def compare(self, at, kind):
        """(conversations compared, of them different, left out: refused by transformers or by herd by the rule of docs/finetuning.md)."""
        rows = (at / "rows.jsonl").read_text().splitlines()
        want = [json.loads(line) for line in (at / "want.jsonl").read_text().splitlines()]
        keep = [
            (row, w)
            for row, w in zip(rows, want)
            # Where a conversation begins with the model, a template without tags need not say where.
            if "refused" not in w and not (kind == "plain" and row.startswith('{"messages": [{"role": "assistant"'))
        ]
        (at / "in.jsonl").write_text("".join(row + "\n" for row, _ in keep))
        command = ["data", "chat", "--tokenizer", at, "--template", at / f"{kind}.jinja", "--force", "--output", at / "made" / kind]
        done = self.run(*command, *(f"--allow={t}" for t in TRAPS), at / "in.jsonl")
        if done.returncode:
            print(f"    {done.stderr.strip()[:300]}", flush=True)
            return len(keep), len(keep), len(rows) - len(keep)
        got = documents(at / "made" / kind)
        if len(got) != len(keep):
            return len(keep), len(keep), len(rows) - len(keep)
        wrong = sum((list(ids), list(mask)) != (w["ids"], w["mask"]) for (ids, mask), (_, w) in zip(got, keep))
        return len(keep), wrong, len(rows) - len(keep)

    # --- batches -------------------------------------------------------------------------------------------------------

    def batches(self):
        m = self.tested("conversations::every_form_of_a_batch_has_the_same_gradient", "HERD_BATCH_FORMS")
        unit = f"largest difference of a gradient, fp32, over {m['cells']} forms and grids; gradient norm {m['grad_norm']:.3g}"
        return [figure("batch_form_gradient_gap", m["gap"], unit, "the same conversations padded, in one micro-batch", 1e-6, cell=m["cell"])]

    def resumes(self):
        m = self.tested("finetuning::stopped_in_mid_epoch_every_token_is_trained_on_once", "HERD_RESUME_CELLS")
        unit = f"grids on which a run of {m['steps']} steps, stopped twice in mid-epoch, goes on: each of {m['samples']} samples once, losses undisturbed"
        return [
            figure("resume_cells", m["cells"], unit, "one run that is not stopped", 6, at_least=True),
            figure("resume_cells_failed", m["failed"], "of them", "one run that is not stopped", 0),
        ]

    def tested(self, name, variable):
        """What the integration test `name` writes to the file that the variable names; it must pass."""
        found = self.folder / f"{variable}.json"
        if self.args.test:
            env = {**common.environment(), variable: str(found)}
            failed = subprocess.run([self.args.test, "--exact", name], cwd=common.ROOT, env=env).returncode
        else:
            failed = common.cargo_test(name, "--exact", **{variable: found})
        if failed or not found.exists():
            raise Failed(f"{name} failed")
        return json.loads(found.read_text())

    # --- adapters ------------------------------------------------------------------------------------------------------

    def adapters(self):
        """Logits of models with adapters by PEFT and as herd merges them; loss unmerged and merged, both by herd."""
        text = self.folder / "text.txt"
        text.write_text("".join(p.read_text() for p in sorted((common.ROOT / "docs").glob("*.md"))))
        self.must("data", "tokenize", "--tokenizer", "bytes", "--holdout", "0.1", "--output", "corpus", text)
        shape = dict(common.TINY_SHAPE, max_position_embeddings=512, rope_theta=10000.0)
        config = {
            "name": "x",
            "model": {"shape": shape},
            "run_dir": "base",
            "data": {"sequence_length": 64, "train": [{"path": "corpus_train"}], "validation": [{"path": "corpus_validation"}]},
            "batch": {"global": 8, "micro": 2},
            "train": {"steps": 20, "precision": "fp32", "device": "cpu", "threads": 1},
            "optim": {"lr": 1e-2, "min_lr": 1e-3, "warmup_steps": 2},
            "validation": {"every": 20, "sequences": 64},
        }
        (self.folder / "r.yaml").write_text(json.dumps(config))
        self.must("train", "r.yaml")
        self.must("checkpoint", "export", "base", "hf", "--dtype", "fp32")
        lora = ["lora={rank: 8, alpha: 16, dropout: 0.1}", "model.weights=hf", "model.shape="]
        self.must("train", "r.yaml", *sets(*lora, "run_dir=run", "parallel.tensor=2"), ranks=2)
        self.must("checkpoint", "export", "run", "adapter", "--adapter")
        gaps = {}
        for dtype in ["fp32", "bf16"]:
            self.must("checkpoint", "export", "run", f"merged-{dtype}", "--dtype", dtype)
        gaps["made by herd"] = self.logits("compare", "hf", "adapter", "merged-fp32")
        self.logits("make", "hf", "other", result=False)
        self.must("checkpoint", "export", "other", "out", "--dtype", "fp32")
        gaps["made by PEFT"] = self.logits("compare", "hf", "other", "out")
        # One step of one sequence from PEFT's adapter: a tenth of its gradient is the first moment.
        words = self.folder / "words.txt"
        words.write_bytes(text.read_bytes()[:65])
        self.must("data", "tokenize", "--tokenizer", "bytes", "--no-eos", "--output", "words", words)
        made = json.loads((self.folder / "other/adapter_config.json").read_text())
        targets = f"targets: [{', '.join(sorted(made['target_modules']))}]"
        one = [f"lora={{rank: {made['r']}, alpha: {made['lora_alpha']}, {targets}, weights: other}}", "model.weights=hf", "model.shape=",
               "data.train=[{path: words}]", "batch.global=1", "batch.micro=1", "train.steps=1", "optim.warmup_steps=0", "train.clip_norm=0",
               "checkpoint.every=1", "run_dir=one"]  # fmt: skip
        self.must("train", "r.yaml", *sets(*one))
        gradient = self.logits("gradients", "hf", "other", "one/checkpoints/step-00000001", words)
        losses = {}
        for dtype in ["fp32", "bf16"]:
            more = ["model.shape=", f"model.weights=merged-{dtype}", f"run_dir=again-{dtype}", "train.steps=1", "optim.warmup_steps=0"]
            self.must("train", "r.yaml", *sets(*more))
            losses[dtype] = self.validation(f"again-{dtype}")[0]
        unmerged = self.validation("run")[-1]
        gap = max(g["gap"] for g in gaps.values())
        peer = f"PEFT {self.peft_version()}" if self.args.peft else "the definition in plain torch"
        unit = "largest difference of a logit, relative to the largest, fp32"
        return [
            figure("peft_logit_gap", gap, unit, peer, 1e-5, each=gaps),
            figure("peft_gradient_gap", gradient["gap"], "largest difference of a gradient of A or B, relative to the largest, fp32",
                   peer, 1e-5, tensors=gradient["tensors"]),
            figure("merge_gap", abs(losses["fp32"] / unmerged - 1), "relative difference of the validation loss, merged in fp32",
                   "the same adapters unmerged", 1e-6, unmerged=unmerged, merged=losses),
        ]

    def must(self, *command, ranks=1):
        start = common.mpirun(ranks) if ranks > 1 else []
        done = subprocess.run([*start, *(str(c) for c in [self.herd, *command])], cwd=self.folder, env=common.environment(),
                              capture_output=True, text=True)
        if done.returncode:
            raise Failed(f"herd {' '.join(map(str, command))}: {done.stderr.strip()[-500:]}")

    def logits(self, what, *folders, result=True):
        env = common.environment()
        if self.args.peft:
            env["PYTHONPATH"] = str(Path(self.args.peft).resolve())
        command = [os.environ.get("HERD_PYTHON", sys.executable), common.ROOT / "tests/oracle/lora.py", what, *folders]
        done = subprocess.run([str(c) for c in command + (["peft"] if self.args.peft else [])], cwd=self.folder, env=env,
                              capture_output=True, text=True)
        if done.returncode:
            raise Failed(f"lora.py {what}: {done.stderr.strip()[-500:]}")
        return json.loads(done.stdout.splitlines()[-1]) if result else None

    def peft_version(self):
        return next(Path(self.args.peft).glob("peft-*.dist-info")).name.split("-")[1].removesuffix(".dist")

    def validation(self, run):
        events = [json.loads(line) for line in (self.folder / run / "events.jsonl").read_text().splitlines()]
        return [e["validation_loss"] for e in events if e.get("kind") == "validation"]

    # --- preference pairs ----------------------------------------------------------------------------------------------

    def preference(self):
        text = self.folder / "text.txt"
        text.write_text("".join(p.read_text() for p in sorted((common.ROOT / "docs").glob("*.md"))))
        self.must("data", "tokenize", "--tokenizer", "bytes", "--force", "--output", "words", text)
        shape = dict(common.TINY_SHAPE, max_position_embeddings=512, rope_theta=10000.0)
        config = {
            "name": "x", "model": {"shape": shape}, "run_dir": "pairs-base", "data": {"sequence_length": 64, "train": [{"path": "words"}]},
            "batch": {"global": 8, "micro": 2}, "train": {"steps": 20, "precision": "fp32", "device": "cpu", "threads": 1},
            "optim": {"lr": 1e-2, "min_lr": 1e-3, "warmup_steps": 2},
        }
        (self.folder / "b.yaml").write_text(json.dumps(config))
        self.must("train", "b.yaml")
        self.must("checkpoint", "export", "pairs-base", "pairs-hf", "--dtype", "fp32")
        words = ["yes", "no", "it depends on the cluster", "ask Slurm", "42", "rank 0 writes the file", "never", "twice a day, at night"]
        rows = [{"prompt": f"question {i}: how?", "chosen": words[i % 8], "rejected": words[(3 * i + 1) % 8] + "!"} for i in range(24)]
        (self.folder / "t.jinja").write_text(plain(END))
        (self.folder / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        self.must("data", "chat", "-t", "bytes", "--template", "t.jinja", "--force", "-o", "pairs", "pairs.jsonl")
        config |= {"model": {"weights": "pairs-hf"}, "batch": {"global": 24, "micro": 4}}
        config["data"] = {"sequence_length": 160, "train": [{"path": "pairs"}], "chat": {"packing": "none"}}
        config["train"] |= {"steps": 2, "clip_norm": 0, "allow": ["learning-rate"]}
        # The first moment is the gradient, and the first step is long enough to see.
        config["optim"] = {"lr": 2.0, "beta1": 0.0, "eps": 1.0, "warmup_steps": 0, "schedule": "constant", "weight_decay": 0}
        config["checkpoint"] = {"every": 1, "keep": 0}
        (self.folder / "d.yaml").write_text(json.dumps(config))
        gap, figures, each = 0.0, 0.0, {}
        for name, dpo in {
            "sigmoid": {"loss": "sigmoid", "beta": 0.5},
            "sigmoid with SFT term": {"loss": "sigmoid", "beta": 0.5, "sft_weight": 0.3},
            "length-normalised": {"loss": "sigmoid", "beta": 5.0, "length_normalized": True},
            "ipo": {"loss": "ipo", "beta": 0.5},
        }.items():
            run = f"dpo-{len(each)}"
            self.must("train", "d.yaml", *sets(f"dpo={json.dumps(dpo)}", f"run_dir={run}"))
            step = [Path(run, "checkpoints", f"step-{n:08}") for n in (1, 2)]
            self.must("checkpoint", "export", step[0], f"{run}-hf", "--dtype", "fp32")
            theirs = self.oracle("dpo.py", "pairs", "pairs-hf", f"{run}-hf", step[1], json.dumps(dpo), *(["trl"] if self.args.trl else []))
            ours = json.loads((self.folder / run / "metrics.jsonl").read_text().splitlines()[1])
            keys = ["loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"]
            each[name] = {k: [ours[k], theirs[k]] for k in keys} | {"gradient": theirs["gap"] / theirs["top"]}
            gap = max(gap, theirs["gap"] / theirs["top"])
            figures = max([figures] + [abs(ours[k] - theirs[k]) / max(1, abs(theirs[k])) for k in keys])
            print(f"  {name:24} loss {ours['loss']:.6f} {theirs['loss']:.6f}, margin {ours['rewards/margins']:.4f}", flush=True)
        peer = "TRL 1.16.0's DPOTrainer" if self.args.trl else "the formulas in transformers, fp64"
        return [
            figure("dpo_vs_trl_gap", gap, "largest difference of a gradient, relative to the largest, fp32", peer, 1e-5, each=each),
            figure("dpo_vs_trl_figures", figures, "largest difference of loss, rewards, margin and accuracy", peer, 1e-5),
        ]

    def oracle(self, program, *arguments):
        env = common.environment()
        if self.args.trl:
            env["PYTHONPATH"] = str(Path(self.args.trl).resolve())
        command = [os.environ.get("HERD_PYTHON", sys.executable), common.ROOT / "tests/oracle" / program, *arguments]
        done = subprocess.run([str(c) for c in command], cwd=self.folder, env=env, capture_output=True, text=True)
        if done.returncode:
            raise Failed(f"{program}: {done.stderr.strip()[-800:]}")
        return json.loads(done.stdout.splitlines()[-1])

    # --- traps ---------------------------------------------------------------------------------------------------------

    def traps(self):
        caught, each = 0, {}
        cases = self.cases()
        for name, found in cases.items():
            trap, said, code = found
            hit = code in (10, 11) and trap in said
            caught += hit
            each[name] = hit
            print(f"  {name:52} {'caught' if hit else 'NOT CAUGHT: ' + said.strip()[:200]}", flush=True)
        clean = self.clean()
        print(f"  a clean set: {'passes, no warning' if clean else 'does NOT pass'}", flush=True)
        return [
            figure("traps", len(cases), "mistakes put in on purpose", "none", len(TRAPS), at_least=True),
            figure("traps_caught", caught, "of them refused by name", "none", len(cases), at_least=True, each=each),
            figure("clean_passes", int(clean), "a clean set passes without a warning", "none", 1, at_least=True),
        ]

    def chat(self, template, rows, *more):
        (self.folder / "t.jinja").write_text(template)
        (self.folder / "r.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        done = self.run("data", "chat", "-t", "bytes", "--template", "t.jinja", "--force", "-o", "traps", *more, "r.jsonl")
        return done.stdout + done.stderr, done.returncode

    def start(self, *sets, tokenizer="bytes", end_of_mask=None):
        """`herd config check` on what the last call made."""
        if end_of_mask is not None:
            end_of_mask()
        config = {
            "name": "x",
            "run_dir": str(self.folder / "run"),
            "model": {"shape": dict(common.TINY_SHAPE, max_position_embeddings=512, rope_theta=10000.0)},
            "data": {"tokenizer": str(tokenizer), "sequence_length": 64, "train": [{"path": "traps"}], "chat": {}},
            "batch": {"global": 1, "micro": 1},
            "train": {"steps": 1, "device": "cpu"},
            "optim": {"warmup_steps": 0},
        }
        (self.folder / "c.yaml").write_text(json.dumps(config))
        done = self.run("config", "check", "c.yaml", *(f"--set={s}" for s in sets))
        return done.stdout + done.stderr, done.returncode

    def cases(self):
        row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
        unweighted = json.loads(json.dumps(row))
        unweighted["messages"][1]["weight"] = 0
        long = {"messages": [{"role": "user", "content": "a" * 200}, {"role": "assistant", "content": "b"}]}
        outside = plain("").replace("{{ m.content }}", "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
                                    "{% else %}{{ m.content }}{% endif %}" + END)
        begin = "{{ '" + BOS + "' }}"
        in_text = {"messages": [{"role": "user", "content": BOS + "a"}, {"role": "assistant", "content": "b"}]}
        tight = begin + "{% for m in messages %}{{ m.content }}" + END + "{% endfor %}"
        out = {}

        def prepared(name, trap, *args):
            said, code = self.chat(*args)
            out[name] = (f"trap {trap}", said, code)

        prepared("every turn of weight 0", "empty-mask", plain(END), [unweighted])
        prepared("a conversation without an answer", "empty-mask", plain(END), [{"messages": row["messages"][:1]}])
        prepared("--bos beside a template that writes it", "double-bos", plain(END, begin), [row], "--bos", BOS)
        prepared("the text begins with it too", "double-bos", tight, [in_text])
        prepared("a template without an end token", "end-not-trained", plain(""), [row])
        prepared("a generation block that ends before it", "end-not-trained", outside, [row])
        prepared("a template of another model", "foreign-template", plain("<|im_end|>"), [row])
        prepared("a pair of the same answer twice", "same-answers", plain(END), [{"prompt": "a", "chosen": "b", "rejected": "b"}])

        def started(name, trap, rows, *sets, **more):
            said, code = self.chat(plain(END), rows)
            if code:
                raise Failed(f"{name}: {said}")
            said, code = self.start(*sets, **more)
            out[name] = (trap, said, code)

        started("cut before the answer", "trap cut-before-trained", [long], "data.chat.too_long=cut")
        started("end tokens masked as padding, by another program", "trap end-not-trained", [row], end_of_mask=self.mask_ends)
        other = self.folder / "other"
        other.mkdir(exist_ok=True)
        (other / "tokenizer.json").write_text(json.dumps(byte_tokenizer()))
        started("the tokenizer of another model", "fingerprint", [row], tokenizer=other)
        # The same tokenizer, another template beside it.
        self.run("data", "chat", "-t", other, "--template", "t.jinja", "--force", "-o", "traps", "r.jsonl")
        (other / "chat_template.jinja").write_text(plain(END) + "{# of another model #}")
        said, code = self.start(tokenizer=other)
        out["another template beside the run's tokenizer"] = ("trap foreign-template", said, code)
        started("held-out conversations that are trained on", "trap held-out-in-training", [row], "data.validation=[{path: traps}]")
        weights = f"model.weights={self.folder / 'weights'}"
        started("a learning rate of another scale", "trap learning-rate", [row], weights, "optim.lr=0.9")
        return out

    def mask_ends(self):
        """What a trainer does that masks padding by its id, where that is the end token."""
        prefix = self.folder / "traps"
        ids = array.array("H", prefix.with_suffix(".bin").read_bytes())
        mask = bytearray(prefix.with_suffix(".mask").read_bytes())
        for i, id in enumerate(ids):
            if id == 257:
                mask[i] = 0
        prefix.with_suffix(".mask").write_bytes(mask)
        prefix.with_suffix(".json").unlink()

    def clean(self):
        rows = [{"messages": [{"role": "user", "content": f"q {i}"}, {"role": "assistant", "content": f"a {i}"}]} for i in range(20)]
        said, code = self.chat(plain(END), rows)
        checked, started = self.start()
        loud = [w for w in ("warning", "WARN", "(trap ", "with trap ", "left out") if w in said + checked]
        if loud or code or started:
            print(f"    {loud}: {said}{checked}", flush=True)
        return code == 0 and started == 0 and not loud


def byte_tokenizer():
    """A byte-level tokenizer.json with the names of `bytes`."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    vocabulary = {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(rest)}
    special = [{"id": 256 + i, "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
               for i, name in enumerate([BOS, END])]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
             "fuse_unk": False, "byte_fallback": False, "vocab": vocabulary, "merges": []}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
            "pre_tokenizer": level, "post_processor": None, "decoder": level, "model": model}


def documents(prefix):
    """(ids, mask) of each document of a token file, read by the layout that docs/data.md has."""
    index = prefix.with_suffix(".idx").read_bytes()
    code, count = index[17], struct.unpack_from("<Q", index, 18)[0]
    lengths = struct.unpack_from(f"<{count}i", index, 34)
    ids = array.array("H" if code == 8 else "i", prefix.with_suffix(".bin").read_bytes())
    mask = prefix.with_suffix(".mask").read_bytes()
    out, at = [], 0
    for n in lengths:
        out.append((ids[at : at + n], mask[at : at + n]))
        at += n
    return out


def figure(name, value, unit, peer, goal, at_least=False, **more):
    reached = value >= goal if at_least else value <= goal
    words = f"at {'least' if at_least else 'most'} {goal:g}"
    # Differences below the four digits that entries are rounded to stay themselves.
    return {**common.entry(name, value, unit, peer, goal=words, reached=reached, **more), "value": value}


def sets(*all):
    return [word for s in all for word in ("--set", s)]


PARTS = ["masks", "batches", "resumes", "adapters", "preference", "traps"]


def main():
    p = argparse.ArgumentParser(description="fine-tuning against transformers and TRL")
    p.add_argument("--only", action="append", choices=PARTS, help="one part")
    p.add_argument("--count", type=int, default=1000, help="conversations of each template (default 1000)")
    p.add_argument("--trl", help="folder with TRL in it")
    p.add_argument("--peft", help="folder with PEFT in it")
    p.add_argument("--quick", action="store_true", help="records nothing")
    p.add_argument("--herd", help="herd binary (default target/release/herd)")
    p.add_argument("--test", help="binary of the integration tests, instead of building it")
    args = p.parse_args()
    report.run(Bench, PARTS, RESULTS, args)


if __name__ == "__main__":
    main()

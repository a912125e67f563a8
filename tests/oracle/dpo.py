"""The loss of preference pairs by transformers and autograd, from the papers' formulas and not from herd's code.

    dpo.py CORPUS REFERENCE POLICY STEP '{"loss": "sigmoid", "beta": 0.1, …}' [POLICY STEP SETTINGS …]

CORPUS: prefix of a token file of pairs, all of which are the batch. REFERENCE, POLICY: models in Hugging Face's form. STEP: herd's checkpoint
behind the step, whose first moments are the gradient (beta1 = 0, no clipping). Prints loss, rewards and the largest difference of a
gradient beside the largest gradient, as JSON, a line for each three arguments. All in double precision.

With a last argument `trl` the loss, rewards and gradients are those of TRL's own DPOTrainer on the same batch, in fp32.
"""
import json, sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
import torch.nn.functional as F
from checkpoint_read import load
from transformers import AutoModelForCausalLM


def documents(prefix):
    index = np.fromfile(f"{prefix}.idx", "u1").tobytes()
    code, count = index[17], int(np.frombuffer(index, "<u8", 1, 18)[0])
    lengths = np.frombuffer(index, "<i4", count, 34)
    ids = np.fromfile(f"{prefix}.bin", "<u2" if code == 8 else "<i4").astype("i8")
    mask = np.fromfile(f"{prefix}.mask", "u1")
    ends = np.cumsum(lengths)
    return [(torch.tensor(ids[e - n : e]), torch.tensor(mask[e - n : e])) for e, n in zip(ends, lengths)]


def logps(model, document):
    ids, mask = document
    rows = model(ids[None]).logits[0, :-1].log_softmax(-1)
    return (rows.gather(1, ids[1:, None])[:, 0] * mask[1:]).sum()


def own(corpus, reference, policy, s):
    docs = documents(corpus)
    with torch.no_grad():
        ref = [logps(reference, d) for d in docs]
    total, chosen, rejected = 0, [], []
    for p in range(0, len(docs), 2):
        w, l = (logps(policy, docs[p + i]) for i in range(2))
        rw, rl = w - ref[p], l - ref[p + 1]
        nw, nl = (docs[p + i][1][1:].sum() for i in range(2))
        even = s["loss"] == "ipo" or s.get("length_normalized")
        delta = rw / nw - rl / nl if even else rw - rl
        if s["loss"] == "ipo":
            loss = (delta - 1 / (2 * s["beta"])) ** 2
        else:
            e = s.get("label_smoothing", 0)
            loss = -(1 - e) * F.logsigmoid(s["beta"] * delta) - e * F.logsigmoid(-s["beta"] * delta)
        loss = loss - s.get("sft_weight", 0) * w / nw
        # each pair's graph by itself
        (loss / (len(docs) // 2)).backward()
        total += loss.item()
        chosen.append(s["beta"] * rw.item())
        rejected.append(s["beta"] * rl.item())
    return total / len(chosen), chosen, rejected


def by_trl(corpus, reference, policy, s):
    import tempfile
    import pyarrow as pa
    from datasets import Dataset
    from datasets.table import InMemoryTable
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    docs = documents(corpus)

    def answer(d):
        ids, mask = d
        first = int(mask[1:].argmax()) + 1
        assert mask[first:].all(), "TRL counts every token of an answer"
        return ids[:first].tolist(), ids[first:].tolist()

    rows = []
    for w, l in zip(docs[::2], docs[1::2]):
        (prompt, chosen), (same, rejected) = answer(w), answer(l)
        assert prompt == same
        rows.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"x": 0, "p": 1}, unk_token="x")), pad_token="p", eos_token="p")
    types = [s["loss"] if not s.get("length_normalized") else "sigmoid_norm"] + (["sft"] if s.get("sft_weight") else [])
    with tempfile.TemporaryDirectory() as out:
        config = DPOConfig(output_dir=out, beta=s["beta"], loss_type=types, loss_weights=[1.0, s.get("sft_weight", 0)][: len(types)], bf16=False,
                           use_cpu=True, report_to=[], gradient_checkpointing=False, max_length=None, per_device_train_batch_size=1)
        # The batches have herd's tokens: nothing is left to tokenize.
        DPOTrainer._prepare_dataset = lambda self, dataset, *_: dataset
        # A fingerprint of our own: datasets' pickles what some versions of pyarrow do not let it.
        dataset = Dataset(InMemoryTable(pa.Table.from_pylist(rows)), fingerprint="pairs")
        trainer = DPOTrainer(model=policy, ref_model=reference, args=config, train_dataset=dataset, processing_class=tokenizer)
        policy.train()
        total = 0
        for row in rows:
            # One pair a micro-batch: TRL's SFT term is the mean over the tokens of one.
            batch = trainer.data_collator([row])
            loss = trainer._compute_loss(trainer.model, batch, False)
            loss = loss[0] if isinstance(loss, tuple) else loss
            (loss / len(rows)).backward()
            total += loss.item()
        seen = trainer._metrics["train"]
        return total / len(rows), seen["rewards/chosen"], seen["rewards/rejected"]


def main():
    corpus, reference, *rest = sys.argv[1:]
    trl = rest[-1] == "trl"
    for i in range(0, len(rest) - trl, 3):
        compare(corpus, reference, *rest[i : i + 3], trl)


def compare(corpus, reference, policy, step, settings, trl):
    opened = lambda path: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32 if trl else torch.float64).eval()
    policy = opened(policy)
    loss, chosen, rejected = (by_trl if trl else own)(corpus, opened(reference), policy, json.loads(settings))
    moments = load(step)
    gap, top = 0.0, 0.0
    for name, p in policy.named_parameters():
        got = torch.from_numpy(moments["exp_avg", name].astype("f8"))
        gap, top = max(gap, (got - p.grad.double()).abs().max().item()), max(top, p.grad.abs().max().item())
    mean = lambda all: sum(all) / len(all)
    print(json.dumps({
        "loss": loss, "gap": gap, "top": top, "rewards/chosen": mean(chosen), "rewards/rejected": mean(rejected),
        "rewards/margins": mean(chosen) - mean(rejected), "rewards/accuracies": mean([float(a > b) for a, b in zip(chosen, rejected)]),
    }))


main()

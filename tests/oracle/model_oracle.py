"""Runs Hugging Face transformers' LlamaForCausalLM on tiny random models and writes down all it computes.

usage: model_oracle.py CASES.json OUT

CASES.json maps a case's name to {"model": herd's model config, "batch": B, "sequence": S, "prompt": P, "new": n}.
OUT/NAME.safetensors then holds, in fp32 and i64: tokens [B,S], targets [B,S] (-100: not counted), logits [B,S,V],
loss [1] (sum over counted targets, natural log), weight.* and grad.* (of the mean loss) under transformers' names,
and greedy [P+n]: the first P tokens of row 0 continued by generate(do_sample=False).

A case with "text" has that text's bytes as its prompt, and its model is saved to OUT/NAME/ by save_pretrained.

A case with "prompts" (a list of lists of ids) has its model saved too, and in OUT/NAME/greedy.json for each prompt the "tokens" of
its greedy continuation by "new" tokens and their "logprobs".
"""

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM


def build(model):
    rope = {"rope_type": "default", **(model.pop("rope_scaling", None) or {})}
    rope["rope_theta"] = model.pop("rope_theta", 500000.0)
    config = LlamaConfig(**model, rope_parameters=rope, attn_implementation="eager", bos_token_id=None, eos_token_id=None)
    net = LlamaForCausalLM(config).float().eval()
    with torch.no_grad():
        for name, p in net.named_parameters():
            if p.dim() == 1:
                p.add_(torch.randn_like(p) * 0.3)
            else:
                p.normal_(std=model["initializer_range"])
    return net


def run(case, directory):
    net = build(dict(case["model"]))
    shape = (case["batch"], case["sequence"])
    vocab = case["model"]["vocab_size"]
    tokens = torch.randint(vocab, shape)
    targets = torch.where(torch.rand(shape) < 0.1, -100, torch.randint(vocab, shape))
    logits = net(tokens).logits
    loss = F.cross_entropy(logits.view(-1, vocab), targets.view(-1), ignore_index=-100, reduction="sum")
    (loss / (targets >= 0).sum()).backward()
    out = {"tokens": tokens, "targets": targets, "logits": logits.detach(), "loss": loss.detach().view(1)}
    for name, p in net.named_parameters():
        out["weight." + name] = p.detach()
        out["grad." + name] = p.grad
    if "prompts" in case:
        net.save_pretrained(directory)
        answers = [greedily(net, p, case["new"]) for p in case["prompts"]]
        (directory / "greedy.json").write_text(json.dumps(answers))
    prompt = tokens[:1, : case["prompt"]]
    if "text" in case:
        prompt = torch.tensor([list(case["text"].encode())])
        net.save_pretrained(directory)
    greedy = net.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=case["new"])
    out["greedy"] = greedy[0]
    return {k: v.contiguous() for k, v in out.items()}


def greedily(net, prompt, new):
    prompt = torch.tensor([prompt])
    ids = net.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=new)
    with torch.no_grad():
        scores = net(ids).logits.log_softmax(-1)
    text = ids[0, prompt.shape[1] :]
    before = scores[0, prompt.shape[1] - 1 : -1]
    return {"tokens": text.tolist(), "logprobs": before.gather(1, text[:, None])[:, 0].tolist()}


def main():
    cases, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    torch.manual_seed(1234)
    for name, case in cases.items():
        save_file(run(case, out / name), out / f"{name}.safetensors")


main()

"""Log-probabilities of continuations by transformers: eval_oracle.py MODEL PAIRS.json OUT.json

PAIRS is a list of [context ids, continuation ids]; OUT a list of [sum of log-probabilities, all likeliest]."""

import json
import sys

import torch
import transformers

model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
out = []
with open(sys.argv[2]) as file, torch.no_grad():
    for context, continuation in json.load(file):
        logits = model(torch.tensor([context + continuation])).logits[0, len(context) - 1 : -1].double()
        own = torch.tensor(continuation)
        scores = logits.log_softmax(-1).gather(1, own[:, None])
        out.append([scores.sum().item(), bool((logits.argmax(-1) == own).all())])
with open(sys.argv[3], "w") as file:
    json.dump(out, file)

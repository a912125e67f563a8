"""Loss and accuracy of a model on the first sequences of token files, by transformers.

    held_out.py MODEL LENGTH FILE.bin:COUNT…   for each file its first COUNT sequences of LENGTH tokens (u16, the next token is the
                                               target): [mean loss in nats, share of targets that are the likeliest token], as JSON
"""
import json, sys
import numpy as np
import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
length = int(sys.argv[2])
out = []
for arg in sys.argv[3:]:
    path, count = arg.rsplit(":", 1)
    tokens = torch.from_numpy(np.fromfile(path, dtype="<u2").astype(np.int64))
    rows = torch.stack([tokens[i * length : (i + 1) * length + 1] for i in range(int(count))])
    with torch.no_grad():
        logits = model(rows[:, :-1]).logits
    targets = rows[:, 1:]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    out.append([loss.item(), (logits.argmax(-1) == targets).float().mean().item()])
print(json.dumps(out))

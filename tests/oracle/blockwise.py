"""The matrices of a model's blocks in 8 or 4 bits and back, 64 values of a row with one scale, in numpy and from the definition
(QLoRA, arXiv:2305.14314 section 3; the levels of NF4 are those of its appendix E).

    blockwise.py MODEL OUT int8|nf4     writes the model with these matrices rounded
"""
import os, shutil, sys
import numpy as np
from safetensors.numpy import load_file, save_file

NF4 = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0], np.float32)  # fmt: skip


def rounded(w, form):
    runs = w.reshape(-1, 64)
    top = np.abs(runs).max(1, keepdims=True)
    x = runs / np.where(top > 0, top, np.float32(1))
    if form == "int8":
        levels = np.rint(x * np.float32(127)) / np.float32(127)
    else:
        levels = NF4[np.searchsorted((NF4[:-1] + NF4[1:]) / np.float32(2), x)]
    return (levels * top).reshape(w.shape)


model, out, form = sys.argv[1:]
shutil.copytree(model, out)
tensors = load_file(os.path.join(model, "model.safetensors"))
for name, w in tensors.items():
    assert w.dtype == np.float32, f"{name} is {w.dtype}"
    if name.endswith("_proj.weight"):
        tensors[name] = rounded(w, form)
save_file(tensors, os.path.join(out, "model.safetensors"), metadata={"format": "pt"})

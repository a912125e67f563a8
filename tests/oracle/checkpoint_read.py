"""Reads a herd checkpoint with nothing but h5py, numpy and docs/checkpoint-format.md.

    checkpoint_read.py STEP_DIRECTORY OUT    writes each tensor as OUT/<group>.<name>, raw little-endian fp32
"""
import json, os, sys
import h5py
import numpy as np


def load(step_directory):
    """{(group, name): array} of everything stored."""
    with open(os.path.join(step_directory, "manifest.json")) as f:
        manifest = json.load(f)["manifest"]
    tensors = {(t["group"], t["name"]): np.full(t["shape"], np.nan, "<f4") for t in manifest["tensors"]}
    for entry in manifest["files"]:
        with h5py.File(os.path.join(step_directory, entry["name"]), "r") as f:
            assert json.loads(f.attrs["meta"])["step"] == manifest["meta"]["step"]
            for group in f:
                for name in f[group]:
                    for piece in f[group][name].values():
                        whole, a = tensors[group, name], piece.attrs
                        assert tuple(a["shape"]) == whole.shape
                        place = tuple(slice(o, o + e) for o, e in zip(a["offset"], a["extent"]))
                        flat = whole[place].ravel()
                        flat[a["start"] : a["start"] + piece.size] = piece[:]
                        whole[place] = flat.reshape(a["extent"])
    return tensors


if __name__ == "__main__":
    for (group, name), array in load(sys.argv[1]).items():
        array.tofile(os.path.join(sys.argv[2], f"{group}.{name}"))

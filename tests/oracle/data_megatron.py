"""Indexed token files, read and written without herd.

    data_megatron.py readers                      which of the two are here: `struct` always, `megatron` if installed
    data_megatron.py write READER PREFIX DTYPE    writes some documents; prints what it wrote
    data_megatron.py read READER PREFIX           prints what it reads

`struct` follows the published layout by hand; `megatron` is Megatron-LM's own IndexedDataset
(`pip install --no-deps megatron-core`). Output is one JSON object: dtype, documents (lists of ids), sequences.
"""

import json
import struct
import sys
import warnings

import numpy

warnings.filterwarnings("ignore")
CODES = {4: numpy.int32, 8: numpy.uint16}


def sample(dtype):
    """Documents of one or more sequences; an empty sequence; the highest ids the dtype takes from a Llama 3 vocabulary."""
    top = 65_535 if dtype == "uint16" else 128_255
    rng = numpy.random.default_rng(11)
    random = [[rng.integers(0, top + 1, rng.integers(0, 50)).tolist() for _ in range(n)] for n in (1, 3, 1, 2, 1)]
    return [[[1, 2, 3]], [[top], []], [[0]]] + random


def write_struct(prefix, dtype, documents):
    kind = numpy.dtype(dtype)
    sequences = [s for d in documents for s in d]
    with open(prefix + ".bin", "wb") as f:
        for s in sequences:
            f.write(numpy.array(s, kind.newbyteorder("<")).tobytes())
    code = {v: k for k, v in CODES.items()}[kind.type]
    ends = [0]
    for d in documents:
        ends.append(ends[-1] + len(d))
    offsets, at = [], 0
    for s in sequences:
        offsets.append(at)
        at += len(s) * kind.itemsize
    with open(prefix + ".idx", "wb") as f:
        f.write(b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(sequences), len(ends)))
        f.write(struct.pack(f"<{len(sequences)}i", *map(len, sequences)))
        f.write(struct.pack(f"<{len(offsets)}q", *offsets))
        f.write(struct.pack(f"<{len(ends)}q", *ends))


def read_struct(prefix):
    idx, raw = open(prefix + ".idx", "rb").read(), open(prefix + ".bin", "rb").read()
    assert idx[:9] == b"MMIDIDX\x00\x00"
    version, code, n, entries = struct.unpack_from("<QBQQ", idx, 9)
    assert version == 1 and len(idx) == 34 + 12 * n + 8 * entries
    lengths = struct.unpack_from(f"<{n}i", idx, 34)
    offsets = struct.unpack_from(f"<{n}q", idx, 34 + 4 * n)
    ends = struct.unpack_from(f"<{entries}q", idx, 34 + 12 * n)
    sequences = [numpy.frombuffer(raw, CODES[code], l, o).tolist() for l, o in zip(lengths, offsets)]
    documents = [sum(sequences[a:b], []) for a, b in zip(ends, ends[1:])]
    assert sum(map(len, documents)) * CODES[code]().itemsize == len(raw)
    return {"dtype": CODES[code].__name__, "documents": documents, "sequences": n}


def write_megatron(prefix, dtype, documents):
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(prefix + ".bin", dtype=numpy.dtype(dtype).type)
    for d in documents:
        for s in d:
            builder.add_item(torch.tensor(s, dtype=torch.int64))
        builder.end_document()
    builder.finalize(prefix + ".idx")


def read_megatron(prefix):
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    data = IndexedDataset(prefix, mmap=True)
    ends = data.document_indices.tolist()
    documents = [sum((data[i].tolist() for i in range(a, b)), []) for a, b in zip(ends, ends[1:])]
    return {"dtype": data.index.dtype.__name__, "documents": documents, "sequences": len(data)}


def readers():
    try:
        import megatron.core.datasets.indexed_dataset  # noqa: F401
    except ImportError:
        return ["struct"]
    return ["struct", "megatron"]


def main(verb, *args):
    if verb == "readers":
        out = readers()
    elif verb == "write":
        reader, prefix, dtype = args
        documents = sample(dtype)
        globals()["write_" + reader](prefix, dtype, documents)
        sequences = sum(map(len, documents))
        out = {"dtype": dtype, "documents": [sum(d, []) for d in documents], "sequences": sequences}
    else:
        reader, prefix = args
        out = globals()["read_" + reader](prefix)
    print(json.dumps(out))


main(*sys.argv[1:])

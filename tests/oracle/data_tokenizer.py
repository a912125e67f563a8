"""Tokenizers by other hands than herd's, for comparison.

    data_tokenizer.py make DIR      trains DIR/hf/tokenizer.json and DIR/tiktoken/tokenizer.model, writes DIR/texts.jsonl;
                                    prints the ids each gives for each text
    data_tokenizer.py load DIR      encodes DIR/texts.jsonl with transformers' AutoTokenizer.from_pretrained(DIR/export)

The tiktoken ids come from a plain byte-pair encoder over the `regex` module and, where it is installed, from the tiktoken
package, which must agree.
"""

import base64
import json
import sys
from pathlib import Path

import regex

TEXTS = [
    "The theory of the thing is that the other thinks.",
    "don't DON'T we'LL it's 12345 1.5e10 007",
    "  leading\n\n\n  and \t trailing   \n",
    "Grüße aus Köln, 世界！ Привет 🦀👩‍🚀 e\u0301",
    "<|begin_of_text|>not special<|end_of_text|> <|eot_id|>",
    "fn main() {\n\tprintln!(\"{}\", 0xff);\r\n}\r\n",
    "\u00a0\u2003\u3000 spaces \u001c\u001f of all kinds \x00\x7f",
    "_" * 300 + "x" + " " * 300,
    # Longer than the run at which Llama 3 cuts.
    " " * 26_000 + "a" * 25_001 + "b",
]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_hf(folder):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    special = [AddedToken(s, special=True) for s in ("<|begin_of_text|>", "<|end_of_text|>")]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    t.train_from_iterator(TEXTS[:6] * 5, trainer)
    folder.mkdir()
    t.save(str(folder / "tokenizer.json"))
    t.encode_special_tokens = True
    return [t.encode(text, add_special_tokens=False).ids for text in TEXTS]


def merge(word, ranks):
    """The tokens of one word: while any two neighbours make a token, join the pair of lowest rank, from the left."""
    parts = [bytes([b]) for b in word]
    while pairs := {a + b for a, b in zip(parts, parts[1:])} & ranks.keys():
        best, joined, i = min(pairs, key=ranks.get), [], 0
        while i < len(parts):
            step = 2 if i + 1 < len(parts) and parts[i] + parts[i + 1] == best else 1
            joined.append(b"".join(parts[i : i + step]))
            i += step
        parts = joined
    return [ranks[p] for p in parts]


def train_ranks():
    """Bytes, then the most frequent pair, 150 times."""
    words = [[bytes([b]) for b in w.encode()] for t in TEXTS[:6] for w in regex.findall(LLAMA3, t)]
    ranks = {bytes([b]): b for b in range(256)}
    for _ in range(150):
        counts = {}
        for w in words:
            for pair in zip(w, w[1:]):
                counts[pair] = counts.get(pair, 0) + 1
        best = max(sorted(counts), key=counts.get)
        ranks.setdefault(best[0] + best[1], len(ranks))
        for w in words:
            i = 0
            while i + 1 < len(w):
                if (w[i], w[i + 1]) == best:
                    w[i : i + 2] = [w[i] + w[i + 1]]
                i += 1
    # Runs of one character, so that where a long run is cut shows in the ids.
    for run in (b"aa", b"aaaa", b"aaaaaaaa", b"  ", b"    "):
        ranks.setdefault(run, len(ranks))
    return ranks


def cut_runs(text, longest=25_000):
    start = run = 0
    for i, c in enumerate(text):
        run = run + 1 if i and c.isspace() == text[i - 1].isspace() and run else 1
        if run > longest:
            yield text[start:i]
            start, run = i, 1
    yield text[start:]


def train_tiktoken(folder):
    ranks = train_ranks()
    folder.mkdir()
    lines = [f"{base64.b64encode(t).decode()} {r}\n" for t, r in ranks.items()]
    (folder / "tokenizer.model").write_text("".join(lines))
    plain = [
        [id for piece in cut_runs(t) for w in regex.findall(LLAMA3, piece) for id in merge(w.encode(), ranks)]
        for t in TEXTS
    ]
    try:
        import tiktoken
    except ImportError:
        return plain, "plain"
    special = {"<|begin_of_text|>": len(ranks), "<|end_of_text|>": len(ranks) + 1}
    t = tiktoken.Encoding("tiny", pat_str=LLAMA3, mergeable_ranks=ranks, special_tokens=special)
    real = [[id for piece in cut_runs(x) for id in t.encode(piece, disallowed_special=())] for x in TEXTS]
    assert real == plain, "the plain encoder differs from the tiktoken package"
    return plain, "plain and tiktoken " + tiktoken.__version__


def make(folder):
    with open(folder / "texts.jsonl", "w") as f:
        for t in TEXTS:
            f.write(json.dumps({"text": t}) + "\n")
    hf = train_hf(folder / "hf")
    tik, by = train_tiktoken(folder / "tiktoken")
    return {"hf": hf, "tiktoken": tik, "by": by, "bytes": [list(t.encode()) for t in TEXTS]}


def load(folder):
    from transformers import AutoTokenizer

    t = AutoTokenizer.from_pretrained(folder / "export")
    texts = [json.loads(line)["text"] for line in open(folder / "texts.jsonl")]
    ids = [t.encode(x, add_special_tokens=False, split_special_tokens=True) for x in texts]
    back = [t.decode(i) for i in ids]
    return {"ids": ids, "same_text": back == texts, "bos": t.bos_token_id, "eos": t.eos_token_id, "size": len(t)}


print(json.dumps({"make": make, "load": load}[sys.argv[1]](Path(sys.argv[2]))))

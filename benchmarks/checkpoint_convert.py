"""Import and export of a 2 GB model (bf16): peak memory of the process, and time against raw reads and writes of the same
bytes with fsync, in the same round. Writes import_*, export_* and meta_import_* to benchmarks/results/checkpoint.json.

    python benchmarks/checkpoint_convert.py            three rounds, about 10 GB of disk in build/bench
    python benchmarks/checkpoint_convert.py --quick    a small model, one round; records nothing
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import common
import report
from common import Failed

RESULTS = common.ROOT / "benchmarks" / "results" / "checkpoint.json"
BLOCK = 4 << 20
LIMIT_MB = 600


def make_model(directory, layers):
    """A Hugging Face directory of random bf16 weights, written tensor by tensor."""
    import torch
    from safetensors.torch import save_file

    shape = dict(hidden_size=2048, intermediate_size=5632, num_attention_heads=16, num_key_value_heads=8, vocab_size=32000)
    h, f, kv, v = 2048, 5632, 1024, 32000
    directory.mkdir(parents=True)
    block = {
        "input_layernorm": (h,),
        "self_attn.q_proj": (h, h),
        "self_attn.k_proj": (kv, h),
        "self_attn.v_proj": (kv, h),
        "self_attn.o_proj": (h, h),
        "post_attention_layernorm": (h,),
        "mlp.gate_proj": (f, h),
        "mlp.up_proj": (f, h),
        "mlp.down_proj": (h, f),
    }
    files = [{"model.embed_tokens.weight": (v, h), "model.norm.weight": (h,), "lm_head.weight": (v, h)}]
    files += [{f"model.layers.{i}.{n}.weight": s for n, s in block.items()} for i in range(layers)]
    generator, where, total = torch.Generator().manual_seed(1), {}, 0
    for i, shapes in enumerate(files):
        name = f"model-{i + 1:05}-of-{len(files):05}.safetensors"
        tensors = {n: (torch.randn(*s, generator=generator) * 0.02).bfloat16() for n, s in shapes.items()}
        total += sum(2 * t.numel() for t in tensors.values())
        save_file(tensors, directory / name, metadata={"format": "pt"})
        where.update({n: name for n in tensors})
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    config = dict(shape, architectures=["LlamaForCausalLM"], model_type="llama", num_hidden_layers=layers, hidden_act="silu")
    config.update(max_position_embeddings=8192, rms_norm_eps=1e-5, rope_theta=500000.0, torch_dtype="bfloat16")
    config.update(bos_token_id=1, eos_token_id=2)
    (directory / "config.json").write_text(json.dumps(config))


def drop_cache(directory):
    """Leaves nothing of the directory in the page cache, so that reads are the disk's."""
    os.sync()
    for path in directory.rglob("*"):
        if path.is_file():
            with open(path, "rb") as f:
                os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def raw_read(directory):
    drop_cache(directory)
    began, buffer = time.time(), bytearray(BLOCK)
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        with open(path, "rb", buffering=0) as f:
            while f.readinto(buffer):
                pass
    return time.time() - began


def raw_write(path, size):
    """Seconds for a plain sequential write of `size` bytes with fsync."""
    block, began = os.urandom(BLOCK), time.time()
    with open(path, "wb", buffering=0) as f:
        for at in range(0, size, BLOCK):
            f.write(block[: min(BLOCK, size - at)])
        os.fsync(f.fileno())
    seconds = time.time() - began
    path.unlink()
    return seconds


def size_of(directory):
    return sum(p.stat().st_size for p in directory.rglob("*") if p.is_file())


def measured(herd, source, target, verb, log):
    """One conversion with a cold source, and the raw reads and writes of the same bytes around it."""
    shutil.rmtree(target, ignore_errors=True)
    raw = raw_read(source)
    drop_cache(source)
    run = common.Run([herd, "checkpoint", verb, source, target], log)
    raw += raw_write(target.parent / "raw", size_of(target))
    return run, run.seconds / raw


def check_loads(source, exported):
    """transformers loads what was exported and computes what it computes from the source, bit for bit."""
    code = """
import sys, torch
from transformers import AutoModelForCausalLM
ids, logits = torch.arange(64)[None], []
for d in sys.argv[1:]:
    m = AutoModelForCausalLM.from_pretrained(d, dtype=torch.bfloat16)
    with torch.no_grad():
        logits.append(m(ids).logits)
    del m
assert torch.equal(*logits), (logits[0] - logits[1]).abs().max()
"""
    done = subprocess.run([sys.executable, "-c", code, str(source), str(exported)], capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"transformers: {done.stderr[-800:]}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--herd")
    parser.add_argument("--make", nargs=2, metavar=("DIR", "LAYERS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        return make_model(Path(args.make[0]), int(args.make[1]))
    herd = common.herd_binary(args.herd)
    rounds, layers, gib = (1, 1, 0.1) if args.quick else (args.rounds, 18, 1.9)
    work = common.SCRATCH / "convert"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        # In a process of its own: a child starts with the peak of the process that forked it.
        subprocess.run([sys.executable, __file__, "--make", work / "hf", str(layers)], check=True)
        total = size_of(work / "hf")
        oracle = common.ROOT / "tests" / "oracle" / "checkpoint_meta.py"
        subprocess.run([sys.executable, oracle, "big", work / "meta", str(gib)], check=True)
        found = {"import": [], "export": [], "meta_import": []}
        for _ in range(rounds):
            found["import"].append(measured(herd, work / "hf", work / "run", "import", work / "log"))
            found["export"].append(measured(herd, work / "run", work / "out", "export", work / "log"))
            found["meta_import"].append(measured(herd, work / "meta", work / "meta-run", "import", work / "log"))
            shutil.rmtree(work / "meta-run")
        check_loads(work / "hf", work / "out")
        entries = []
        for name, runs in found.items():
            size = size_of(work / "meta") if name == "meta_import" else total
            resident = max(run.resident for run, _ in runs) / 1e6
            ratio, low, high = common.spread([ratio for _, ratio in runs])
            seconds = common.spread([run.seconds for run, _ in runs])[0]
            print(f"{name}: {size / 1e9:.2f} GB in {seconds:.1f} s, {ratio:.2f} of raw, at most {resident:.0f} MB resident")
            about = dict(model_gb=round(size / 1e9, 2))
            entries.append(common.entry(
                f"{name}_rss", resident, "MB", "none", goal=f"<= {LIMIT_MB}", reached=resident <= LIMIT_MB, **about))
            entries.append(common.entry(
                f"{name}_vs_raw", ratio, "x time", "raw read of the source + raw write of the result with fsync",
                min=round(low, 3), max=round(high, 3), ours=f"{seconds:.1f} s", **about))
            if resident > LIMIT_MB:
                raise Failed(f"{name} took {resident:.0f} MB, more than {LIMIT_MB}")
        if not args.quick:
            common.write_results(entries, RESULTS)
            report.write()
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    try:
        main()
    except Failed as e:
        sys.exit(f"bench: {e}")

"""Models in Meta's form, with Meta's own arithmetic as the oracle of the import.

    checkpoint_meta.py make DIR                saves DIR/<variant>/{params.json, consolidated.*.pth} and DIR/<variant>.pt,
                                               the logits of a forward pass as in Meta's llama3 repository
    checkpoint_meta.py compare DIR/X.pt HF …   transformers computes the same logits from the directory HF; more pairs may follow
    checkpoint_meta.py big DIR GIB             a model of that size in bf16, in two files
"""
import json, math, os, sys
import torch
import torch.nn.functional as F

VOCAB = 96
BASE = dict(dim=64, n_layers=2, n_heads=8, n_kv_heads=4, vocab_size=VOCAB, multiple_of=32, norm_eps=1e-5, rope_theta=500000.0)
VARIANTS = {  # files, dtype, how the embedding is cut, changes to params.json
    "one": (1, torch.float32, "rows", {}),
    "two": (2, torch.float32, "rows", dict(use_scaled_rope=True, ffn_dim_multiplier=1.3)),
    "four-columns": (4, torch.bfloat16, "columns", dict(n_kv_heads=8)),
    "replicated": (8, torch.float16, "columns", dict(vocab_size=-1, rope_theta=None)),
    "tied": (2, torch.bfloat16, "rows", dict(use_scaled_rope=True)),
}


def heads(p):
    return p["dim"] // p["n_heads"], p.get("n_kv_heads", p["n_heads"])


def weights(p, tied, seed):
    g = torch.Generator().manual_seed(seed)
    hidden = 2 * 4 * p["dim"] // 3
    hidden = int(p.get("ffn_dim_multiplier", 1) * hidden)
    hidden = p["multiple_of"] * math.ceil(hidden / p["multiple_of"])
    d, kv = heads(p)
    mat = lambda *s: torch.randn(*s, generator=g) * 0.08
    norm = lambda: 1 + 0.2 * torch.randn(p["dim"], generator=g)
    w = {"tok_embeddings.weight": mat(VOCAB, p["dim"]) * 5, "norm.weight": norm()}
    w["output.weight"] = w["tok_embeddings.weight"].clone() if tied else mat(VOCAB, p["dim"])
    for i in range(p["n_layers"]):
        l = f"layers.{i}."
        w[l + "attention.wq.weight"] = mat(p["dim"], p["dim"]) * 2
        w[l + "attention.wk.weight"] = mat(kv * d, p["dim"]) * 2
        w[l + "attention.wv.weight"] = mat(kv * d, p["dim"])
        w[l + "attention.wo.weight"] = mat(p["dim"], p["dim"])
        for n in ("w1", "w3"):
            w[l + f"feed_forward.{n}.weight"] = mat(hidden, p["dim"])
        w[l + "feed_forward.w2.weight"] = mat(p["dim"], hidden)
        w[l + "attention_norm.weight"], w[l + "ffn_norm.weight"] = norm(), norm()
    return w


def scaled(freqs, factor):
    low, high, old = 1.0, 4.0, 8192
    out = []
    for f in freqs:
        wave = 2 * math.pi / f
        if wave < old / high:
            out.append(f)
        elif wave > old / low:
            out.append(f / factor)
        else:
            s = (old / wave - low) / (high - low)
            out.append((1 - s) * f / factor + s * f)
    return torch.stack(out)


def forward(p, w, tokens, factor):
    d, kv = heads(p)
    freqs = 1.0 / ((p.get("rope_theta") or 10000.0) ** (torch.arange(0, d, 2).float() / d))
    if p.get("use_scaled_rope"):
        freqs = scaled(freqs, factor)
    angles = torch.outer(torch.arange(len(tokens)).float(), freqs)
    cis = torch.polar(torch.ones_like(angles), angles)[:, None, :]
    rotate = lambda x: torch.view_as_real(torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * cis).flatten(-2)
    norm = lambda x, g: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + p["norm_eps"]) * g
    h = w["tok_embeddings.weight"][tokens]
    for i in range(p["n_layers"]):
        g = lambda n: w[f"layers.{i}.{n}.weight"]
        x = norm(h, g("attention_norm"))
        q, k, v = (F.linear(x, g("attention." + n)).view(len(tokens), -1, d) for n in ("wq", "wk", "wv"))
        q, k = rotate(q), rotate(k)
        k, v = (t.repeat_interleave(p["n_heads"] // kv, dim=1) for t in (k, v))
        a = F.scaled_dot_product_attention(*(t.transpose(0, 1) for t in (q, k, v)), is_causal=True)
        h = h + F.linear(a.transpose(0, 1).reshape(len(tokens), -1), g("attention.wo"))
        x = norm(h, g("ffn_norm"))
        h = h + F.linear(F.silu(F.linear(x, g("feed_forward.w1"))) * F.linear(x, g("feed_forward.w3")), g("feed_forward.w2"))
    return F.linear(norm(h, w["norm.weight"]), w["output.weight"])


def cut(name, t, rank, n, embedding, kv_rows):
    """Rank's slice, as Meta's column-, row- and vocabulary-parallel layers hold it."""
    if t.dim() == 1:
        return t
    if name.endswith(("wk.weight", "wv.weight")) and n * kv_rows > t.shape[0]:
        return t.chunk(t.shape[0] // kv_rows)[rank * t.shape[0] // kv_rows // n]  # more ranks than heads
    columns = name.endswith(("wo.weight", "w2.weight")) or (name.startswith("tok_") and embedding == "columns")
    return t.chunk(n, 1 if columns else 0)[rank]


def save(directory, p, w, n, embedding):
    os.makedirs(directory)
    json.dump({k: v for k, v in p.items() if v is not None}, open(os.path.join(directory, "params.json"), "w"))
    d, _ = heads(p)
    for rank in range(n):
        part = {name: cut(name, t, rank, n, embedding, d).clone() for name, t in w.items()}
        part["rope.freqs"] = torch.ones(4)
        if rank == 0:  # a view that is not contiguous, and one that starts inside its storage
            name = "layers.0.attention.wq.weight"
            part[name] = part[name].t().contiguous().t()
            whole = torch.cat([torch.zeros(3, dtype=part["norm.weight"].dtype), part["norm.weight"]])
            part["norm.weight"] = whole[3:]
        torch.save(part, os.path.join(directory, f"consolidated.{rank:02}.pth"))


def make(directory):
    for i, (name, (n, dtype, embedding, changes)) in enumerate(VARIANTS.items()):
        p = {**BASE, **changes}
        w = {k: t.to(dtype) for k, t in weights(p, name == "tied", i).items()}
        torch.manual_seed(i)
        tokens = torch.randint(0, VOCAB, (150,))
        logits = forward(p, {k: t.float() for k, t in w.items()}, tokens, 32.0 if name == "tied" else 8.0)
        save(os.path.join(directory, name), p, w, n, embedding)
        torch.save({"tokens": tokens, "logits": logits}, os.path.join(directory, name + ".pt"))


def compare(*pairs):
    for pair in zip(pairs[::2], pairs[1::2]):
        compare_one(*pair)


def compare_one(reference, directory):
    from transformers import AutoModelForCausalLM
    r = torch.load(reference)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(r["tokens"][None]).logits[0]
    worst = (logits - r["logits"]).abs().max().item()
    assert worst < 2e-4 * r["logits"].abs().max().item(), f"logits differ by {worst}"
    print(f"the logits are equal: {worst:.1e} of {r['logits'].abs().max().item():.1f}")


def big(directory, gib):
    p = {**BASE, "dim": 1024, "n_heads": 16, "n_kv_heads": 8, "multiple_of": 256, "n_layers": 1}
    per_layer = sum(t.numel() for k, t in weights(p, False, 0).items() if k.startswith("layers."))
    p["n_layers"] = max(1, int(float(gib) * 2**30 / 2 / per_layer))
    save(directory, p, {k: t.bfloat16() for k, t in weights(p, False, 0).items()}, 2, "rows")


if __name__ == "__main__":
    {"make": make, "compare": compare, "big": big}[sys.argv[1]](*sys.argv[2:])

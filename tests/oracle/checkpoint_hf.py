"""transformers as the oracle of import and export.

    checkpoint_hf.py make DIR   saves a small model per variant as DIR/<variant>
    checkpoint_hf.py compare exact|bf16 A B [A B ...]   B has the same bits (or those of A rounded) and the same logits
"""
import json, os, sys
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32, rope_theta=500000.0)
PLAIN = dict(rope_type="default", rope_theta=10000.0)
VARIANTS = {
    "plain": dict(rope_parameters=PLAIN),
    "llama3": dict(rope_parameters=LLAMA3, head_dim=24),
    "tied": dict(rope_parameters=LLAMA3, tie_word_embeddings=True),
}


def make(directory):
    for i, (name, extra) in enumerate(VARIANTS.items()):
        torch.manual_seed(i)
        config = LlamaConfig(vocab_size=211, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
                             num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
                             rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=[2, 3], pad_token_id=None, **extra)
        model = LlamaForCausalLM(config).float()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p) * 0.05)
        model.save_pretrained(os.path.join(directory, name), max_shard_size="100KB")
        if name == "llama3":  # the spelling of transformers 4, as most published files have it
            path = os.path.join(directory, name, "config.json")
            c = json.load(open(path))
            rope = c.pop("rope_parameters")
            c["rope_theta"] = rope.pop("rope_theta")
            c["rope_scaling"] = rope
            json.dump(c, open(path, "w"))


def compare(a, b, exact):
    a, b = (AutoModelForCausalLM.from_pretrained(d, dtype=torch.float32) for d in (a, b))
    for key in ("rope_parameters", "rms_norm_eps", "tie_word_embeddings", "head_dim", "max_position_embeddings",
                "bos_token_id", "eos_token_id", "pad_token_id"):
        x, y = getattr(a.config, key), getattr(b.config, key)
        assert x == y, f"{key}: {x} and {y}"
    assert a.generation_config.eos_token_id == b.generation_config.eos_token_id
    x, y = a.state_dict(), b.state_dict()
    assert x.keys() == y.keys()
    for name in x:
        p, q = x[name], y[name]
        if not exact:
            p = p.bfloat16().float()
        assert torch.equal(p, q), name
    if not exact:
        a.load_state_dict({n: p.bfloat16().float() for n, p in x.items()})
    torch.manual_seed(0)
    ids = torch.randint(0, a.config.vocab_size, (2, 200))  # far beyond the original context of 32
    with torch.no_grad():
        worst = (a(ids).logits - b(ids).logits).abs().max().item()
    assert worst == 0.0, f"logits differ by {worst}"
    print(f"{len(x)} tensors and the logits are equal")


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(sys.argv[2])
    else:
        pairs = zip(sys.argv[3::2], sys.argv[4::2])
        for pair in pairs:
            compare(*pair, exact=sys.argv[2] == "exact")

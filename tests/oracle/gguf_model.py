"""A small Llama as GGUF, and what transformers reads in it: python gguf_model.py FOLDER [FILE.gguf]

Writes FOLDER/m.gguf with every kind of tensor that herd reads (those of K quants of random bytes: gguf can only read them), or takes
FILE.gguf; and of transformers' own loader FOLDER/weights.safetensors, greedy continuations in FOLDER/greedy.json and the ids of texts."""

import json
import shutil
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

H, F, LAYERS, HEADS, KV, CONTEXT = 256, 512, 2, 4, 2, 256
KINDS = ["Q4_0", "Q4_1", "Q8_0", "F16", "BF16", "Q4_K", "Q6_K", "F32"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TEXTS = ["The herd went up the hill", "it's über 𝄞\n\n  two  spaces", "<|im_start|>user\nHi<|im_end|>\n", "", " x"]


def k_blocks(rng, kind, rows, columns):
    """Random blocks with small scales."""
    size = {"Q4_K": 144, "Q6_K": 210}[kind]
    raw = rng.integers(0, 256, (rows, columns // 256, size), dtype=np.uint8)
    scale = np.frombuffer(np.float16(4e-5).tobytes(), np.uint8)
    if kind == "Q4_K":
        raw[..., 0:2], raw[..., 2:4] = scale * 1, np.frombuffer(np.float16(2e-4).tobytes(), np.uint8)
    else:
        raw[..., 208:210] = scale
    return raw.reshape(rows, -1)


def write(path):
    rng, merges = np.random.default_rng(4), ["t h", "th e", "Ġ the", "i n", "e r", "h i", "Ġ h", "o n"]
    tokens = SPECIAL + list(bytes_to_unicode().values()) + [m.replace(" ", "") for m in merges]
    w = gguf.GGUFWriter(path, "llama")
    w.add_block_count(LAYERS)
    w.add_context_length(CONTEXT)
    w.add_embedding_length(H)
    w.add_feed_forward_length(F)
    w.add_head_count(HEADS)
    w.add_head_count_kv(KV)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(10000.0)
    w.add_rope_dimension_count(H // HEADS)
    w.add_vocab_size(len(tokens))
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("smollm")
    w.add_token_list(tokens)
    w.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    w.add_token_merges(merges)
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_add_bos_token(False)
    w.add_chat_template(TEMPLATE)
    n = 0

    def matrix(name, rows, columns, kind=None):
        nonlocal n
        kind, n = kind or KINDS[n % len(KINDS)], n + 1
        t = gguf.GGMLQuantizationType[kind]
        if kind.endswith("_K"):
            w.add_tensor(name, k_blocks(rng, kind, rows, columns), raw_dtype=t)
        else:
            x = rng.normal(0, 0.08, (rows, columns)).astype(np.float32)
            w.add_tensor(name, gguf.quants.quantize(x, t), raw_dtype=t)

    matrix("token_embd.weight", len(tokens), H, "Q8_0")
    for i in range(LAYERS):
        for part, rows, columns in [("attn_q", H, H), ("attn_k", H // 2, H), ("attn_v", H // 2, H), ("attn_output", H, H), ("ffn_gate", F, H), ("ffn_up", F, H), ("ffn_down", H, F)]:
            matrix(f"blk.{i}.{part}.weight", rows, columns)
        for part in ["attn_norm", "ffn_norm"]:
            w.add_tensor(f"blk.{i}.{part}.weight", rng.normal(1, 0.1, H).astype(np.float32))
    w.add_tensor("output_norm.weight", rng.normal(1, 0.1, H).astype(np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


folder = Path(sys.argv[1])
folder.mkdir(exist_ok=True)
file = folder / "m.gguf"
if len(sys.argv) > 2:
    shutil.copy(sys.argv[2], file)
else:
    write(file)
model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file.name)
tied = model.config.tie_word_embeddings
save_file({k: v.contiguous() for k, v in model.state_dict().items() if not (tied and k == "lm_head.weight")}, folder / "weights.safetensors")
r, greedy = np.random.default_rng(7), []
for _ in range(10):
    prompt = r.integers(3, 260, r.integers(1, 40)).tolist()
    with torch.no_grad():
        out = model.generate(torch.tensor([prompt]), max_new_tokens=16, do_sample=False, eos_token_id=None, pad_token_id=0)
    greedy.append({"prompt": prompt, "tokens": out[0, len(prompt) :].tolist()})
texts = [{"text": t, "ids": tokenizer(t, add_special_tokens=False)["input_ids"]} for t in TEXTS]
chat = [{"role": "user", "content": "Hi"}]
rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
(folder / "greedy.json").write_text(json.dumps({"greedy": greedy, "texts": texts, "chat": rendered}))

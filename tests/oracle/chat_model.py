"""A small Llama with tokenizer, chat template and two end tokens in Hugging Face's form; and transformers to talk to such a model.

    chat_model.py make DIR            random weights
    chat_model.py talk DIR QUESTION…  greedy answers, the ids that ended them, and what the model says of its ends, as JSON
"""
import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from chat import LLAMA, byte_level

ENDS = [257, 258]


def make(folder):
    torch.manual_seed(11)
    config = LlamaConfig(
        vocab_size=260, hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=256, rope_theta=10000.0, tie_word_embeddings=False, bos_token_id=256, eos_token_id=ENDS,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    GenerationConfig(bos_token_id=256, eos_token_id=ENDS, temperature=0.6, do_sample=True).save_pretrained(folder)
    byte_level(None).save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin|>", "eos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**names, "chat_template": LLAMA}))


@torch.no_grad()
def talk(folder, questions):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    answers, ended = [], []
    for question in questions:
        turns = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        out = model.generate(**ids, do_sample=False, max_new_tokens=64)[0, ids["input_ids"].shape[1] :]
        answers.append(tokenizer.decode(out, skip_special_tokens=True))
        ended.append(int(out[-1]))
    settings = model.generation_config
    print(json.dumps({"answers": answers, "ended": ended, "ends": settings.eos_token_id, "temperature": settings.temperature}))


if sys.argv[1] == "make":
    make(Path(sys.argv[2]))
else:
    talk(Path(sys.argv[2]), sys.argv[3:])

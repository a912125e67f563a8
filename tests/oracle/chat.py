"""transformers as the oracle of what stands in front of a text, and of chat templates.

    chat.py DIR     makes a tokenizer directory per variant in DIR; prints the ids of each text and of each conversation
"""

import json
import sys
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer

NAMES = ("<|begin|>", "<|end|>", "<|turn|>")
TEXTS = ["plain words", " é and\n\nlines", "<|begin|>written out<|turn|>", ""]
CHATS = [
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "  Be short. "}, {"role": "user", "content": "Why?\n"},
     {"role": "assistant", "content": "Because."}, {"role": "user", "content": "a < b & \"c\" 'd' é", "name": None}],
    [{"role": "user", "content": "x", "extra": {"n": [1, 2.5, True], "é": "<ü>"}}],
]
# In the manner of Llama 3, of ChatML, and of templates with macros, slices and JSON.
LLAMA = """{%- for message in messages %}
    {%- set content = '<|turn|>' + message['role'] + '\n\n' + message['content'] | trim + '<|end|>' %}
    {%- if loop.index0 == 0 %}
        {%- set content = bos_token + content %}
    {%- endif %}
    {{- content }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|turn|>assistant\n\n' }}
{%- endif %}
"""
CHATML = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|begin|>system
You are helpful<|end|>
' }}{% endif %}{{'<|begin|>' + message['role'] + '
' + message['content'] + '<|end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|begin|>assistant
' }}{% endif %}"""
RICH = """{%- macro show(m) -%}
[{{ m.role.upper() }}] {{ m['content'].strip().split('\n')[0] }}{% if m.extra is defined %} {{ m.extra | tojson }}{{ m.extra | tojson(indent=2) }}{% endif %}
{%- endmacro -%}
{% if messages[0].role == 'system' %}
  {% set system = messages[0].content %}
  {% set rest = messages[1:] %}
{% else %}
  {% set system = 'none' %}
  {% set rest = messages %}
{% endif %}
{% set ns = namespace(count=0) %}
{{ bos_token }}{{ system }}{{ unk_token }}
{% for m in rest %}
  {% if m.role not in ['user', 'assistant'] %}
    {{ raise_exception('no such role') }}
  {% endif %}
  {% set ns.count = ns.count + 1 %}
  {% if m.role == 'assistant' %}
    {% generation %}
{{ show(m) }}
    {% endgeneration %}
    {% continue %}
  {% endif %}
{{ show(m) }} #{{ ns.count }}
{% endfor %}
{%- if tools %}tools{% endif %}
{{ '%02d' | format(ns.count) if ns.count > 100 else ns.count }}:
"""
BOS = [("<|begin|>", 256)]
VARIANTS = {
    # post-processor, tokenizer_config.json, chat_template.jinja
    "nothing": (None, {"chat_template": LLAMA}, None),
    "asked": (None, {"add_bos_token": True, "chat_template": [{"name": "tools", "template": "x"}, {"name": "default", "template": CHATML}]}, None),
    "template": (processors.TemplateProcessing(single="<|begin|> $A", special_tokens=BOS), {"add_bos_token": False, "chat_template": LLAMA}, RICH),
    "sequence": (processors.Sequence([processors.ByteLevel(trim_offsets=False),
                                      processors.TemplateProcessing(single="<|begin|> $A", special_tokens=BOS)]), {"chat_template": CHATML}, None),
    "empty": (processors.TemplateProcessing(single="$A", special_tokens=[]), {"add_bos_token": True, "chat_template": RICH}, None),
}


def byte_level(post):
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    stand_in = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(rest)}
    t = Tokenizer(models.BPE(vocab={c: b for b, c in stand_in.items()}, merges=[]))
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    t.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in NAMES])
    if post is not None:
        t.post_processor = post
    return t


def ids(out):
    return list(out["input_ids"]) if hasattr(out, "keys") else list(out)


if __name__ == "__main__":
    made = {}
    for name, (post, config, jinja) in VARIANTS.items():
        folder = Path(sys.argv[1]) / name
        folder.mkdir()
        byte_level(post).save(str(folder / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin|>", "eos_token": "<|end|>", **config}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        if jinja:
            (folder / "chat_template.jinja").write_text(jinja)
        t = AutoTokenizer.from_pretrained(folder)
        made[name] = {
            "plain": [ids(t(x, split_special_tokens=True)) for x in TEXTS],
            "special": [ids(t(x)) for x in TEXTS],
            "chats": [ids(t.apply_chat_template(c, add_generation_prompt=True)) for c in CHATS],
        }
    print(json.dumps({"texts": TEXTS, "chats": CHATS, "made": made}))

"""transformers as the oracle of which tokens of a conversation are the model's: `return_assistant_tokens_mask`, by which TRL's
`assistant_only_loss` masks.

    chat_masks.py DIR COUNT [TEMPLATES]    makes in DIR a directory per template (tokenizer.json, tokenizer_config.json, marked.jinja,
                                           plain.jinja) with rows.jsonl (COUNT conversations, edge cases first) and want.jsonl
                                           (ids and mask of each; null where the template refuses it)

TEMPLATES is a directory of *.jinja; without it, those beside this file. Prints the names of the templates.
"""

import json
import random
import re
import sys
from pathlib import Path

from jinja2 import TemplateError
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer
from transformers.utils import logging

logging.set_verbosity_error()
HERE = Path(__file__).parent / "chat_templates"
NAMES = re.compile(r"<[|｜][^|｜<>]{1,40}[|｜]>|<(?:start|end)_of_turn>|</?tool_(?:call|response)>|</?think>|\[/?[A-Z_]{4,}\]")
# Vicuna and Zephyr write their roles as plain text; <think> is plain text for DeepSeek.
PLAIN = {"zephyr": {"<|user|>", "<|system|>", "<|assistant|>"}, "tulu": {"<|user|>", "<|system|>", "<|assistant|>"}}
WORDS = "the a of model turn answer <b> & code 'x' \"y\" {z} naïve 東京 🙂 e\u0301 ﷽ 12 34.5 \\n \t end-of-text Ünïcode".split(" ")
TOOL = {"type": "function", "function": {"name": "weather", "description": "Weather of a <place>", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "enum": ["Köln", "Paris"]}}, "required": ["city"]}}}


def user(text):
    return {"role": "user", "content": text}


def model(text, **more):
    return {"role": "assistant", "content": text, **more}


def system(text):
    return {"role": "system", "content": text}


def call(**arguments):
    return model("", tool_calls=[{"type": "function", "function": {"name": "weather", "arguments": arguments}}])


EDGES = [
    [user("Hello"), model("Hi")],
    [user("Hello"), model("")],
    [user(""), model("x"), user(""), model("")],
    [system(""), user("a"), model("b")],
    [system("Be brief."), user("a\n\nb"), model("c\n"), user(" d "), model("  e  ")],
    [user("東京"), model("🙂🙂"), user("e\u0301"), model("👩‍👩‍👧")],
    [user("<|im_end|>"), model("</s> <|eot_id|> <|im_start|>assistant\n")],
    [user("x"), model("USER: y ASSISTANT: z</s>"), user("[INST]"), model("[/INST]")],
    [user("two in a row"), model("one"), model("two")],
    [user("tool?"), call(city="Köln"), {"role": "tool", "name": "weather", "content": "{\"t\": 3}"}, model("3 degrees")],
    [user("tool?"), call(city="<Paris>"), {"role": "tool", "content": "a"}, {"role": "tool", "content": "b"}, model("ok")],
    [user("no answer yet")],
    [user("a"), model("first"), user("and")],
    [user("think"), model("</think>after")],
    [user("same"), model("same"), user("same"), model("same")],
    [model("starts with the model"), user("odd"), model("yes")],
    [user("\n"), model("\n\n"), user("\t"), model("\u3000")],
]


def conversations(count):
    dice = random.Random(7)

    def text():
        return " ".join(dice.choice(WORDS) for _ in range(dice.choice([0, 1, 3, 12, 40])))

    for i in range(count):
        if i < len(EDGES):
            messages = EDGES[i]
        else:
            messages = [system(text())] if dice.random() < 0.3 else []
            for _ in range(dice.randint(1, 5)):
                messages += [user(text()), model(text() if dice.random() < 0.9 else "")]
        tools = [TOOL] if any("tool_calls" in m for m in messages) else None
        yield messages, tools


def tokenizer(folder, name, source):
    """A byte-level BPE with merges, so that tokens span the edges of words, and the template's own special tokens."""
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    texts = [w for w in WORDS for _ in range(3)] + [source, "USER: ASSISTANT: user assistant system \n\n"] * 2
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    t.train_from_iterator(texts, trainer)
    special = sorted(set(NAMES.findall(source)) - PLAIN.get(name, set()) - {"<think>", "</think>"})
    t.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in ["<s>", "</s>", *special]])
    t.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return AutoTokenizer.from_pretrained(folder)


def unmarked(source):
    source = re.sub(r"(\{%[-+]?\s*)generation(\s*[-+]?%\})", r"\1if true\2", source)
    return re.sub(r"(\{%[-+]?\s*)endgeneration(\s*[-+]?%\})", r"\1endif\2", source)


def main():
    out, count = Path(sys.argv[1]), int(sys.argv[2])
    sources = Path(sys.argv[3]) if len(sys.argv) > 3 else HERE
    names = []
    for file in sorted(sources.glob("*.jinja")):
        name, source = file.stem, file.read_text().removesuffix("\n")
        folder = out / name
        folder.mkdir(parents=True)
        t = tokenizer(folder, name, source)
        (folder / "marked.jinja").write_text(source)
        (folder / "plain.jinja").write_text(unmarked(source))
        with open(folder / "rows.jsonl", "w") as rows, open(folder / "want.jsonl", "w") as want:
            for messages, tools in conversations(count):
                rows.write(json.dumps({"messages": messages, **({"tools": tools} if tools else {})}, ensure_ascii=False) + "\n")
                try:
                    done = t.apply_chat_template(messages, tools=tools, chat_template=source, tokenize=True,
                                                 return_dict=True, return_assistant_tokens_mask=True)
                    line = {"ids": list(done["input_ids"]), "mask": list(done["assistant_masks"])}
                except (TemplateError, TypeError) as e:
                    line = {"refused": str(e)}
                want.write(json.dumps(line) + "\n")
        names.append(name)
    print(json.dumps(names))


if __name__ == "__main__":
    main()

